"""The sampler's view of a transformers model: a twin that shares its weights, its context, and what it supports."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from togi.core.errors import InputError
from togi.core.records import Completion
from togi.model.families import FAMILIES
from togi.model.inspect import context_of
from togi.rollout.attention import NAME

TESTED = frozenset(name for name, family in FAMILIES.items() if family.sampled)
"""Families whose sampling is tested against the plain computation; others are probed at construction."""
KEPT = {"full_attention", "sliding_attention"}
"""Types of layers whose keys the sampler can cache."""


def models_of(net: nn.Module) -> list[PreTrainedModel]:
    """The transformers models inside `net`, outermost first (an adapter's wrapper does not count as one)."""
    return [module for module in net.modules() if isinstance(module, PreTrainedModel)]


def shadow(net: nn.Module, attention: str | None = NAME) -> nn.Module:
    """A twin of `net` in evaluation mode with another attention (None: its own). It shares the parameters of `net`.

    So sampling does not change the model in training, and sees every training step. Raises InputError if `net` is not a
    model of transformers.
    """
    models = models_of(net)
    if not models:
        raise InputError(f"{type(net).__name__} is not a model of transformers; the embedded sampler needs one")
    twin = copy.deepcopy(net, _shared(net, net.parameters())).eval()
    for model in models_of(twin) if attention is not None else ():
        model.config._attn_implementation = attention
    return twin


def beside_training(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of `net` in `dtype` that training does not change. Frozen weights that already have this type, or are
    stored in 4 bits, are shared instead of copied: with an adapter, only the adapter is copied.

    Update it with `Sampler.publish`.
    """
    frozen = [weight for weight in net.parameters() if not weight.requires_grad]
    shared = _shared(net, [weight for weight in frozen if weight.dtype == dtype or not weight.is_floating_point()])
    known = dict(shared)  # deepcopy adds entries to `shared`
    twin = copy.deepcopy(net, shared)
    for tensor in [*twin.parameters(), *twin.buffers()]:
        if id(tensor) not in known and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return twin


def _shared(net: nn.Module, weights: Iterable[Tensor]) -> dict[int, Any]:
    """The memo with which a deep copy shares `weights`, and the scales of 4-bit weights."""
    states = [getattr(module, "quant_state", None) for module in net.modules()]
    return {id(kept): kept for kept in [*weights, *states] if kept is not None}


def is_tested(net: nn.Module) -> bool:
    """Whether this architecture is tested against the plain computation."""
    return _text_config(models_of(net)[0]).model_type in TESTED


def context_limit(net: nn.Module) -> int | None:
    """The longest sequence, in tokens; None if the config does not specify it."""
    return context_of(_text_config(models_of(net)[0]).to_dict())


def mean_error(net: nn.Module, answered: Sequence[tuple[Sequence[int], Completion]]) -> float:
    """The mean absolute difference, in nats, between the completions' log-probabilities (temperature 1) and the
    model's own."""
    plain: Any = shadow(net, "eager" if models_of(net)[0]._can_set_attn_implementation() else None)
    device = next(net.parameters()).device
    errors = []
    with torch.inference_mode():
        for prompt_ids, completion in answered:
            ids = torch.tensor([[*prompt_ids, *completion.token_ids]], device=device)
            logp = plain(input_ids=ids, use_cache=False).logits[0, len(prompt_ids) - 1 : -1].float().log_softmax(-1)
            own = logp.gather(1, ids[0, len(prompt_ids) :, None])[:, 0].tolist()
            errors += [abs(a - b) for a, b in zip(own, completion.logprobs, strict=True)]
    return sum(errors) / len(errors)


def unsupported(net: nn.Module) -> str:
    """The reason why the keys of this model cannot be cached; empty if they can."""
    model = models_of(net)[0]
    kinds = sorted(set(getattr(_text_config(model), "layer_types", None) or ()) - KEPT)
    if kinds:
        return f"only the library can compute its layers of type {', '.join(kinds)}"
    return "" if model._supports_attention_backend else "its attention cannot be replaced"


def _text_config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config()
