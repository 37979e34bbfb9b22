"""Computes log-probabilities from hidden states, with only a bounded part of the logits in memory at a time.

Shapes: N scored tokens, C tokens of one chunk, H width, V vocabulary.

A plain linear head has a custom backward pass: it keeps the hidden states and one log-sum-exp per token, and recomputes
the logits of each chunk. It keeps the logits of the first chunks if there is room (`KEPT_BYTES`) and the compiled
functions leave them intact. Any other head (such as one with an adapter) runs the same chunks with checkpointing.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from togi.core.errors import InputError
from togi.kernels import LogitShape, entropy_, softmax_, softmax_backward_
from togi.model.sizes import KEPT_BYTES, chunk_rows

ROWS_PER_PRODUCT = 8192  # of the weight's gradient


class TokenLogp(NamedTuple):
    """`logp_N` in nats, differentiable; `entropy_N` of the whole distribution in nats, without a graph, if requested;
    `aux` a weighted router loss, if requested.

    A plain tuple type, because sharding searches the return value of a forward pass for tensors.
    """

    logp_N: Tensor
    entropy_N: Tensor | None = None
    aux: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """A model's own output head: its module, then logits * scale, then the soft cap."""

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None

    def shape(self, logits: Tensor) -> Tensor:
        """The model's final logits (scaled and capped), in fp32 or wider."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        """Logits (N, V)."""
        return self.shape(self.module(hidden_NH))


def find_head(model: PreTrainedModel) -> Head:
    """The output head of a causal language model, from its modules and its configuration.

    Raises InputError if the model has none. `check_head` verifies it.
    """
    module = model.get_output_embeddings()
    if module is None:
        raise InputError(f"{type(model).__name__} has no output head; a causal language model is needed")
    known: dict[str, Any] = model.config.get_text_config().to_dict()
    scale = float(known.get("logit_scale") or 1.0) / float(known.get("logits_scaling") or 1.0)  # Cohere, Granite
    return Head(module, scale=scale, softcap=known.get("final_logit_softcapping"))


def _chunks(num_tokens: int, row_bytes: int, chunk: int | None) -> Iterator[slice]:
    most = chunk or chunk_rows(row_bytes)
    size = -(-num_tokens // -(-num_tokens // most)) if num_tokens else most  # as equal as possible
    for start in range(0, num_tokens, size):
        yield slice(start, min(num_tokens, start + size))


class _LinearLogp(torch.autograd.Function):
    """log softmax(cap(scale * (h W' + b)) / temperature)[target] and the entropy, chunk by chunk."""

    @staticmethod
    def forward(  # the signature of autograd functions: context, then tensors, then the rest
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, target_N: Tensor, task: "_Task"
    ) -> tuple[Tensor, Tensor | None]:
        wide = torch.promote_types(hidden_NH.dtype, torch.float32)
        logp_N, lse_N = (hidden_NH.new_empty(len(target_N), dtype=wide) for _ in range(2))
        entropy_N = torch.empty_like(lse_N) if task.entropy else None
        narrow = task.autocast_dtype or weight_VH.dtype  # of the products
        hidden, weight = hidden_NH.to(narrow), weight_VH.to(narrow)
        bias = None if bias_V is None else bias_V.to(narrow)
        ctx.kept, room = deque(), KEPT_BYTES if task.graph else 0
        for part in _chunks(len(target_N), len(weight) * narrow.itemsize, task.chunk):
            raw_CV = F.linear(hidden[part], weight, bias)
            found = softmax_(raw_CV, target_N[part], task.shape, task.entropy)
            logp_N[part], lse_N[part] = found.chosen_C, found.lse_C
            if entropy_N is not None and found.entropy_C is not None:
                entropy_N[part] = found.entropy_C
            room -= raw_CV.nbytes if found.whole else 0
            if found.whole and room >= 0:
                ctx.kept.append(raw_CV)
        logp_N -= lse_N
        ctx.save_for_backward(hidden, weight, bias, target_N, lse_N)
        ctx.task, ctx.dtypes = task, [None if x is None else x.dtype for x in (hidden_NH, weight_VH, bias_V)]
        if entropy_N is not None:
            ctx.mark_non_differentiable(entropy_N)
        return logp_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, target_N, lse_N = ctx.saved_tensors  # in the type of the products
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        hidden_dtype, weight_dtype, bias_dtype = ctx.dtypes
        wide = torch.promote_types(weight_dtype, torch.float32)  # chunks are summed, so not in bf16
        grad_hidden = torch.empty_like(hidden_NH, dtype=hidden_dtype) if needs_hidden else None
        grad_weight = grad_bias = None
        for part in _chunks(len(target_N), len(weight_VH) * weight_VH.itemsize, ctx.task.chunk):
            grad_CV = ctx.kept.popleft() if ctx.kept else F.linear(hidden_NH[part], weight_VH, bias_V)
            softmax_backward_(grad_CV, target_N[part], lse_N[part], grads[0][part], ctx.task.shape)
            if grad_hidden is not None:
                grad_hidden[part] = grad_CV @ weight_VH
            if needs_weight:
                grad_weight = _add_product(grad_weight, grad_CV.T, hidden_NH[part], wide)
            if needs_bias:
                sums_V = grad_CV.sum(0, dtype=wide)
                grad_bias = sums_V if grad_bias is None else grad_bias.add_(sums_V)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight_dtype)
        if grad_bias is not None:
            grad_bias = grad_bias.to(bias_dtype)
        return grad_hidden, grad_weight, grad_bias, None, None


def _add_product(total: Tensor | None, left: Tensor, right: Tensor, wide: torch.dtype) -> Tensor:
    """total + left @ right, summed in `wide`, in the memory of `total`; narrow products are computed in parts, because
    each is cast before it is added."""
    if total is not None and left.dtype == wide:
        return total.addmm_(left, right)
    found = left.new_empty(len(left), right.shape[1], dtype=wide) if total is None else total
    for start in range(0, len(left), ROWS_PER_PRODUCT):
        rows = slice(start, start + ROWS_PER_PRODUCT)
        if total is None:
            found[rows] = left[rows] @ right
        else:
            found[rows] += left[rows] @ right
    return found


@dataclass(frozen=True, slots=True)
class _Task:
    """What to compute in chunks, the type that autocast gives their products, which the backward pass must repeat, and
    whether there will be a backward pass (`graph`)."""

    head: Head
    temperature: float
    entropy: bool
    chunk: int | None
    autocast_dtype: torch.dtype | None
    graph: bool

    @property
    def shape(self) -> LogitShape:
        """The transformation between the linear map and the softmax."""
        return LogitShape(self.head.scale, self.head.softcap, self.temperature)


def _generic_chunk(hidden_CH: Tensor, target_C: Tensor, task: _Task) -> tuple[Tensor, Tensor | None]:
    logits_CV = task.head(hidden_CH) / task.temperature
    lse_C = logits_CV.logsumexp(-1)
    logp_C = logits_CV.gather(1, target_C[:, None])[:, 0] - lse_C
    return logp_C, entropy_(logits_CV.detach().clone())[1] if task.entropy else None


def _generic(hidden_NH: Tensor, target_N: Tensor, task: _Task, width: int) -> tuple[Tensor, Tensor | None]:
    """Chunks of any head module, each recomputed in the backward pass."""
    parts = []
    for part in _chunks(len(target_N), 4 * width, task.chunk):
        inputs = (hidden_NH[part], target_N[part], task)
        if torch.is_grad_enabled():
            parts.append(checkpoint(_generic_chunk, *inputs, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(_generic_chunk(*inputs))
    entropy_N = torch.cat([part[1] for part in parts]) if task.entropy else None
    return torch.cat([part[0] for part in parts]), entropy_N


def token_logp(
    head: Head,
    hidden_NH: Tensor,
    target_N: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk: int | None = None,
) -> TokenLogp:
    """log p(target | hidden) at `temperature`, over the whole vocabulary, `chunk` tokens at a time (None: by size).

    Raises InputError if the temperature is not positive.
    """
    if not temperature > 0:
        raise InputError(f"temperature {temperature}: log-probabilities need a temperature above 0")
    if len(target_N) == 0:
        # a graph whose gradients are zero, also for the head: it keeps ranks in step, and one process acts like several
        used = [hidden_NH, *(weight for weight in head.module.parameters() if weight.requires_grad)]
        empty = sum(each.sum() for each in used) * torch.zeros(0, device=hidden_NH.device)
        return TokenLogp(empty, empty.detach() if entropy else None)
    kind = hidden_NH.device.type
    autocast_dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    task = _Task(head, temperature, entropy, chunk, autocast_dtype, torch.is_grad_enabled())
    module = head.module
    if type(module) is nn.Linear:  # a subclass or an adapter computes something else
        return TokenLogp(*_LinearLogp.apply(hidden_NH, module.weight, module.bias, target_N, task))  # type: ignore
    width = head(hidden_NH[:1].detach()).shape[-1]
    return TokenLogp(*_generic(hidden_NH, target_N, task, width))
