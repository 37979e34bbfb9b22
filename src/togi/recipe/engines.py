"""Engines: models on servers that sample for a training stage, which replaces their weights. Checks references to
them."""

from togi.core.settings import EngineRef, Ref, references
from togi.recipe.endpoint_spec import replayed
from togi.recipe.schema import Recipe

INIT = ("init",)
"""The key of a training stage that names the model it trains, which it loads itself."""


def engines(recipe: Recipe) -> dict[str, str]:
    """The models whose weights stages replace, each with the first stage that does so."""
    found: dict[str, str] = {}
    for stage, settings in recipe.stages.items():
        for _, ref in references(settings):
            if isinstance(ref, EngineRef):
                found.setdefault(ref.name, stage)
    return found


def misplaced(recipe: Recipe, path: tuple[str | int, ...], ref: Ref) -> str:
    """Why the reference at `path` of a stage is not allowed there; empty if it is. A model whose weights a stage
    replaces must be on a server and no other stage may read it; a model that is trained must not be on a server."""
    if isinstance(ref, EngineRef):
        spec = recipe.models.get(ref.name)
        if spec is None or (spec.url is None and spec.serve is None):
            return f"{ref} is not on a server; an engine is a model of `models:` with url or serve"
        if replayed(spec):
            return f"{ref} replays stored answers and has no weights that a policy could replace"
        return ""
    if path == INIT:
        return _not_here(recipe, ref)
    changer = engines(recipe).get(ref.name)
    if changer is None:
        return ""
    return (
        f"{ref} samples for stage {changer}, which replaces its weights, so its answers in other stages would be "
        "undefined; declare the same model again under another name"
    )


def _not_here(recipe: Recipe, ref: Ref) -> str:
    """Why a model on a server cannot be trained; empty for other models."""
    spec = recipe.models.get(ref.name)
    if spec is not None and replayed(spec):
        return f"{ref} replays stored answers and has no weights; training needs a package, a hub id or a path"
    if spec is None or spec.url is None:
        return ""
    return f"{ref} is on a server (models.{ref.name}.url); training needs its weights: a package, a hub id or a path"
