"""Models for stages: cached for the life of the worker if they are only read, loaded anew if they are trained."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from togi.core.protocols import Scorer
from togi.core.seeds import derive
from togi.core.settings import ModelRef, Ref, ScorerRef
from togi.core.sources import ModelSource
from togi.model.adapter import LoraSettings, lora_library, token_ids
from togi.model.card import About, origin_of
from togi.model.encoder_scorer import load_scorer_of
from togi.model.inspect import Facts
from togi.model.load import LoadedModel, inspect, load_inspected, load_unread
from togi.model.numerics import Numerics
from togi.model.save import check_saved, check_saved_adapter, save_adapter, save_model
from togi.stages.arithmetic import arithmetic, device, model_device
from togi.stages.context import Context, hold_numerics
from togi.stages.device_room import make_room
from togi.stages.spoken import Spoken
from togi.stages.training.lora import Lora
from togi.stages.training.resources import Resources, refuse_training
from togi.text.render import check_template
from togi.train import usage

Value = TypeVar("Value")
KEPT = 4
"""The most models that a worker caches; the least recently used is released first, and all if there is no room."""


@lru_cache(maxsize=KEPT)
def kept_model(source: ModelSource, cache: Path, dtype: torch.dtype) -> LoadedModel:
    facts = inspect(source, cache)
    make_room(source, facts.weights, dtype, forget_models)
    return load_inspected(source, facts, dtype=dtype, device=model_device(source))


@lru_cache(maxsize=KEPT)
def _kept_scorer(source: ModelSource, cache: Path, dtype: torch.dtype) -> Scorer:
    facts = inspect(source, cache)
    make_room(source, facts.weights, dtype, forget_models)
    return load_scorer_of(source, cache, dtype=dtype, device=model_device(source), facts=facts)


def forget_models() -> None:
    """Releases all cached models, to give their memory to training."""
    kept_model.cache_clear()
    _kept_scorer.cache_clear()


def free_for_saving(net: Any) -> None:
    """Releases what is no longer needed after training: gradients and cached models."""
    forget_models()
    for weight in net.parameters():
        weight.grad = None
    usage.give_back(device())


def load_model(context: Context, ref: ModelRef) -> LoadedModel:
    """A model for inference, whose template is checked against its tokenizer. Do not change its weights."""
    source, dtype = context.model(ref), arithmetic(context).dtype
    _note_device(context, ref, source)
    model = _converted_once(context, source, lambda: kept_model(source, context.cache, dtype))
    check_template(model.template, model.tokenizer)
    return model


def load_trainable(
    context: Context, ref: ModelRef, resources: Resources | None = None, *, in_parts: bool = False
) -> LoadedModel:
    """A separate copy of a model, for training: its weights are float32, whatever type matrix products use, unless
    `resources` set another type. With an adapter in `resources` it gets a new adapter, and only that is trained.

    With `in_parts` several ranks read the weights only when they are sharded (`LoadedModel.read`), if that is possible.
    Raises InputError if the adapter does not fit the model.
    """
    lora = None if resources is None else resources.lora
    if in_parts and lora is None and context.ranks.several:
        found = _unread(context, context.model(ref), resources)
        if found is not None:
            return found
    model = load_bare(context, ref, resources)
    return model if lora is None else adapted(model, lora, seed=derive(context.seed, "lora"))


def _unread(context: Context, source: ModelSource, resources: Resources | None) -> LoadedModel | None:
    """The model without its weights; None if they can only be read whole."""
    arithmetic(context)
    facts = _converted_once(context, source, lambda: inspect(source, context.cache))
    if resources is not None:
        refuse_initial(resources, facts, source)
    narrow = resources is not None and resources.weights != "float32"
    model = load_unread(source, facts, dtype=torch.bfloat16 if narrow else torch.float32, device=device())
    if model is not None:
        check_template(model.template, model.tokenizer)
    return model and replace(model, origin=origin_of(source, facts))


def load_bare(context: Context, ref: ModelRef, resources: Resources | None = None) -> LoadedModel:
    """`load_trainable` without adding the adapter."""
    source, machine = context.model(ref), arithmetic(context)  # ranks agree on it, so not one after the other
    model = _converted_once(context, source, lambda: _to_train(context, source, resources, machine))
    check_template(model.template, model.tokenizer)
    return model


def _to_train(context: Context, source: ModelSource, resources: Resources | None, machine: Numerics) -> LoadedModel:
    """The model with its origin. Rejects a model that cannot be trained or saved before loading it."""
    facts, lora = inspect(source, context.cache), resources and resources.lora
    if resources is not None:
        refuse_initial(resources, facts, source)
    nf4 = lora is not None and lora.base == "nf4"
    narrow = resources is not None and resources.weights != "float32"
    narrow = narrow or ((nf4 or facts.quantised is not None) and machine.dtype == torch.bfloat16)
    dtype = torch.bfloat16 if narrow else torch.float32
    model = load_inspected(source, facts, dtype=dtype, device=device(), nf4=nf4)
    return replace(model, origin=origin_of(source, facts))


def refuse_initial(resources: Resources, facts: Facts, source: ModelSource) -> None:
    """`refuse_training` for a model from outside or from a stage."""
    adapter, added = bool(facts.adapters), bool(source.tokens)
    refuse_training(resources, facts.config, source.name, adapter=adapter, added=added)


def _converted_once(context: Context, source: ModelSource, loaded: Callable[[], Value]) -> Value:
    """Returns `loaded()`; rank 0 goes first if loading may write converted weights to the cache."""
    return context.ranks.in_turn(loaded) if source.kind == "package" else loaded()


def keep_model(
    context: Context, model: LoadedModel, folder: Path, resources: Resources, spoken: Spoken | None = None
) -> None:
    """Saves a trained model as set in `resources`, from rank 0. With `lora.save: both` the adapter goes into the folder
    `adapter` next to it.

    The model is checked after saving: a problem raises an alarm, and the model stays. Raises OSError if the disk is
    full.
    """
    about = About(
        stage=resources.type,
        origin=model.origin,
        sources=context.lineage(),
        spoken=(spoken or Spoken()).to_json(),
    )
    context.summary["sources"] = [asdict(source) for source in about.sources]

    def save(whole: Callable[[Tensor], Tensor]) -> None:
        _keep(context, replace(model, whole=whole), folder, resources, about)

    sharding = importlib.import_module("togi.train.sharding")  # heavy, and training has loaded it
    sharding.on_first_rank_whole(model.net, context.ranks, save)


def _keep(context: Context, model: LoadedModel, folder: Path, resources: Resources, about: About) -> None:
    """Saves a model whose weights are whole, and checks it."""
    save = "merged" if resources.lora is None else resources.lora.save
    if save != "merged":
        _keep_adapter(context, model, folder if save == "adapter" else folder.parent / "adapter", resources, about)
    if save != "adapter":
        save_model(model, folder, about, dtype=_saved_dtype(resources, model))
        _tell(context, folder, check_saved(model, folder))


def _keep_adapter(context: Context, model: LoadedModel, folder: Path, resources: Resources, about: About) -> None:
    """Saves an adapter, in the type in which it was trained unless the settings name another."""
    dtype = None if resources.save_dtype == "base" else _saved_dtype(resources, model)
    save_adapter(model, folder, about, dtype=dtype)
    _tell(context, folder, check_saved_adapter(model, folder))


def _saved_dtype(resources: Resources, model: LoadedModel) -> torch.dtype | None:
    if resources.save_dtype != "base":
        return getattr(torch, resources.save_dtype)
    return None if model.origin is None else model.origin.stored


def _tell(context: Context, folder: Path, problems: Sequence[str]) -> None:
    for problem in problems:
        context.alarm("saved_model", f"{folder}: {problem}. The model is kept there: check it before you use it")


def adapted(model: LoadedModel, lora: Lora, *, seed: int, full: tuple[str, ...] = ()) -> LoadedModel:
    """`model` with a new adapter that has no effect yet; `full` are modules that are trained in full."""
    settings = LoraSettings(
        rank=lora.rank,
        alpha=lora.alpha,
        targets=lora.targets,
        rslora=lora.rank_stabilised,
        full=full,
        token_rows=token_ids(model.tokenizer, lora.token_rows),
        new_rows=token_ids(model.tokenizer, model.new_tokens),
    )
    return replace(model, net=lora_library().add_lora(model.net, settings, seed=seed))


def load_scorer(context: Context, ref: ScorerRef) -> Scorer:
    """A reward model, trained by a stage or from outside."""
    source, dtype = context.model(ref), arithmetic(context).dtype
    _note_device(context, ref, source)
    return _kept_scorer(source, context.cache, dtype)


def _note_device(context: Context, ref: Ref, source: ModelSource) -> None:
    """Records the device of a model, because a stage's bits depend on it and its fingerprint does not."""
    if source.device:
        where = {f"device of {ref}": source.device}
        context.ranks.on_first_rank(lambda: hold_numerics(context.folder, where))
