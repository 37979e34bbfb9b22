"""Resolves the references of a recipe, and finds those that lead nowhere or to the wrong kind."""

from collections.abc import Mapping
from difflib import get_close_matches

from togi.core.settings import MAIN, MadeModelRef, Ref, references
from togi.recipe.engines import misplaced
from togi.recipe.schema import MODEL_KINDS, ModelSpec, Recipe
from togi.stages.base import UNKNOWN, StageSettings
from togi.stages.table import STAGES, takers

ROWS = ("prompts", "pairs", "chats", "documents", "samples")
"""The kinds of records that rows under `data:` can become."""
DATA = "a data set"
"""The kind of rows under `data:` in a place that takes none."""


def made_by(spec: ModelSpec) -> MadeModelRef | None:
    """The stage that trains the model of an entry; None for a model from outside."""
    return spec.path if isinstance(spec.path, MadeModelRef) else None


def stage_of(recipe: Recipe, ref: Ref) -> str:
    """The stage that a reference leads to, also through `path: $stage` of a model."""
    spec = recipe.models.get(ref.name)
    made = None if spec is None else made_by(spec)
    return ref.name if made is None else made.name


def used(recipe: Recipe) -> dict[str, None]:
    """The names of the models, data and stages to which stages refer, in the order of the references."""
    return dict.fromkeys(ref.name for settings in recipe.stages.values() for _, ref in references(settings))


def kinds_of(settings: StageSettings) -> Mapping[str, str]:
    """The kinds of a stage's outputs, by name."""
    return STAGES[settings.type].outputs(settings)


def check_made(recipe: Recipe, problems: list[str]) -> None:
    """Finds models (`path: $stage`) that no stage trains, or whose stage gives another kind."""
    for name, spec in recipe.models.items():
        made = made_by(spec)
        if made is None:
            continue
        kinds = kinds_of(recipe.stages[made.name]) if made.name in recipe.stages else {}
        found, wanted = kinds.get(MAIN), MODEL_KINDS[spec.kind]
        if made != f"${made.name}" or found != wanted:
            what = f"{made} gives {found or 'none'}" if made.name in recipe.stages else f"there is no stage {made}"
            trained = [f"${stage}" for stage, each in recipe.stages.items() if kinds_of(each).get(MAIN) == wanted]
            where = recipe.tree.where(("models", name, "path"))
            problems.append(
                f"{where}: models.{name}.path: needs a stage that gives {wanted} (kind: {spec.kind}), but {what}; "
                f"there are: {', '.join(trained) or 'none'}"
            )


def check_references(recipe: Recipe, problems: list[str]) -> None:
    """Finds references to nothing, to a missing output, or to another kind than the setting needs."""
    names = [*recipe.models, *recipe.data, *recipe.stages]
    for stage, settings in recipe.stages.items():
        for path, ref in references(settings):
            key = ".".join(map(str, ("stages", stage, *path)))
            where = recipe.tree.where(("stages", stage, *path))
            if ref.name not in names:
                problems.append(f"{where}: {key}: nothing is called {ref!r}{_meant(recipe, stage, path, ref)}")
                continue
            if wrong := _no_output(recipe, ref):
                problems.append(f"{where}: {key}: {wrong}")
                continue
            if wrong := misplaced(recipe, path, ref):
                problems.append(f"{where}: {key}: {wrong}")
                continue
            found = kind_of(recipe, ref, settings)
            if found not in (*ref.kinds, UNKNOWN):
                wanted = " or ".join(ref.kinds)
                told = f"needs {wanted}, but {ref} gives {found}{_declared(recipe, ref) or _who_takes(found)}"
                if found == DATA:
                    told = f"needs {wanted}, but {ref} is a data set{_possible(recipe, stage, path, ref)}"
                problems.append(f"{where}: {key}: {told}")


def _meant(recipe: Recipe, stage: str, path: tuple[str | int, ...], ref: Ref) -> str:
    """A hint for a reference of a stage that leads nowhere: the nearest possible one, and all of them."""
    close = get_close_matches(ref, _references(recipe, stage, path, ref), 1)
    return (f"; did you mean {close[0]}?" if close else "") + _possible(recipe, stage, path, ref)


def _possible(recipe: Recipe, stage: str, path: tuple[str | int, ...], ref: Ref) -> str:
    """All that a reference of a stage could lead to, in words."""
    possible = _references(recipe, stage, path, ref)
    if not possible:
        return f"; the recipe has no {' or '.join(ref.kinds)} that it could refer to"
    return f" (possible: {', '.join(possible)})"


def _references(recipe: Recipe, stage: str, path: tuple[str | int, ...], ref: Ref) -> list[Ref]:
    """The references that a stage could have in the place of `ref`."""
    readers = _readers(recipe, stage)
    fitting = [each for each in _fitting(recipe, ref) if stage_of(recipe, each) not in readers]
    return [each for each in fitting if not misplaced(recipe, path, each)]


def _fitting(recipe: Recipe, ref: Ref) -> list[Ref]:
    """References to everything in the recipe that is of a kind that `ref` may have."""
    found = [(ref_to(name), MODEL_KINDS[spec.kind]) for name, spec in recipe.models.items()]
    found += [(ref_to(name), kind) for name in recipe.data for kind in ROWS]
    for name, settings in recipe.stages.items():
        found += [(ref_to(name, output), kind) for output, kind in kinds_of(settings).items()]
    return list(dict.fromkeys(type(ref)(text) for text, kind in found if kind in (*ref.kinds, UNKNOWN)))


def _readers(recipe: Recipe, stage: str) -> list[str]:
    """The stage and all stages that depend on it, which it cannot refer to."""
    found = [stage]
    for name in found:  # grows
        others = [other for other in recipe.stages if other not in found]
        found += [other for other in others if name in _parents(recipe, other)]
    return found


def _parents(recipe: Recipe, stage: str) -> list[str]:
    return [stage_of(recipe, ref) for _, ref in references(recipe.stages[stage])]


def ref_to(name: str, output: str = MAIN) -> str:
    """The reference to an output, as a recipe writes it."""
    return f"${name}" if output == MAIN else f"${name}.{output}"


def _no_output(recipe: Recipe, ref: Ref) -> str:
    """Why the output that a reference names is invalid; empty if it exists."""
    if ref.name not in recipe.stages:
        section = "models" if ref.name in recipe.models else "data"
        return "" if ref == f"${ref.name}" else f"{section}.{ref.name} has no outputs; write ${ref.name}"
    kinds = kinds_of(recipe.stages[ref.name])
    if ref.output in kinds:
        return ""
    there = [ref_to(ref.name, name) for name in kinds]
    close = get_close_matches(ref, there, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"stage {ref.name} has no output {ref!r}{hint} (allowed: {', '.join(there)})"


def _declared(recipe: Recipe, ref: Ref) -> str:
    """A hint to change the `kind` of a model's entry to the needed kind; empty if that does not apply."""
    spec = recipe.models.get(ref.name)
    if spec is None or not {"model", "scorer"} & {*ref.kinds}:
        return ""
    kind = "reward" if "scorer" in ref.kinds else "causal"
    return f"; if it is one, set models.{ref.name}.kind: {kind} (now {spec.kind})"


def _who_takes(kind: str) -> str:
    found = takers(kind)
    return f"; stages that take {kind}: {', '.join(found)}" if found else ""


def kind_of(recipe: Recipe, ref: Ref, reader: StageSettings | None = None) -> str:
    """The kind of the target of `ref`, when a stage with the settings `reader` reads it; DATA for a data set where no
    rows belong."""
    if ref.name in recipe.models:
        return MODEL_KINDS[recipe.models[ref.name].kind]
    if ref.name in recipe.data:
        if reader is not None and ref in reader.passes:
            return next(iter(kinds_of(reader).values()))
        return next((kind for kind in ref.kinds if kind in ROWS), DATA)
    return kinds_of(recipe.stages[ref.name])[ref.output]
