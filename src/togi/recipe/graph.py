"""Turns a recipe into an ordered list of nodes with fingerprints, type-checked before anything runs.

A fingerprint omits settings that equal their defaults, so a new setting with a default reruns nothing. Changing a
default raises the version of its stage (tests/recipe/test_fingerprints.py checks this).
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from togi.client.endpoint import Endpoint
from togi.core.code import neighbours
from togi.core.errors import RecipeError
from togi.core.hashing import HashedFiles, take, tree
from togi.core.hub import COMMIT
from togi.core.seeds import digest
from togi.core.settings import MAIN, CodePath, PackageName, RecipePath, Ref, is_place, references
from togi.core.sources import ModelSource, fingerprint, hash_folder, model_files
from togi.recipe.around import completed
from togi.recipe.endpoint_spec import STORED_JUDGE, endpoint_of, replayed
from togi.recipe.missing import refuse_missing
from togi.recipe.references import check_made, check_references, kind_of, kinds_of, made_by, stage_of
from togi.recipe.schema import DataSpec, ModelSpec, Recipe, TemplateFile
from togi.recipe.store import VERSION, Read
from togi.stages.base import StageSettings
from togi.stages.context import Resolved
from togi.stages.data.importing import DataSettings
from togi.stages.table import STAGES


@dataclass(frozen=True, slots=True)
class Node:
    """One stage of the graph. `inputs` maps each reference of the settings to a node's name or a model from outside;
    `sources` are the files from outside that the fingerprint covers, with their hashes at that time."""

    name: str
    settings: StageSettings
    seed: int
    inputs: dict[str, "str | ModelSource"]
    fingerprint: str
    sources: tuple[HashedFiles, ...] = ()

    @property
    def folder_name(self) -> str:
        return f"{self.settings.type}-{self.fingerprint[:16]}"

    @property
    def parents(self) -> list[str]:
        return list(dict.fromkeys(target for target in self.inputs.values() if isinstance(target, str)))


@dataclass(slots=True)
class Graph:
    """All nodes, in an order in which they can run."""

    recipe: Recipe
    nodes: dict[str, Node] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)  # identities of served models, each hashed once

    def resolve(self, node: Node, store: Path) -> dict[str, Resolved]:
        """The target of each reference of `node`, in a given store."""
        found = {}
        for ref, target in node.inputs.items():
            if isinstance(target, ModelSource):
                kind, name = kind_of(self.recipe, Ref(ref)), Ref(ref).name
                found[ref] = Resolved(kind, source=target, endpoint=self.endpoint(name))
            else:
                parent = self.nodes[target]
                kind = kinds_of(parent.settings)[Ref(ref).output]
                spec = self.recipe.models.get(Ref(ref).name)
                device = "" if spec is None else spec.device
                endpoint = self.endpoint(Ref(ref).name)
                found[ref] = Resolved(kind, folder=store / parent.folder_name, device=device, endpoint=endpoint)
        return found

    def endpoint(self, model: str) -> Endpoint | None:
        """The endpoint of a declared model on a server, whether external or started by the run; None if the model is
        computed here or not declared. The answers of a model that the run serves are identified by its content."""
        spec = self.recipe.models.get(model)
        if spec is None or (spec.url is None and spec.serve is None):
            return None
        if spec.url is not None or replayed(spec):
            source = model_source(spec)
            return endpoint_of(model, spec, source.name, source.revision)
        made = made_by(spec)
        if made is not None:
            self.marks[model] = self.nodes[made.name].fingerprint
        elif model not in self.marks:
            self.marks[model] = digest(_model_mark(model_source(spec), []))
        return endpoint_of(model, spec, f"{model}-{self.marks[model][:12]}", "")

    def reads(self, node: Node, store: Path) -> list[Read]:
        """The distinct outputs that `node` reads, in a given store."""
        found = [
            (store / self.nodes[target].folder_name, Ref(ref).output)
            for ref, target in node.inputs.items()
            if not isinstance(target, ModelSource)
        ]
        return list(dict.fromkeys(found))

    def needed_by(self, name: str) -> list[str]:
        """The names of `name` and everything that it depends on, in running order."""
        wanted = [name]
        for other in reversed(list(self.nodes)):
            if any(other in self.nodes[child].parents for child in wanted) and other not in wanted:
                wanted.append(other)
        return [each for each in self.nodes if each in wanted]

    def imports_first(self, names: Iterable[str]) -> list[str]:
        """`names`, which are in running order, with those first that import rows: a bad row then ends a run at once."""
        return sorted(names, key=lambda name: not STAGES[self.nodes[name].settings.type].imports)


def build(recipe: Recipe) -> Graph:
    """Orders, type-checks and fingerprints a recipe's stages.

    Raises RecipeError (unknown or unsuitable references, cycles) and InputError (missing files and packages).
    """
    problems: list[str] = []
    recipe = completed(recipe)
    check_made(recipe, problems)
    check_references(recipe, problems)
    if problems:
        raise RecipeError("\n".join(problems))
    sources = {name: model_source(spec) for name, spec in recipe.models.items() if made_by(spec) is None}
    refuse_missing(recipe, sources, fingerprint)
    graph = Graph(recipe)
    for name in _order(recipe):
        settings = recipe.stages[name]
        inputs: dict[str, str | ModelSource] = {}
        for _, ref in references(settings):
            if ref.name in sources:
                inputs[ref] = settings.of_model(sources[ref.name])
            elif ref.name in recipe.data:
                inputs[ref] = _add_import(graph, ref, settings)
            else:
                inputs[ref] = stage_of(recipe, ref)
        _add(graph, name, settings, inputs)
    return graph


def model_source(spec: ModelSpec) -> ModelSource:
    """The source that a `models:` entry declares."""
    kind = "package" if spec.package else "hub" if spec.hub else "path" if spec.path else "endpoint"
    name = str(spec.package or spec.hub or spec.path or spec.model or STORED_JUDGE)
    stored = spec.serve if replayed(spec) else None
    beside = spec.path.beside if isinstance(spec.path, RecipePath) else ""
    template: Any = {"template": spec.template}
    if isinstance(spec.template, TemplateFile):
        template = {"template_file": str(spec.template.file), "terminator": spec.template.terminator}
    tokens = () if spec.tokens is None else spec.tokens.add
    return ModelSource(
        kind=kind,
        name=name,
        revision=spec.revision if stored is None else stored.content(),
        stored=() if stored is None else stored.stored,
        file=spec.file,
        beside=beside,
        tokens=tokens,
        prefix=spec.prefix,
        tokenizer=spec.tokenizer or "",
        device=spec.device,
        shape=str(spec.shape or ""),
        licence=spec.licence,
        terms=spec.terms,
        inherit=spec.says[2],
        **template,
    )


def unpinned(recipe: Recipe) -> list[str]:
    """A note on each model and data set whose revision is not a commit, because it may change upstream unnoticed."""
    places = [(f"models.{name}", spec.hub, spec.revision) for name, spec in recipe.models.items()]
    places += [(f"data.{name}", spec.on_hub, spec.revision) for name, spec in recipe.data.items()]
    stages = recipe.stages.items()
    places += [(f"stages.{name}", own.on_hub, own.revision) for name, own in stages if isinstance(own, DataSettings)]
    return [
        f"{key}: {hub} at revision {revision} may change upstream without rerunning the stages that use it; "
        "set `revision` to the hash of a commit to pin it"
        for key, hub, revision in places
        if hub is not None and not COMMIT.fullmatch(revision)
    ]


def _order(recipe: Recipe) -> list[str]:
    stages = recipe.stages
    read = {name: [stage_of(recipe, ref) for _, ref in references(settings)] for name, settings in stages.items()}
    edges = {name: [each for each in found if each in stages] for name, found in read.items()}
    try:
        order = list(TopologicalSorter(edges).static_order())
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        where = recipe.tree.where(("stages", error.args[1][0]))
        raise RecipeError(f"{where}: stages: these stages wait for each other: {circle}") from None
    return order


def _add_import(graph: Graph, ref: Ref, reader: StageSettings) -> str:
    """The node that imports data as the kind that `ref` needs. If data are read as two kinds, the second node is
    NAME@KIND, which cannot be the name of a stage."""
    kind = kind_of(graph.recipe, ref, reader)
    first = graph.nodes.get(ref.name)
    name = ref.name if first is None or kinds_of(first.settings)[MAIN] == kind else f"{ref.name}@{kind}"
    if name not in graph.nodes:
        spec: DataSpec = graph.recipe.data[ref.name]
        settings = STAGES["import"].settings.model_validate({"kind": kind, **{k: v for k, v in spec if v is not None}})
        _add(graph, name, settings, {})
    return name


def _add(graph: Graph, name: str, settings: StageSettings, inputs: dict[str, "str | ModelSource"]) -> None:
    seed = graph.recipe.seed if settings.seed is None else settings.seed
    sources: list[HashedFiles] = []
    what = content(graph, settings, inputs, sources)
    mark = digest({**what, "seed": seed})
    graph.nodes[name] = Node(name, settings, seed, inputs, mark, tuple(sources))


def content(
    graph: Graph, settings: StageSettings, inputs: dict[str, "str | ModelSource"], sources: list[HashedFiles]
) -> dict[str, Any]:
    """Everything that a stage's fingerprint covers except its seed; adds the covered files to `sources`."""
    named = {
        ref: _model_mark(target, sources) if isinstance(target, ModelSource) else _output_mark(graph, target, Ref(ref))
        for ref, target in inputs.items()
    }
    stage = STAGES[settings.type]
    what = canonical(settings, named, sources)
    return {"store": VERSION, "type": stage.name, "version": stage.version, "settings": what}


def _output_mark(graph: Graph, target: str, ref: Ref) -> str:
    mark = graph.nodes[target].fingerprint
    return mark if ref.output == MAIN else f"{mark}.{ref.output}"


def _model_mark(source: ModelSource, sources: list[HashedFiles]) -> dict[str, Any]:
    """The identity of a model from outside, and how it is read if that is not the default."""
    if source.kind == "path":  # before its fingerprint: a change in between is found when the stage begins
        sources.append(take(Path(source.name), "model", model_files(source)))
    sources += [take(Path(path), "tree", [Path(path)]) for path in source.stored]
    mark: dict[str, Any] = {"content": fingerprint(source)}
    if source.template_file:
        mark |= {"template": _path_mark(Path(source.template_file), sources), "terminator": source.terminator}
    elif source.template is not None:
        mark["template"] = source.template
    says = [source.licence, source.terms, source.inherit] if source.licence or source.terms else []
    more = {"tokens": list(source.tokens), "prefix": source.prefix, "says": says}
    if source.tokenizer:
        folder = Path(source.tokenizer)
        more["tokenizer"] = hash_folder(folder) if folder.is_dir() else source.tokenizer
    return mark | {name: value for name, value in more.items() if value}


def canonical(settings: StageSettings, named: dict[str, Any], sources: list[HashedFiles]) -> dict[str, Any]:
    """The settings of a stage as the fingerprint covers them: without runtime settings, defaults and seed; references
    and files are replaced by their content."""
    return {name: value for name, value in _told(settings, named, sources).items() if name != "seed"}


def _told(value: Any, named: dict[str, Any], sources: list[HashedFiles]) -> Any:
    """A settings tree without runtime settings and defaults; references and files are replaced by their content."""
    if isinstance(value, BaseModel):
        fields = [name for name in type(value).model_fields if not is_place(value, name)]
        found = {name: _told(getattr(value, name), named, sources) for name in fields}
        return {name: item for name, item in found.items() if not _is_default(value, name, item, named)}
    if isinstance(value, dict):
        return {key: _told(item, named, sources) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_told(item, named, sources) for item in value]
    if isinstance(value, Ref):
        return [value.name, named[value]] if value.named else named[value]
    if isinstance(value, CodePath) and Path(value).is_file():
        path = Path(value)
        return _mark(take(path, "code", [path, *neighbours(path)]), path.parent, sources)
    if isinstance(value, RecipePath):
        return _path_mark(Path(value), sources)
    if isinstance(value, PackageName):
        return fingerprint(ModelSource(kind="package", name=value))
    return value


def _is_default(settings: BaseModel, name: str, item: Any, named: dict[str, Any]) -> bool:
    """Whether a setting is omitted. `type` never is: it distinguishes the members of a union."""
    field = type(settings).model_fields[name]
    if name == "type" or field.is_required():
        return False
    default = field.get_default(call_default_factory=True)
    return getattr(settings, name) == default and digest(item) == digest(_told(default, named, []))


def _path_mark(path: Path, sources: list[HashedFiles]) -> str:
    return _mark(take(path, "tree", tree(path)), path, sources)


def _mark(source: HashedFiles, folder: Path, sources: list[HashedFiles]) -> str:
    """The identity of a source's content: the hash of its one file, or names below `folder` and hashes of several."""
    sources.append(source)
    if list(source.files) == [source.path]:
        return source.files[source.path]
    return digest([[os.path.relpath(name, folder), found] for name, found in source.files.items()])
