"""Log-probabilities of targets from the output of a head, and their gradient, without a copy of the logits.

Shapes: C tokens, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from togi.kernels.dispatch import alike, compiled
from togi.kernels.native import Native

LOGITS_IN_CACHE = 2**20  # logits that are read and written several times in a row


@dataclass(frozen=True, slots=True)
class LogitShape:
    """The operations between a head's linear map and the softmax: multiplication by `scale`, the soft cap (None: none),
    and division by the temperature."""

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @property
    def factor(self) -> float:
        """The factor of logits without a soft cap."""
        return self.scale / self.temperature

    def capped_(self, logits: Tensor) -> Tensor:
        """Logits before the temperature, in float32 or wider, without a graph; in place if the type of `logits` allows
        it."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.scale != 1.0:
            logits.mul_(self.scale)
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)


class Softmax(NamedTuple):
    """The targets' logits, the log-sum-exp of all logits, and if requested the entropy in nats, (C) in float32 or
    wider. `whole`: the raw logits are unchanged."""

    chosen_C: Tensor
    lse_C: Tensor
    entropy_C: Tensor | None
    whole: bool


def softmax_(raw_CV: Tensor, target_C: Tensor, shape: LogitShape, entropy: bool = False) -> Softmax:
    """The softmax over the vocabulary of a linear map's output, without a graph. May overwrite `raw_CV`."""
    functions = _functions(raw_CV, shape)
    if functions is not None:
        return Softmax(*functions.softmax(raw_CV, target_C, shape.factor, entropy), whole=True)
    wide = torch.promote_types(raw_CV.dtype, torch.float32)
    chosen_C, lse_C = (raw_CV.new_empty(len(raw_CV), dtype=wide) for _ in range(2))
    entropy_C = torch.empty_like(lse_C) if entropy else None
    for rows in _in_cache(raw_CV):
        logits = shape.capped_(raw_CV[rows])
        if shape.temperature != 1.0:
            logits.div_(shape.temperature)
        chosen_C[rows] = logits.gather(1, target_C[rows, None])[:, 0]
        if entropy_C is not None:
            lse_C[rows], entropy_C[rows] = entropy_(logits)
        else:
            lse_C[rows] = _logsumexp_(logits)
    return Softmax(chosen_C, lse_C, entropy_C, whole=False)


def softmax_backward_(raw_CV: Tensor, target_C: Tensor, lse_C: Tensor, grad_C: Tensor, shape: LogitShape) -> None:
    """Overwrites the raw logits with the gradient of the targets' log-probabilities with respect to them."""
    functions = _functions(raw_CV, shape)
    if functions is not None:
        functions.softmax_backward_(raw_CV, target_C, lse_C, grad_C, shape.factor)
        return
    for rows in _in_cache(raw_CV):
        gradient = _gradient_(raw_CV[rows], target_C[rows], lse_C[rows], grad_C[rows], shape)
        if gradient.dtype != raw_CV.dtype:  # otherwise it was computed in place
            raw_CV[rows] = gradient


def entropy_(logits_CV: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp and entropy in nats. Overwrites its argument and allocates a copy of its size. A logit of minus
    infinity adds nothing."""
    top_C = logits_CV.amax(-1)
    logits_CV.sub_(top_C[:, None])
    share_CV = logits_CV.exp()
    sum_C = share_CV.sum(-1)
    logits_CV.clamp_(min=torch.finfo(logits_CV.dtype).min)
    mean_C = torch.einsum("cv,cv->c", share_CV, logits_CV) / sum_C
    log_C = sum_C.log()
    return log_C + top_C, log_C - mean_C


def _functions(raw_CV: Tensor, shape: LogitShape) -> Native | None:
    known = shape.softcap is None and raw_CV.is_contiguous() and alike(raw_CV, raw_CV)
    return compiled("softmax") if known else None


def _in_cache(logits_CV: Tensor) -> Iterator[slice]:
    """Yields the rows of a chunk, as many at a time as fit into the processor's caches; all on an accelerator."""
    num_tokens, width = logits_CV.shape
    size = max(1, LOGITS_IN_CACHE // width) if logits_CV.device.type == "cpu" else num_tokens
    for start in range(0, num_tokens, size):
        yield slice(start, min(num_tokens, start + size))


def _logsumexp_(logits_CV: Tensor) -> Tensor:
    """Log-sum-exp that overwrites its argument, because allocating a copy would cost as much as the arithmetic."""
    top_C = logits_CV.amax(-1)
    return logits_CV.sub_(top_C[:, None]).exp_().sum(-1).log_().add_(top_C)


def _gradient_(raw_CV: Tensor, target_C: Tensor, lse_C: Tensor, grad_C: Tensor, shape: LogitShape) -> Tensor:
    """The gradient in float32 or wider, in place if `raw_CV` is as wide."""
    grad_CV = shape.capped_(raw_CV)
    slope_CV = None if shape.softcap is None else 1 - (grad_CV / shape.softcap).square_()
    if shape.temperature != 1.0:
        grad_CV.div_(shape.temperature)
    grad_CV.sub_(lse_C[:, None]).exp_().mul_(-grad_C[:, None])
    grad_CV.scatter_add_(1, target_C[:, None], grad_C[:, None].to(grad_CV.dtype))
    if slope_CV is not None:
        grad_CV.mul_(slope_CV)
    if shape.factor != 1.0:
        grad_CV.mul_(shape.factor)
    return grad_CV
