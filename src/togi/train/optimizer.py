"""AdamW, its learning-rate schedules, and one update of the weights.

By default the weights are float32 and need no master copies; only the forward pass computes in bfloat16 (`precision`).
The rate depends only on the step, so a resumed run needs no schedule state.
"""

import importlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from togi.core.errors import RecipeError, StageError
from togi.train.masters import Groups, MasterWeightOptimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamWSettings:
    """AdamW (arXiv 1711.05101). `learning_rate` is the peak of the schedule; `bits` is the precision of the moments.

    `masters` keeps float32 copies of the weights for the update; `offload` keeps them and the moments in host memory.
    """

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    bits: Literal[8, 32] = 32
    masters: bool = False
    offload: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The share of the peak learning rate at each step: a linear warm-up, then constant, linear or cosine decay to
    `final`, which the last `final_steps` keep. No step has rate 0, neither the first nor, with `final` 0, the last."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    total_steps: int = 1
    warmup_steps: int = 0
    final: float = 0.0
    final_steps: int = 0

    def __post_init__(self) -> None:
        if self.kind not in SHAPES:
            raise RecipeError(f"schedule: {self.kind!r} is not available; allowed: {', '.join(SHAPES)}")

    def share(self, step: int) -> float:
        """The share at `step`, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(self.total_steps - self.final_steps - self.warmup_steps, 1)
        return self.final + (1 - self.final) * SHAPES[self.kind](min(progress, 1.0))


SHAPES = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One update of the weights: clips gradients by their norm and steps at the schedule's rate."""

    optimizer: torch.optim.Optimizer
    schedule: Schedule
    max_grad_norm: float

    @property
    def params(self) -> list[Parameter]:
        """All trained parameters."""
        return [param for group in self.optimizer.param_groups for param in group["params"]]

    def apply(self, step: int, rows: str = "") -> tuple[float, float]:
        """Steps and clears the gradients; returns their norm before clipping, and the largest learning rate.

        Raises StageError, with `rows` in the message, before any change if the norm is not finite.
        """
        norm = self._clip(step, rows)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self.schedule.share(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, max(group["lr"] for group in self.optimizer.param_groups)

    def _clip(self, step: int, rows: str) -> float:
        params = [param for param in self.params if param.grad is not None]
        norm = get_total_norm([param.grad for param in params if param.grad is not None])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not norm.isfinite():
            self.optimizer.zero_grad(set_to_none=True)
            raise StageError(
                f"step {step}: the norm of the gradient is {norm.item()}; the weights are those of the step before. "
                f"{rows}. Try a lower learning rate"
            )
        clip_grads_with_norm_(params, self.max_grad_norm, norm)
        return norm.item()


def build_adamw(
    params: Mapping[str, Parameter], settings: AdamWSettings, rates: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """AdamW over named parameters. Vectors (norms, biases) are not decayed.

    `rates` sets other peak rates for parameters whose names begin with a key. Raises RecipeError if there are no
    parameters, if a key of `rates` matches no name, or for 8 bits without bitsandbytes or on sharded weights.
    """
    if not params:
        raise RecipeError("there are no parameters to train")
    unused = [prefix for prefix in rates or {} if not any(name.startswith(prefix) for name in params)]
    if unused:
        raise RecipeError(f"learning rate for {', '.join(unused)}: no trained parameter has a name with this prefix")
    special = settings.bits == 8 or settings.masters or settings.offload
    if special and any(isinstance(param, DTensor) for param in params.values()):
        raise RecipeError(
            "8-bit moments, float32 masters and offload work with one process only; with `processes` above 1 use "
            "optimizer: adamw and weights: float32, which are sharded over the processes"
        )
    groups = _groups(params, settings, rates or {})
    make = optimizer_maker(settings)
    device = next(iter(params.values())).device
    home = torch.device("cpu") if settings.offload else device
    if settings.masters or home != device:
        return MasterWeightOptimizer(groups, make, home)
    return make(groups)


def optimizer_maker(settings: AdamWSettings) -> Callable[[Groups], torch.optim.Optimizer]:
    """A function that builds the optimiser for some parameter groups."""
    options = {"lr": settings.learning_rate, "betas": settings.betas, "eps": settings.eps}
    if settings.bits == 32:
        return lambda groups: torch.optim.AdamW(groups, **options, fused=True)  # type: ignore[arg-type]
    try:
        eight_bit = importlib.import_module("togi.train.eight_bit")
    except ImportError as error:
        raise RecipeError(
            f"optimizer: adamw-8bit needs bitsandbytes, which cannot be imported here ({error}): pip install "
            "'togi[quantised]', or use adamw"
        ) from error
    return lambda groups: eight_bit.EightBitAdamW(groups, **options)


def _groups(params: Mapping[str, Parameter], settings: AdamWSettings, rates: Mapping[str, float]) -> list[dict]:
    """Parameters with the same rate and decay together, in order of first appearance."""
    groups: dict[tuple[float, float], list[Parameter]] = {}
    for name, param in params.items():
        rate = next((rate for prefix, rate in rates.items() if name.startswith(prefix)), settings.learning_rate)
        groups.setdefault((rate, _decay(param, settings.weight_decay)), []).append(param)
    return [
        {"params": members, "lr": rate, "peak": rate, "weight_decay": decay}
        for (rate, decay), members in groups.items()
    ]


def _decay(param: Tensor, weight_decay: float) -> float:
    return weight_decay if param.ndim >= 2 else 0.0


def trained(named_params: Iterable[tuple[str, Parameter]]) -> dict[str, Parameter]:
    """The parameters that require a gradient, by name: `trained(net.named_parameters())`."""
    return {name: param for name, param in named_params if param.requires_grad}


def order_of(optimizer: torch.optim.Optimizer, params: Mapping[str, Parameter]) -> Sequence[str]:
    """The names of the optimiser's parameters in its own order, which is that of the indices in its state."""
    names = {id(param): name for name, param in params.items()}
    return [names[id(param)] for group in optimizer.param_groups for param in group["params"]]
