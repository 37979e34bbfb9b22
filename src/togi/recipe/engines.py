"""Models on servers that sample for a training, which replaces their weights: who else may name them."""

from togi.core.settings import EngineRef, Ref, references
from togi.recipe.endpoint_spec import replayed
from togi.recipe.schema import Recipe

INIT = ("init",)
"""The key of a training that names what it trains, which it loads itself."""


def engines(recipe: Recipe) -> dict[str, str]:
    """The models whose weights stages replace, with the first stage that does."""
    found: dict[str, str] = {}
    for stage, settings in recipe.stages.items():
        for _, ref in references(settings):
            if isinstance(ref, EngineRef):
                found.setdefault(ref.name, stage)
    return found


def misplaced(recipe: Recipe, path: tuple[str | int, ...], ref: Ref) -> str:
    """Why the reference at `path` of a stage cannot stand there: a model whose weights a stage replaces is read by
    nobody else and is on a server; what is trained is not. Empty where it can."""
    if isinstance(ref, EngineRef):
        spec = recipe.models.get(ref.name)
        if spec is None or (spec.url is None and spec.serve is None):
            return f"{ref} is not on a server; an engine is a model of `models:` with url or serve"
        if replayed(spec):
            return f"{ref} says stored words again, and has no weights that a policy could replace"
        return ""
    if path == INIT:
        return _not_here(recipe, ref)
    changer = engines(recipe).get(ref.name)
    if changer is None:
        return ""
    return (
        f"{ref} samples for stage {changer}, which replaces its weights, so nobody can say what it would answer; "
        "declare the same model once more under another name"
    )


def _not_here(recipe: Recipe, ref: Ref) -> str:
    """Why a model cannot be trained, if it is on a server."""
    spec = recipe.models.get(ref.name)
    if spec is not None and replayed(spec):
        return f"{ref} says stored words again, and has no weights; a training needs a package, a hub id or a path"
    if spec is None or spec.url is None:
        return ""
    return f"{ref} is on a server (models.{ref.name}.url); a training needs its weights: a package, a hub id or a path"
