"""A recipe on a few rows, for a trial: `togi run --limit N`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from togi.recipe.document import KeyPath
from togi.recipe.schema import Recipe
from togi.stages.base import StageSettings


def limited(recipe: Recipe, rows: int) -> Recipe:
    """The recipe with at most `rows` rows of each data set, and counts to match. A count that the command line sets
    stays. The name and the fingerprints of the stages differ, so the results are never taken for those of the whole
    recipe."""
    given = recipe.tree.overridden
    data = {
        name: spec.model_copy(update={"limit": rows if spec.limit is None else min(spec.limit, rows)})
        for name, spec in recipe.data.items()
        if ("limit",) not in given(("data", name))
    }
    stages = {name: _trial(settings, rows, given(("stages", name))) for name, settings in recipe.stages.items()}
    return replace(recipe, name=f"{recipe.name}-limit{rows}", data={**recipe.data, **data}, stages=stages)


def _trial(settings: StageSettings, rows: int, given: Sequence[KeyPath]) -> StageSettings:
    """The settings for `rows` rows, in which the keys `given` keep their values."""
    if any(path[0] in settings.lengths for path in given):
        return settings
    lower = settings.limited(rows)
    fields = type(settings).model_fields
    changed = {str(name): getattr(lower, name) for name in fields if getattr(lower, name) != getattr(settings, name)}
    for name, *rest in given:
        if name in changed:
            changed[str(name)] = _kept(changed[str(name)], getattr(settings, str(name)), rest)
    return lower.model_copy(update=changed)


def _kept(lower: Any, whole: Any, path: Sequence[str | int]) -> Any:
    """`lower` with the value that `whole` has at `path`, a path through maps."""
    if not path or not isinstance(lower, dict):
        return whole
    return {**lower, path[0]: _kept(lower[path[0]], whole[path[0]], path[1:])}
