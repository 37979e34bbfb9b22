"""What models that are only read may take of a device, and the keys of what they write.

On an accelerator all of it is decided by the size of the card, so that a run that goes on computes as it began.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from togi.core.errors import InputError
from togi.core.settings import ModelRef
from togi.core.sources import ModelSource
from togi.model.load import inspect
from togi.rollout.local import Sampler
from togi.stages.arithmetic import model_device
from togi.stages.context import Context, hold_numerics
from togi.stages.training.resources import USABLE, key_room
from togi.train import usage


def make_room(source: ModelSource, cache: Path, dtype: torch.dtype, forget: Callable[[], None]) -> None:
    """Calls `forget`, which lets go of the models that are kept, where the device has no room for this one beside
    them. Nothing is done for a model whose size its files do not tell."""
    stored = inspect(source, cache).weights
    if stored is None:
        return
    device = model_device(source)
    size = dtype.itemsize * sum(math.prod(each.shape) for each in stored.values())
    full = size > USABLE * usage.available(device)
    if device.type == "cuda":  # what `bound_keys` reckons with: one model, or several in half of the card
        full = full or usage.used(device) + size > usage.total(device) / 2
    if full:
        forget()
        usage.give_back(device)


def bound_keys(context: Context, ref: ModelRef, net: nn.Module, sampler: Sampler) -> None:
    """On an accelerator, keeps the keys of what a model writes within what its weights leave; answers wait for room. A
    model whose sizes are not known has no bound. Raises StageError where the stage was begun on another card."""
    device = next(net.parameters()).device
    if device.type != "cuda":
        return
    weights = sum(each.numel() * each.element_size() for each in net.parameters())
    room = key_room(usage.total(device), weights)
    hold_numerics(context.folder, {f"room for keys of {ref}": room})
    with suppress(InputError):
        sampler.bound(room)
