"""Shards weights over ranks with FSDP2, and gathers them again.

Parameters are cut along their first dimension; stacked experts along their last one, if their number is not a multiple
of the ranks. Gradients are summed over the ranks, never averaged: losses divide by the counts of all ranks.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard

from togi.core.ranks import Ranks
from togi.model.policy import body_of, unwrapped
from togi.train.ranks import RankGroup


class ShardedModel:
    """A module (`Policy` or `RewardModel`) during training.

    On one process, `module` is that module itself. On several, it is a copy with sharded weights, and the original has
    empty weights until the end of training. With `read` the weights of `module`, a `Policy`, were not read yet: it
    reads this rank's part of them, and the policy is examined.
    """

    def __init__(self, module: Any, ranks: Ranks, read: Callable[[Any], None] | None = None) -> None:
        self.plain = module
        self.module = module
        self._shards: dict[str, nn.Parameter] = {}
        if isinstance(ranks, RankGroup):
            self.module = _twin(module)
            _empty(module)
            _shard(self.module, ranks.mesh)
            if read is not None:
                read(self.module.net)
                _examine(self.module)
            self._shards = dict(self.module.named_parameters())

    @torch.no_grad()
    def gather(self) -> None:
        """Restores the original module's whole weights on the device of each rank, and frees the shards. All ranks must
        call it. Does nothing on one process. Do not use `module` afterwards."""
        named, whole = dict(self.plain.named_parameters()), {}
        for name, shard in self._shards.items():
            whole[id(named[name])] = nn.Parameter(_whole(shard), shard.requires_grad)
            _free(shard)
        _replace(self.plain, whole)

    def give_back(self) -> None:
        """Gives the shards to the original module, which can then be saved (`on_first_rank_whole`). Does nothing on one
        process. Do not use `module` afterwards."""
        named = dict(self.plain.named_parameters())
        self.rest()
        _replace(self.plain, {id(named[name]): shard for name, shard in self._shards.items()})

    def rest(self) -> None:
        """Frees embeddings and head, which a forward pass without gradients leaves unsharded."""
        if self._shards:
            self.module.reshard()

    @torch.no_grad()
    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yields the current unsharded trained weights one by one, with their names in `module.net`. All ranks must
        read all of them."""
        for name, param in (self._shards or dict(self.module.named_parameters())).items():
            if name.startswith("net.") and param.requires_grad:
                yield name.removeprefix("net."), _whole(param)


@torch.no_grad()
def on_first_rank_whole(net: nn.Module, ranks: Ranks, work: Callable[[Callable[[Tensor], Tensor]], None]) -> None:
    """Calls `work` on the first rank, with a function that gives the whole tensor of a weight of `net` in the host's
    memory. Meanwhile the other ranks send their shards of the weights that it asks for, so that no rank holds more
    than its shards and one whole weight. All ranks must call it."""
    params = list(net.parameters())
    places = {id(param): place for place, param in enumerate(params)}

    def whole(param: Tensor) -> Tensor:
        if not isinstance(param, DTensor):
            return param
        ranks.on_first_rank(lambda: places[id(param)])
        return param.full_tensor().cpu()

    if ranks.first:
        try:
            work(whole)
        finally:
            ranks.on_first_rank(lambda: -1)
        return
    while (place := ranks.on_first_rank(lambda: -1)) >= 0:
        _whole(params[place])


def _examine(policy: Any) -> None:
    """Examines a sharded policy, whose head is gathered for this like for a forward pass."""
    register_fsdp_forward_method(policy, "examine")
    policy.examine()
    del policy.examine  # it refers to the policy, whose memory would only be freed by the garbage collector
    policy.reshard()


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
            part.register_parameter(name, params.get(id(param), param))


def _placement(size: int, param: nn.Parameter) -> Shard | None:
    """The dimension along which `size` ranks cut a parameter; None: the first. FSDP2 needs equal parts of others."""
    uneven = param.ndim == 3 and param.shape[0] % size
    return Shard(2) if uneven and param.shape[2] % size == 0 else None


def _shard(module: Any, mesh: DeviceMesh) -> None:
    """Shards each layer, and the rest as one unit with the module, whose forward pass is body and head."""
    body: Any = body_of(unwrapped(module.net))
    placed = partial(_placement, mesh.size())
    for layer in body.layers:
        fully_shard(layer, mesh=mesh, shard_placement_fn=placed)
    fully_shard(module, mesh=mesh, shard_placement_fn=placed)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # only NCCL knows scaled sums
    # a rank without a scored token has no gradient for the head, although the others have one
    module.set_reduce_scatter_unused_params(True)
