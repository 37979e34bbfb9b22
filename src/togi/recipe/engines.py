"""Engines: models on servers that sample for a training stage, which replaces their weights. Checks references to
them."""

from collections.abc import Sequence
from functools import reduce

from togi.core.settings import EngineRef, Ref, references
from togi.recipe.endpoint_spec import replayed
from togi.recipe.schema import ModelSpec, Recipe
from togi.stages.training.engine import EngineSettings

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


def engine_settings(recipe: Recipe, model: str) -> list[EngineSettings]:
    """How stages use a model as their engine."""
    found = []
    for settings in recipe.stages.values():
        for path, ref in references(settings):
            if isinstance(ref, EngineRef) and ref.name == model:
                holder = reduce(getattr, map(str, path[:-1]), settings)
                assert isinstance(holder, EngineSettings)
                found.append(holder)
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
        return _unable(spec, ref, engine_settings(recipe, ref.name))
    if path == INIT:
        return _not_here(recipe, ref)
    changer = engines(recipe).get(ref.name)
    if changer is None:
        return ""
    return (
        f"{ref} samples for stage {changer}, which replaces its weights, so its answers in other stages would be "
        "undefined; declare the same model again under another name"
    )


def _unable(spec: ModelSpec, ref: Ref, changers: Sequence[EngineSettings]) -> str:
    """Why a server cannot be used as stages use it, as far as the recipe tells; empty if it can."""
    sent, sleeps = any(each.publish == "transfer" for each in changers), any(each.sleep for each in changers)
    if (sent or sleeps) and isinstance(spec.url, tuple) and len(spec.url) > 1:
        which = "publish: transfer" if sent else "sleep"
        return f"{ref} has {len(spec.url)} urls, but engine.{which} works with one server; name one url"
    serves = spec.protocol if spec.serve is None else spec.serve.engine
    if sleeps and serves not in ("auto", "vllm", "sglang"):
        return (
            f"engine.sleep works with vLLM and SGLang, but {ref} is served by {serves}; remove engine.sleep, or the "
            "engine: the embedded one shares the policy's weights"
        )
    return ""


def _not_here(recipe: Recipe, ref: Ref) -> str:
    """Why a model on a server cannot be trained; empty for other models."""
    spec = recipe.models.get(ref.name)
    if spec is not None and replayed(spec):
        return f"{ref} replays stored answers and has no weights; training needs a package, a hub id or a path"
    if spec is None or spec.url is None:
        return ""
    return f"{ref} is on a server (models.{ref.name}.url); training needs its weights: a package, a hub id or a path"
