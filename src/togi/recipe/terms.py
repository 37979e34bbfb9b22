"""Licences, terms and uses across a recipe, derived from its graph before anything runs.

The actual sources of a run's records are stored with the records (`stages/sources.py`); this module computes the
possible ones.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from togi.core.errors import RecipeError
from togi.core.settings import Ref, ingredients, references
from togi.core.sources import ModelSource
from togi.recipe.graph import Graph, Node, kinds_of
from togi.recipe.schema import ModelSpec, Recipe
from togi.stages.data.importing import DataSettings
from togi.stages.table import STAGES

Reached = dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Said:
    """The licence and the terms of a model or a data set of a recipe; with `binds` they apply to everything made from
    it."""

    entry: str
    licence: str
    terms: str | None
    binds: bool

    @property
    def words(self) -> str:
        return ", ".join(part for part in (self.licence, self.terms) if part)


def reached(graph: Graph) -> dict[str, Reached]:
    """For each node: the models and data sets that become part of its output, by key, each with the names on the path
    from the entry to the node."""
    data = _data_sets(graph.recipe)
    found: dict[str, Reached] = {}
    for node in graph.nodes.values():
        entry = node.name.partition("@")[0]  # data read as a second kind is NAME@KIND
        here: Reached = {key: (entry,) for key in (f"data.{entry}", f"stages.{entry}") if key in data}
        for ref in ingredients(node.settings):
            target = node.inputs[ref]
            if isinstance(target, ModelSource):
                here.setdefault(f"models.{ref.name}", (ref.name, node.name))
            else:
                for origin, path in found[target].items():
                    here.setdefault(origin, (*path, node.name))
        found[node.name] = here
    return found


def _data_sets(recipe: Recipe) -> dict[str, DataSettings]:
    """The data sets of a recipe, by key: the entries of `data:`, and the `import` stages that it has itself."""
    found: dict[str, DataSettings] = {f"data.{name}": spec for name, spec in recipe.data.items()}
    stages = {f"stages.{name}": settings for name, settings in recipe.stages.items()}
    return found | {key: settings for key, settings in stages.items() if isinstance(settings, DataSettings)}


def said(recipe: Recipe) -> dict[str, Said]:
    """The licences and terms of a recipe's models and data sets, by key, without those that have neither."""
    entries: dict[str, ModelSpec | DataSettings] = {f"models.{name}": spec for name, spec in recipe.models.items()}
    found = {key: Said(key, *spec.says) for key, spec in {**entries, **_data_sets(recipe)}.items()}
    return {key: what for key, what in found.items() if what.licence or what.terms}


def terms_by_stage(graph: Graph) -> dict[str, list[dict[str, Any]]]:
    """The licences and terms that apply to each stage, for recipe.lock.yaml."""
    known, found = said(graph.recipe), {}
    for name, origins in reached(graph).items():
        rows = []
        for key, path in origins.items():
            if (what := known.get(key)) is not None:
                near = what.binds or len(path) == 1 or (key.startswith("models.") and len(path) == 2)
                rows.append(
                    {"from": key, "licence": what.licence, "terms": what.terms if near else None, "binds": what.binds}
                )
        if rows:
            found[name] = rows
    return found


def notes(graph: Graph) -> list[str]:
    """Notes for the user on the terms and the uses of a recipe's data, as sentences."""
    return [*_binding(graph), *_measured_on_training(graph)]


def _binding(graph: Graph) -> Iterator[str]:
    reach = reached(graph)
    for key, what in said(graph.recipe).items():
        made = [name for name, origins in reach.items() if len(origins.get(key, ())) > 1]
        if what.binds and made:
            yield f"{key}: its terms ({what.words}) bind what is made from it: {', '.join(made)}"


# --- uses -------------------------------------------------------------------------------------------------------------


def refuse_misuse(graph: Graph) -> None:
    """Raises RecipeError if a stage would train on data that is for evaluation only, or on data made from it; the
    message shows the path."""
    reach, problems = reached(graph), []
    for node in graph.nodes.values():
        for ref, key in _trained_on(node):
            for origin, path in reach[str(node.inputs[ref])].items():
                if _use(graph.recipe, origin) == "evaluation":
                    where = graph.recipe.tree.where(("stages", node.name, *key))
                    dotted = ".".join(map(str, ("stages", node.name, *key)))
                    problems.append(
                        f"{where}: {dotted}: {origin} is for evaluation only (use: evaluation), but would be trained "
                        f"on: {' -> '.join((*path, node.name))}. Train on other data, or set use: any in {origin}"
                    )
    if problems:
        raise RecipeError("\n".join(problems))


def _use(recipe: Recipe, origin: str) -> str:
    found = _data_sets(recipe).get(origin)
    return "any" if found is None else found.use


def _trained_on(node: Node) -> list[tuple[Ref, tuple[str | int, ...]]]:
    """The records that a node trains on, with their keys; empty for a node that does not train."""
    if STAGES[node.settings.type].job is None:
        return []
    used = ingredients(node.settings)
    found = [(ref, path) for path, ref in references(node.settings) if ref in used]
    return [(ref, path) for ref, path in found if isinstance(node.inputs[ref], str) and not _is_model(ref)]


def _is_model(ref: Ref) -> bool:
    return bool({"model", "scorer", "embedder"} & {*ref.kinds})


def _measured_on_training(graph: Graph) -> Iterator[str]:
    """A sentence on each evaluation whose records one of its models was trained on, as far as the graph shows, or that
    are meant for training."""
    reach = reached(graph)
    for node in graph.nodes.values():
        if {*kinds_of(node.settings).values()} != {"tables"}:
            continue
        trained = _training_records(graph, node)
        for path, ref in references(node.settings):
            target = node.inputs[ref]
            if _is_model(ref) or isinstance(target, ModelSource):
                continue
            key = ".".join(map(str, ("stages", node.name, *path)))
            if (trainer := trained.get((target, ref.output))) is not None:
                yield (
                    f"{key}: {trainer} is trained on {ref}, so its figures do not hold for data that the model has "
                    "not seen; keep records apart for it with `split` or `select`"
                )
            for origin, way in reach[target].items():
                if _use(graph.recipe, origin) == "training":
                    yield (
                        f"{key}: {origin} is for training (use: training), but is evaluated on: "
                        f"{' -> '.join((*way, node.name))}"
                    )


def _training_records(graph: Graph, node: Node) -> Mapping[tuple[str, str], str]:
    """Node and output of all records that the models of a stage were trained on, each with the stage that did so."""
    found: dict[tuple[str, str], str] = {}
    waiting = [node.inputs[ref] for _, ref in references(node.settings) if _is_model(ref)]
    seen: list[str] = []
    while waiting:
        name = waiting.pop()
        if isinstance(name, ModelSource) or name in seen:
            continue
        seen.append(name)
        trainer = graph.nodes[name]
        for ref, _ in _trained_on(trainer):
            found.setdefault((str(trainer.inputs[ref]), ref.output), name)
        waiting += [trainer.inputs[ref] for _, ref in references(trainer.settings) if _is_model(ref)]
    return found
