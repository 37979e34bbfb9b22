"""Device memory for models that are not trained, and for the KV cache of their answers.

On an accelerator the size of the card alone decides, so that a resumed run computes as it began.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress

import torch
from torch import nn

from togi.core.errors import InputError
from togi.core.settings import ModelRef
from togi.core.sources import ModelSource
from togi.model.headers import Stored
from togi.rollout.local import Sampler
from togi.stages.arithmetic import model_device
from togi.stages.context import Context, hold_numerics
from togi.stages.training.resources import USABLE, key_room
from togi.train import usage


def make_room(
    source: ModelSource, stored: Mapping[str, Stored] | None, dtype: torch.dtype, forget: Callable[[], None]
) -> None:
    """Calls `forget`, which releases the cached models, if the device has no room for this one in addition. Does
    nothing for a model without `stored` tensors, whose size is unknown."""
    if stored is None:
        return
    device = model_device(source)
    size = dtype.itemsize * sum(math.prod(each.shape) for each in stored.values())
    full = size > USABLE * usage.available(device)
    if device.type == "cuda":  # as `bound_keys` assumes: one model, or several in half of the card
        full = full or usage.used(device) + size > usage.total(device) / 2
    if full:
        forget()
        usage.give_back(device)


def bound_keys(context: Context, ref: ModelRef, net: nn.Module, sampler: Sampler) -> None:
    """On an accelerator, limits the KV cache of a model to the memory that its weights leave; answers wait for room. A
    model of unknown sizes has no limit. Raises StageError if the stage began on another card."""
    device = next(net.parameters()).device
    if device.type != "cuda":
        return
    weights = sum(each.numel() * each.element_size() for each in net.parameters())
    room = key_room(usage.total(device), weights)
    hold_numerics(context.folder, {f"room for keys of {ref}": room})
    with suppress(InputError):
        sampler.bound(room)
