"""A recipe on a few rows, for a trial: `togi run --limit N`."""

from dataclasses import replace

from togi.recipe.schema import Recipe


def limited(recipe: Recipe, rows: int) -> Recipe:
    """The recipe with at most `rows` rows of each data set, and counts to match. Its name and the fingerprints of its
    stages differ, so its results are never taken for those of the whole recipe."""
    data = {
        name: spec.model_copy(update={"limit": rows if spec.limit is None else min(spec.limit, rows)})
        for name, spec in recipe.data.items()
    }
    stages = {name: settings.limited(rows) for name, settings in recipe.stages.items()}
    return replace(recipe, name=f"{recipe.name}-limit{rows}", data=data, stages=stages)
