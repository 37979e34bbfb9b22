"""Loads a network of which this process keeps only a part: at first without memory for its weights, which are read when
they are sharded. No process ever holds all weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig

from togi.model.copied import give_origin, one_by_one, unread
from togi.model.inspect import Facts
from togi.model.network import build


def without_weights(facts: Facts, dtype: torch.dtype, device: torch.device) -> Any | None:
    """The causal network of a folder, whose weights take no memory until `read_parts`; its buffers are on `device`.

    None if its weights can only be read whole: if they are quantised, or belong to an adapter's base, if buffers are
    stored, or if the files contain both of two weights that the configuration ties.
    """
    if facts.weights is None or facts.quantised is not None or facts.adapters:
        return None
    net = build(facts, dtype, "causal", meta=True)
    ties = net.all_tied_weights_keys.items()
    tied = all(net.get_parameter(one) is net.get_parameter(other) for one, other in ties)
    if not tied or len(net.state_dict()) != len(list(net.named_parameters(remove_duplicate=False))):
        return None
    give_origin(net, facts.folder)
    _compute_buffers(net, device)
    return net


def read_parts(net: Any, folder: Path, device: torch.device) -> None:
    """Reads the weights of a network from `without_weights` to `device`: of sharded ones only the part of this process.

    The library does it, which stacks experts and converts types weight by weight, as when it reads whole weights.
    """
    users: dict[int, list[tuple[nn.Module, str]]] = {}
    for part in net.modules():
        for name, weight in part.named_parameters(recurse=False, remove_duplicate=False):
            users.setdefault(id(weight), []).append((part, name))
    mapping: Any = get_model_conversion_mapping(net)
    settings = LoadStateDictConfig(device_map={"": device}, dtype=net.dtype, weight_mapping=mapping)
    with one_by_one(True):
        convert_and_load_state_dict_in_model(net, unread(folder), settings)
    for places in users.values():
        found = [getattr(part, name) for part, name in places]
        # the library reads a tied weight for one of its users, and fails to stack no experts
        read = [weight for weight in found if weight.device.type != "meta"] or [_nothing(found[0], device)]
        for part, name in places:
            part.register_parameter(name, read[0])


def own_parts(net: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the name of each weight with this process's part of it."""
    for name, weight in net.named_parameters():
        yield name, weight.to_local() if isinstance(weight, DTensor) else weight


def _nothing(weight: Any, device: torch.device) -> nn.Parameter:
    """A sharded weight of which this process has no part."""
    own, shape, stride = torch.empty_like(weight.to_local(), device=device), weight.shape, weight.stride()
    assert not own.numel(), "a weight was not read"
    mesh, placements = weight.device_mesh, weight.placements
    found = DTensor.from_local(own, mesh, placements, run_check=False, shape=shape, stride=stride)
    return nn.Parameter(found, weight.requires_grad)


def _compute_buffers(net: Any, device: torch.device) -> None:
    """Computes the buffers, such as rotary frequencies, on the CPU, as for a network that is read whole."""
    owners = [part for part in net.modules() if any(buffer.is_meta for buffer in part.buffers(recurse=False))]
    for part in owners:
        for name, buffer in part.named_buffers(recurse=False):
            part.register_buffer(name, torch.empty_like(buffer, device="cpu"), persistent=False)
        part._is_hf_initialized = False
    net.initialize_weights()  # of these parts, whose weights the library then takes as initialised
    for part in owners:
        for name, buffer in part.named_buffers(recurse=False):
            part.register_buffer(name, buffer.to(device), persistent=False)
