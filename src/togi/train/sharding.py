"""Shards weights over ranks with FSDP2, and gathers them again.

Parameters are cut along their first dimension. Gradients are summed over the ranks, never averaged: losses divide by
the counts of all ranks.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from togi.core.ranks import Ranks
from togi.model.policy import body_of, unwrapped
from togi.train.ranks import RankGroup


class ShardedModel:
    """A module (`Policy` or `RewardModel`) during training.

    On one process, `module` is that module itself. On several, it is a copy with sharded weights, and the original has
    empty weights until `gather` fills them.
    """

    def __init__(self, module: Any, ranks: Ranks) -> None:
        self.plain = module
        self.module = module
        self._first = ranks.first
        self._shards: dict[str, nn.Parameter] = {}
        if isinstance(ranks, RankGroup):
            self.module = _twin(module)
            _empty(module)
            _shard(self.module, ranks.mesh)
            self._shards = dict(self.module.named_parameters())

    @torch.no_grad()
    def gather(self, *, everywhere: bool = False) -> None:
        """Restores the original module's whole weights: on the first rank in the host's memory, or `everywhere` on the
        device of each rank. Elsewhere they stay empty. All ranks must call it. Does nothing on one process.

        Gathers one weight after the other and frees its shards, so a rank that keeps none of them holds its shards and
        one whole weight. Do not use `module` afterwards.
        """
        named, whole = dict(self.plain.named_parameters()), {}
        for name, shard in self._shards.items():
            value = _whole(shard)
            if everywhere or self._first:
                kept = value if everywhere else value.cpu()
                whole[id(named[name])] = nn.Parameter(kept, named[name].requires_grad)
            _free(shard)
        if whole:
            _replace(self.plain, whole)

    @torch.no_grad()
    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yields the current unsharded trained weights one by one, with their names in `module.net`. All ranks must
        read all of them."""
        for name, param in (self._shards or dict(self.module.named_parameters())).items():
            if name.startswith("net.") and param.requires_grad:
                yield name.removeprefix("net."), _whole(param)


def _whole(param: Tensor) -> Tensor:
    """The unsharded tensor of a parameter; all ranks must call it."""
    return param.full_tensor() if isinstance(param, DTensor) else param


def _free(param: Tensor) -> None:
    """Frees the memory of this rank's shard of a parameter."""
    if isinstance(param, DTensor):
        param.to_local().untyped_storage().resize_(0)


def _twin(module: nn.Module) -> Any:
    """A copy that shares every tensor with the original."""
    memo = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    return copy.deepcopy(module, memo)


def _empty(module: nn.Module) -> None:
    """Frees the memory of the weights, and keeps ties between them."""
    shells = {
        id(param): nn.Parameter(torch.empty_like(param, device="meta"), param.requires_grad)
        for param in module.parameters()
    }
    _replace(module, shells)


def _replace(module: nn.Module, params: dict[int, nn.Parameter]) -> None:
    """Replaces the parameters with these ids, wherever they are used."""
    for part in module.modules():
        for name, param in part.named_parameters(recurse=False, remove_duplicate=False):
            part.register_parameter(name, params[id(param)])


def _shard(module: Any, mesh: DeviceMesh) -> None:
    """Shards each layer, and the rest as one unit with the module, whose forward pass is body and head."""
    body: Any = body_of(unwrapped(module.net))
    for layer in body.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # only NCCL knows scaled sums
    # a rank without a scored token has no gradient for the head, although the others have one
    module.set_reduce_scatter_unused_params(True)
