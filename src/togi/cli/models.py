"""Resolves the model arguments of commands: a stage of a recipe or a run, a declared model, a folder, a hub id."""

import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from togi.cli.common import load_graph, run_command, stage_folder
from togi.client.endpoint import Endpoint
from togi.core.errors import RecipeError
from togi.core.outside import read_object
from togi.core.records import KINDS
from togi.core.sampling import Recommended
from togi.core.settings import MAIN
from togi.core.sources import (
    ADAPTER_CONFIG,
    HUB_ID,
    PACKAGE,
    WEIGHT_FILES,
    ModelSource,
    is_model_folder,
    missing_path,
    no_model_folder,
)
from togi.recipe.endpoint_spec import replayed
from togi.recipe.graph import Graph, kinds_of, made_by, model_source
from togi.recipe.runs import find_run, settings_of, stage_of
from togi.recipe.schema import MODEL_KINDS, ModelSpec
from togi.recipe.state import STATE, read_state
from togi.recipe.store import hold_whole, is_done, is_older, run_folder
from togi.stages.base import MODEL_FOLDER, output_path

log = logging.getLogger(__name__)

ADAPTER_FOLDER = "output/adapter"
SETTINGS = "settings.json"
OUTPUTS = {"model": "a language model", "scorer": "a reward model"}
"""What a stage outputs, in words."""


def of_run(target: Path | None, words: tuple[str, ...], given: str) -> ModelSource:
    """The model of a stage of an earlier run; the stage may be left out if only one made a model."""
    run = find_run(given)
    models = [stage["name"] for stage in run.state["stages"] if _gives_model(stage)]
    names = [*([str(target)] if target is not None else []), *words] or models
    if target is not None and os.path.isfile(target):
        raise RecipeError(f"command line: --run {given} stands for the recipe; leave out {target}")
    if len(names) != 1 or names[0] not in models:
        raise RecipeError(f"run {run.id}: say which model: {', '.join(models) or 'it made none'}")
    folder = Path(stage_of(run, names[0])["folder"])
    if not is_done(folder):
        raise RecipeError(f"run {run.id}: stage {names[0]} is not finished, or its result has been removed")
    hold_whole(folder, f"togi run RECIPE --redo {names[0]}", only=MODEL_FOLDER)
    return _in_folder(folder / MODEL_FOLDER)


def of_target(target: Path | None, words: tuple[str, ...]) -> ModelSource:
    """The model of a folder, or of a recipe by the name of a stage or of a declared model; or what `named_model` takes.
    Raises RecipeError."""
    if target is None:
        raise RecipeError("command line: give a recipe, a model folder, or --run ID")
    recipe, _, name = str(target).rpartition(":")
    if recipe and os.path.isfile(recipe):
        return of_target(Path(recipe), (name, *words))
    weights = target.suffix.lower() in WEIGHT_FILES
    if not words and target.suffix not in (".yaml", ".yml") and (weights or not os.path.exists(target)):
        return named_model(str(target), "causal")[0]
    overrides = tuple(word for word in words if "=" in word)
    names = [word for word in words if "=" not in word]
    if os.path.isdir(target):  # Path.is_dir raises for names that the system refuses
        if words:
            raise RecipeError(f"command line: {target} is a model folder, so {words[0]!r} does not apply; leave it out")
        return _folder(str(target), ("causal",))
    if len(names) > 1:
        raise RecipeError(f"command line: one model at a time, found {' and '.join(names)}")
    graph = load_graph(target, overrides)
    return of_recipe(graph, target, names[0] if names else _only_model(graph, target), overrides)


def of_recipe(
    graph: Graph, target: Path, model: str, overrides: tuple[str, ...], kind: str = "causal", *also: str
) -> ModelSource:
    """The model of a recipe with this name, declared or trained by a stage, of `kind` or one of `also`. Raises
    RecipeError if there is none, or it is of another kind or not finished."""
    if model in graph.recipe.models:
        spec = graph.recipe.models[model]
        if (made := made_by(spec)) is None:
            return _declared(spec, model, target, (kind, *also))
        model = made.name
    if model not in graph.nodes:
        known = [*graph.recipe.models, *_trained(graph, kind, *also)]
        raise RecipeError(f"{target}: there is no model {model!r}; there are: {', '.join(known)}")
    kinds = kinds_of(graph.nodes[model].settings)
    if kinds.get(MAIN) not in [MODEL_KINDS[each] for each in (kind, *also)]:
        outputs = OUTPUTS.get(kinds.get(MAIN, "")) or ", ".join(dict.fromkeys(kinds.values())) or "nothing"
        advice = _scoring(f"{target}:{model}") if kinds.get(MAIN) == MODEL_KINDS["reward"] else ""
        raise RecipeError(f"{target}: stage {model} outputs {outputs}, not {_wanted(kind)}{advice}")
    folder = stage_folder(graph, model, overrides)
    if is_older(folder):
        raise RecipeError(
            f"{target}: an older togi made stage {model}; run it again with `{run_command(target, overrides, model)}`, "
            f"or talk to the stored model with `togi chat {shlex.quote(str((folder / MODEL_FOLDER).resolve()))}`"
        )
    if not is_done(folder):
        again = run_command(target, overrides or _last_overrides(graph), model)
        raise RecipeError(f"{target}: stage {model} is not finished; run it with `{again}`")
    log.info("checking the files of %s against their hashes", model)
    hold_whole(folder, run_command(target, overrides, redo=model), only=MODEL_FOLDER)
    return _in_folder(folder / MODEL_FOLDER)


def named_model(text: str, kind: str, *also: str) -> tuple[ModelSource, str]:
    """The model that one word names, and its name: the word is a folder, RECIPE:STAGE or RECIPE:MODEL, package:NAME, or
    a hub id. Raises RecipeError for anything else."""
    recipe, _, name = text.rpartition(":")
    if os.path.isdir(text):
        return _folder(text, (kind, *also)), Path(os.path.abspath(text)).name
    if text.startswith(PACKAGE) and name:
        return ModelSource(kind="package", name=name), name
    if recipe and os.path.isfile(recipe):
        return of_recipe(load_graph(Path(recipe)), Path(recipe), name, (), kind, *also), name
    if os.path.isfile(text):
        raise RecipeError(f"command line: {text}: {no_model_folder(Path(text))}")
    if missing := missing_path(text):
        raise RecipeError(f"command line: {missing}")
    if HUB_ID.fullmatch(text):
        return ModelSource(kind="hub", name=text), text
    raise RecipeError(
        f"command line: {text!r} is not a model; give a model folder, RECIPE:STAGE, package:NAME, or a hub id "
        "(owner/name)"
    )


def named_endpoint(text: str, revision: str | None = None, key_env: str | None = None) -> Endpoint | None:
    """The model on a server that URL#NAME names; None if `text` is not a URL. Raises RecipeError for a URL without a
    name."""
    if not text.startswith(("http://", "https://")):
        return None
    url, _, name = text.partition("#")
    if not name:
        raise RecipeError(f"command line: {text!r} names no model of the server; write URL#NAME")
    return Endpoint(name=text, urls=(url,), model=name, revision=revision or "", key_env=key_env)


def trained_by(text: str) -> dict[str, Any] | None:
    """The facts about the run that a model card needs, if `text` is RECIPE:STAGE; None for any other model."""
    recipe, _, name = text.rpartition(":")
    if not recipe or not os.path.isfile(recipe):
        return None
    found = load_graph(Path(recipe)).recipe
    if name not in found.stages:
        return None
    card = found.card.model_dump(exclude={"sampling"})
    texts = {key: value for key, value in card.items() if isinstance(value, str)}
    sampling = None if found.card.sampling is None else Recommended.of(found.card.sampling)
    said = {"languages": found.card.language, "licence": found.card.licence, "sampling": sampling}
    return {"run": run_folder(found.name), "stage": name, "recipe": Path(recipe), "texts": texts, **said}


def recommended_for(target: Path | None, words: tuple[str, ...] = ()) -> Recommended | None:
    """The sampling that a recipe recommends for the models that it trains, if `of_target` finds one of them here; None
    for any other model."""
    recipe, _, name = str(target).rpartition(":")
    if recipe and os.path.isfile(recipe):
        return recommended_for(Path(recipe), (name, *words))
    if target is None or not os.path.isfile(target):
        return None
    found = load_graph(target, tuple(word for word in words if "=" in word)).recipe
    specs = [found.models[word] for word in words if word in found.models]
    if found.card.sampling is None or any(made_by(spec) is None for spec in specs):
        return None
    return Recommended.of(found.card.sampling)


def beside(text: str, source: ModelSource) -> ModelSource:
    """The adapter that the stage RECIPE:STAGE saved next to its merged model; `source` if there is none. Raises
    DamagedFile if its files have changed."""
    recipe, _, name = text.rpartition(":")
    folder = Path(source.name).parent.parent
    if not recipe or not os.path.isfile(recipe) or not (folder / ADAPTER_FOLDER / ADAPTER_CONFIG).is_file():
        return source
    hold_whole(folder, run_command(Path(recipe), (), redo=name), only=ADAPTER_FOLDER)
    return replace(source, name=str(folder / ADAPTER_FOLDER))


def named_records(text: str) -> tuple[Path, str, dict[str, tuple[str, Path]]] | None:
    """For RECIPE:STAGE of a finished stage that outputs records: the folder of the recipe's run, the stage, and its
    files of records with their kinds, by output. None for anything else. Raises RecipeError if the recipe has nothing
    of that name or the stage is not finished, DamagedFile if its files have changed."""
    recipe, _, name = text.rpartition(":")
    if not recipe or not os.path.isfile(recipe):
        return None
    graph = load_graph(Path(recipe))
    if name not in graph.nodes and name not in graph.recipe.models:
        known = ", ".join([*graph.recipe.models, *filter(lambda each: _gives(graph, each), graph.nodes)])
        raise RecipeError(f"{recipe}: there is no model or stage {name!r}; models, and stages with records: {known}")
    kinds = kinds_of(graph.nodes[name].settings) if name in graph.nodes else {}
    wanted = {output: kind for output, kind in kinds.items() if kind in KINDS}
    if not wanted or kinds.get(MAIN) in MODEL_KINDS.values():
        return None
    folder = stage_folder(graph, name, ())
    if is_older(folder) or not is_done(folder):
        raise RecipeError(
            f"{recipe}: stage {name} is not finished; run it with `{run_command(Path(recipe), (), name)}`"
        )
    hold_whole(folder, run_command(Path(recipe), redo=name, overrides=()))
    files = {output: (kind, folder / output_path(kind, output)) for output, kind in wanted.items()}
    return run_folder(graph.recipe.name), name, files


def declared(text: str, revision: str | None = None, key_env: str | None = None) -> tuple[str, dict[str, Any], bool]:
    """The model that one word names, as a `models:` entry without its kind: its name, the entry, and whether it is
    known to be a reward model. Raises RecipeError as `named_model` does."""
    there = named_endpoint(text, revision, key_env)
    if there is not None:
        told = {"revision": revision, "key_env": key_env}
        entry = {"url": there.urls[0], "model": there.model, **{key: value for key, value in told.items() if value}}
        return there.model.rpartition("/")[2], entry, False
    source, name, reward = named_either(text)
    if revision is not None and source.kind != "hub":
        raise RecipeError(
            f"command line: --revision goes with a hub id or a URL, but {text!r} is not one; leave it out"
        )
    entry = entry_of(source) | ({"revision": revision} if revision else {})
    return name.rpartition("/")[2], entry, reward


def named_either(text: str) -> tuple[ModelSource, str, bool]:
    """The language or reward model that a word names, its name, and whether it is known to be a reward model. Raises
    RecipeError as `named_model` does."""
    recipe, _, name = text.rpartition(":")
    if os.path.isdir(text) or not recipe or not os.path.isfile(recipe):
        source, name = named_model(text, "causal", "reward")
        return source, name, _scores(source)
    graph, target = load_graph(Path(recipe)), Path(recipe)
    spec = graph.recipe.models.get(name)
    made = name if spec is None or (made := made_by(spec)) is None else made.name
    trained = made in graph.nodes and kinds_of(graph.nodes[made].settings).get(MAIN) == MODEL_KINDS["reward"]
    reward = trained or (spec is not None and spec.kind == "reward")
    source = of_recipe(graph, target, name, (), "causal", "reward")
    return source, name, reward or _scores(source)


def entry_of(source: ModelSource) -> dict[str, Any]:
    """A model as an entry under `models:`, without its kind."""
    more = {"revision": source.revision} if source.kind == "hub" else {}
    more = {"file": source.file} if source.kind == "package" else more
    template: Any = source.template
    if source.template_file:
        template = {"file": source.template_file, "terminator": source.terminator}
    given = {"template": template, "licence": source.licence, "terms": source.terms, "inherit": source.inherit}
    tokens = {"tokens": {"add": list(source.tokens)}} if source.tokens else {}
    return {source.kind: source.name, **more, **{key: value for key, value in given.items() if value}, **tokens}


def _last_overrides(graph: Graph) -> tuple[str, ...]:
    """The settings that the command of the recipe's last run changed."""
    folder = run_folder(graph.recipe.name)
    return tuple(read_state(folder).get("overrides", ())) if (folder / STATE).exists() else ()


def _scores(source: ModelSource) -> bool:
    """Whether a folder's configuration is that of a reward model."""
    return source.kind == "path" and _is_built_for(Path(source.name), "ForSequenceClassification")


def only_speaks(folder: Path) -> bool:
    """Whether a folder's configuration is that of a language model, which gives no scores."""
    return _is_built_for(folder, "ForCausalLM")


def _is_built_for(folder: Path, use: str) -> bool:
    """Whether the configuration in a folder, if there is one, names an architecture for this use."""
    path = folder / "config.json"
    named = (read_object(path).get("architectures") or []) if path.is_file() else []
    return any(str(each).endswith(use) for each in named)


def _folder(text: str, kinds: Sequence[str]) -> ModelSource:
    """The model in a folder. Raises RecipeError for a reward model that `kinds` do not allow."""
    source = _in_folder(_model_folder(Path(text)))
    if "reward" not in kinds and _scores(source):
        raise RecipeError(f"{text}: it is a reward model, not {_wanted(kinds[0])}{_scoring(text)}")
    return source


def _model_folder(folder: Path) -> Path:
    """The folder of a model: the output of a stage's folder, or any other folder itself. Raises RecipeError for a stage
    that is not finished or outputs no model, DamagedFile if its files have changed."""
    if not (folder / SETTINGS).is_file() or is_model_folder(folder):
        return folder
    if not is_done(folder):
        raise RecipeError(f"{folder}: it is the folder of a stage that is not finished; run it with `togi run`")
    if not (folder / MODEL_FOLDER).is_dir():
        raise RecipeError(f"{folder}: it is the folder of a stage that outputs no model")
    hold_whole(folder, f"togi run RECIPE --redo {folder.name}", only=MODEL_FOLDER)
    return folder / MODEL_FOLDER


def _in_folder(folder: Path) -> ModelSource:
    return ModelSource(kind="path", name=str(folder.resolve()))


def _gives_model(stage: Mapping[str, Any]) -> bool:
    begun = (Path(stage["folder"]) / "settings.json").exists()
    return begun and kinds_of(settings_of(stage)).get(MAIN) == "model"


def _wanted(kind: str) -> str:
    return {"causal": "a model to talk to", "reward": "a reward model"}.get(kind, f"an {kind}")


def _scoring(model: str) -> str:
    """What a reward model is for."""
    name = shlex.quote(model)
    return (
        f": it scores answers. `togi score {name} FILE` scores those in a file, `togi serve --reward {name}` serves it"
    )


def _declared(spec: ModelSpec, name: str, target: Path, kinds: tuple[str, ...]) -> ModelSource:
    if spec.kind not in kinds:
        advice = _scoring(f"{target}:{name}") if spec.kind == "reward" else f" (kind: {kinds[0]})"
        raise RecipeError(f"{target}: models.{name} is of kind {spec.kind}, not {_wanted(kinds[0])}{advice}")
    if spec.url is not None:
        raise RecipeError(f"{target}: models.{name}: it is on a server already; this command runs models locally")
    if replayed(spec):
        raise RecipeError(f"{target}: models.{name}: its answers are stored; this command runs models locally")
    return model_source(spec)


def _trained(graph: Graph, *kinds: str) -> list[str]:
    wanted = [MODEL_KINDS[kind] for kind in kinds]
    return [name for name, node in graph.nodes.items() if kinds_of(node.settings).get(MAIN) in wanted]


def _gives(graph: Graph, stage: str) -> bool:
    """Whether a stage outputs a model or records."""
    return any(kind in KINDS or kind in MODEL_KINDS.values() for kind in kinds_of(graph.nodes[stage].settings).values())


def _only_model(graph: Graph, target: Path) -> str:
    trained = _trained(graph, "causal")
    if len(trained) != 1:
        raise RecipeError(f"{target}: say which model: {', '.join([*graph.recipe.models, *trained])}")
    return trained[0]
