"""What the sampler asks of a model of transformers: a twin that shares its weights, its context, what it supports."""

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
"""Families whose sampling the tests compare with the plain computation; any other is probed when it is first used."""


KEPT = {"full_attention", "sliding_attention"}
"""Kinds of layers whose keys the sampler keeps."""


def models_of(net: nn.Module) -> list[PreTrainedModel]:
    """The transformers models inside `net`, outermost first (an adapter's wrapper is none itself)."""
    return [module for module in net.modules() if isinstance(module, PreTrainedModel)]


def shadow(net: nn.Module, attention: str | None = NAME) -> nn.Module:
    """A twin of `net` in evaluation mode with another attention (None: its own); its parameters are those of `net`, not
    copies.

    So sampling changes nothing in the model that is trained, and sees every step of its training. Raises InputError for
    what is no model of transformers.
    """
    models = models_of(net)
    if not models:
        raise InputError(f"{type(net).__name__} is not a model of transformers; the embedded sampler needs one")
    twin = copy.deepcopy(net, _shared(net, net.parameters())).eval()
    for model in models_of(twin) if attention is not None else ():
        model.config._attn_implementation = attention
    return twin


def beside_training(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of `net` in `dtype` that training does not change. Frozen weights that are of this type already, or kept
    in 4 bits, are not copied but shared: of a network with an adapter the adapter alone is copied.

    Give it the trained weights by `Sampler.publish`.
    """
    frozen = [weight for weight in net.parameters() if not weight.requires_grad]
    shared = _shared(net, [weight for weight in frozen if weight.dtype == dtype or not weight.is_floating_point()])
    known = dict(shared)  # copying adds to the other
    twin = copy.deepcopy(net, shared)
    for tensor in [*twin.parameters(), *twin.buffers()]:
        if id(tensor) not in known and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return twin


def _shared(net: nn.Module, weights: Iterable[Tensor]) -> dict[int, Any]:
    """What a deep copy takes over instead of copying it: `weights`, and the scales of those in 4 bits."""
    states = [getattr(module, "quant_state", None) for module in net.modules()]
    return {id(kept): kept for kept in [*weights, *states] if kept is not None}


def is_tested(net: nn.Module) -> bool:
    """Whether the tests hold this architecture to the plain computation."""
    return _text_config(models_of(net)[0]).model_type in TESTED


def context_limit(net: nn.Module) -> int | None:
    """The longest sequence, in tokens; None if the model does not say."""
    return context_of(_text_config(models_of(net)[0]).to_dict())


def mean_error(net: nn.Module, answered: Sequence[tuple[Sequence[int], Completion]]) -> float:
    """How far the completions' log-probabilities (temperature 1) are from the model's own, in nats, on average."""
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
    """Why keys of this model cannot be kept from token to token; empty if nothing speaks against it."""
    model = models_of(net)[0]
    kinds = sorted(set(getattr(_text_config(model), "layer_types", None) or ()) - KEPT)
    if kinds:
        return f"its layers of type {', '.join(kinds)} are the library's alone"
    return "" if model._supports_attention_backend else "its attention cannot be replaced"


def _text_config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config()
