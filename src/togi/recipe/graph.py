"""From a recipe to an ordered list of nodes with fingerprints, type-checked before anything runs."""

import re
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from togi.core.code import code_hash
from togi.core.errors import InputError, RecipeError
from togi.core.seeds import digest
from togi.core.settings import CodePath, PackageName, RecipePath, Ref, is_place, references
from togi.core.sources import ModelSource, fingerprint
from togi.recipe.schema import DataSpec, ModelSpec, Recipe
from togi.stages.base import Resolved, StageSettings, file_hash
from togi.stages.imported import Import
from togi.stages.table import STAGES, takers

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Node:
    """One stage of the graph. `inputs` maps each reference of the settings to a node's name or a model from outside."""

    name: str
    settings: StageSettings
    seed: int
    inputs: dict[str, "str | ModelSource"]
    fingerprint: str

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

    def resolve(self, node: Node, store: Path) -> dict[str, Resolved]:
        """What each reference of `node` stands for, in a given store."""
        found = {}
        for ref, target in node.inputs.items():
            if isinstance(target, ModelSource):
                found[ref] = Resolved(_kind_of(self.recipe, Ref(ref)), source=target)
            else:
                parent = self.nodes[target]
                found[ref] = Resolved(_yields(parent.settings), folder=store / parent.folder_name)
        return found

    def needed_by(self, name: str) -> list[str]:
        """The names of `name` and everything it stands on, in running order."""
        wanted = [name]
        for other in reversed(list(self.nodes)):
            if any(other in self.nodes[child].parents for child in wanted) and other not in wanted:
                wanted.append(other)
        return [each for each in self.nodes if each in wanted]


def build(recipe: Recipe) -> Graph:
    """Orders, type-checks and fingerprints a recipe's stages.

    Raises RecipeError (unknown or misfitting references, circles) and InputError (missing files and packages).
    """
    problems: list[str] = []
    _check_references(recipe, problems)
    if problems:
        raise RecipeError("\n".join(problems))
    sources = {name: model_source(spec) for name, spec in recipe.models.items()}
    graph = Graph(recipe)
    for name in _order(recipe):
        settings = recipe.stages[name]
        inputs: dict[str, str | ModelSource] = {}
        for _, ref in references(settings):
            if ref.name in sources:
                inputs[ref] = sources[ref.name]
            elif ref.name in recipe.data:
                inputs[ref] = _add_import(graph, ref)
            else:
                inputs[ref] = ref.name
        _add(graph, name, settings, inputs)
    return graph


def model_source(spec: ModelSpec) -> ModelSource:
    """The source that a `models:` entry declares."""
    kind = "package" if spec.package else "hub" if spec.hub else "path"
    name = str(spec.package or spec.hub or spec.path)
    beside = "" if spec.path is None else spec.path.beside
    return ModelSource(
        kind=kind, name=name, revision=spec.revision, file=spec.file, template=spec.template, beside=beside
    )


def unpinned(recipe: Recipe) -> list[str]:
    """A note on each model and data set whose revision is not a commit: it may change upstream, unnoticed."""
    places = [(f"models.{name}", spec.hub, spec.revision) for name, spec in recipe.models.items()]
    places += [(f"data.{name}", spec.hub, spec.revision) for name, spec in recipe.data.items()]
    return [
        f"{key}: {hub} at revision {revision} may change upstream, and what was made from it would not be done again; "
        "pin it with the hash of a commit as `revision`"
        for key, hub, revision in places
        if hub is not None and not COMMIT.fullmatch(revision)
    ]


def _yields(settings: StageSettings) -> str:
    return settings.kind if isinstance(settings, Import) else STAGES[settings.type].yields


def _check_references(recipe: Recipe, problems: list[str]) -> None:
    names = [*recipe.models, *recipe.data, *recipe.stages]
    for stage, settings in recipe.stages.items():
        for path, ref in references(settings):
            key = ".".join(map(str, ("stages", stage, *path)))
            where = recipe.tree.where(("stages", stage, *path))
            if ref.name not in names:
                problems.append(f"{where}: {key}: nothing is called {ref!r}; there are: {', '.join(names)}")
                continue
            found = _kind_of(recipe, ref)
            if found not in ref.kinds:
                wanted = " or ".join(ref.kinds)
                hint = _declared(recipe, ref) or _who_takes(found)
                problems.append(f"{where}: {key}: needs {wanted}, but {ref} gives {found}{hint}")


def _declared(recipe: Recipe, ref: Ref) -> str:
    """What the entry of a model has to say for it to be of the kind that is needed; empty where that is no help."""
    spec = recipe.models.get(ref.name)
    if spec is None or not {"model", "scorer"} & {*ref.kinds}:
        return ""
    kind = "reward" if "scorer" in ref.kinds else "causal"
    return f"; where it is one, say so: models.{ref.name}.kind: {kind} (it says {spec.kind})"


def _who_takes(kind: str) -> str:
    found = takers(kind)
    return f"; stages that take {kind}: {', '.join(found)}" if found else ""


def _kind_of(recipe: Recipe, ref: Ref) -> str:
    if ref.name in recipe.models:
        return "scorer" if recipe.models[ref.name].kind == "reward" else "model"
    if ref.name in recipe.data:
        return next((k for k in ref.kinds if k in ("prompts", "pairs", "chats", "documents")), "records")
    return _yields(recipe.stages[ref.name])


def _order(recipe: Recipe) -> list[str]:
    stages = recipe.stages
    edges = {name: [r.name for _, r in references(s) if r.name in stages] for name, s in stages.items()}
    try:
        order = list(TopologicalSorter(edges).static_order())
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        where = recipe.tree.where(("stages", error.args[1][0]))
        raise RecipeError(f"{where}: stages: these stages wait for each other: {circle}") from None
    return order


def _add_import(graph: Graph, ref: Ref) -> str:
    """The node that reads data as `ref` wants it; read as two kinds, the second is NAME@KIND, which no stage can be."""
    kind = _kind_of(graph.recipe, ref)
    first = graph.nodes.get(ref.name)
    name = ref.name if first is None or _yields(first.settings) == kind else f"{ref.name}@{kind}"
    if name not in graph.nodes:
        spec: DataSpec = graph.recipe.data[ref.name]
        settings = Import(kind=kind, **{k: v for k, v in spec if v is not None})
        _add(graph, name, settings, {})
    return name


def _add(graph: Graph, name: str, settings: StageSettings, inputs: dict[str, "str | ModelSource"]) -> None:
    seed = graph.recipe.seed if settings.seed is None else settings.seed
    named = {}
    for ref, target in inputs.items():
        if isinstance(target, ModelSource):
            named[ref] = [fingerprint(target), target.template]
        else:
            named[ref] = graph.nodes[target].fingerprint
    what = _canonical(settings, named)
    stage = STAGES[settings.type]
    mark = digest({"type": stage.name, "version": stage.version, "seed": seed, "settings": what})
    graph.nodes[name] = Node(name, settings, seed, inputs, mark)


def _canonical(value: Any, named: dict[str, Any]) -> Any:
    """A settings tree as the fingerprint sees it: no place fields, references and files replaced by their content."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {n: _canonical(getattr(value, n), named) for n in fields if n != "seed" and not is_place(value, n)}
    if isinstance(value, dict):
        return {key: _canonical(item, named) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item, named) for item in value]
    if isinstance(value, Ref):
        return named[value]
    if isinstance(value, CodePath) and Path(value).is_file():
        return code_hash(Path(value))
    if isinstance(value, RecipePath):
        return _hash_path(Path(value))
    if isinstance(value, PackageName):
        return fingerprint(ModelSource(kind="package", name=value))
    return value


def _hash_path(path: Path) -> str:
    if path.is_file():
        return file_hash(path)
    if path.is_dir():
        return digest([[str(f.relative_to(path)), file_hash(f)] for f in sorted(path.rglob("*")) if f.is_file()])
    raise InputError(f"{path}: there is no such file or folder; paths start at the file that names them")
