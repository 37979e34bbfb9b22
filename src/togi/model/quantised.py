"""Frozen weights in 4 bits (NF4 with double quantisation; QLoRA, arXiv 2305.14314), with bitsandbytes.

They work on CUDA and on CPU. The linear layers of the decoder are quantised one after the other; embeddings, norms and
heads stay unchanged.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit  # type: ignore[import-not-found]
from bitsandbytes.nn import Linear4bit, Params4bit  # type: ignore[import-not-found]
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from togi.core.errors import InputError
from togi.model.adapter import beneath

BLOCK = 64  # weights that share a scale


def quantise(net: Any, device: torch.device | str, read: Callable[[Tensor], None] = lambda weight: None) -> None:
    """Replaces the decoder's linear layers by NF4 layers on `device`; products are computed in `net.dtype`. Calls
    `read` with each plain weight after quantising it.

    Raises InputError on CPU for rows that do not divide into blocks: with AVX-512 the library (0.50) silently reads the
    scales of other blocks there.
    """
    body = net.get_decoder()
    for name, layer in list(body.named_modules()):
        if type(layer) is nn.Linear:
            _check_rows(name, layer.in_features, BLOCK, torch.device(device))
            body.set_submodule(name, four_bits(layer, net.dtype).to(device))
            read(layer.weight)
    net.is_loaded_in_4bit = True  # peft checks this


def adopt(net: Any) -> None:
    """Makes the layers of a network that was saved in 4 bits compute as those of `quantise`: in `net.dtype`, with the
    weights as stored. Raises InputError as `quantise` does."""
    for name, layer in net.named_modules():
        if isinstance(layer, Linear4bit):
            weight: Any = layer.weight  # a Params4bit, which has a quant_state
            _check_rows(name, layer.in_features, weight.quant_state.blocksize, weight.device)
            layer.compute_dtype = net.dtype
            layer.compute_type_is_set = True
            layer.support_avx512bf16_for_cpu = False


def _check_rows(name: str, width: int, block: int, device: torch.device) -> None:
    if device.type == "cpu" and width % block:
        raise InputError(
            f"on CPU, weights in 4 bits need rows of a multiple of {block} weights; {name} has {width}. Use "
            "plain weights (lora.base: as_loaded), or a GPU"
        )


def four_bits(layer: nn.Linear, dtype: torch.dtype) -> Linear4bit:
    """A linear layer whose weight is quantised when it is moved to a device; products are computed in `dtype`."""
    made = Linear4bit(
        layer.in_features,
        layer.out_features,
        layer.bias is not None,
        compute_dtype=dtype,
        quant_type="nf4",
        device="meta",
    )
    weight: Any = Params4bit  # type checkers do not see the arguments of its __new__
    made.weight = weight(
        layer.weight.detach(), requires_grad=False, blocksize=BLOCK, quant_type="nf4", compress_statistics=True
    )
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    # With AVX512-BF16 the library would replace the weights at the first forward pass without gradients: with scales
    # rounded to bfloat16, in a layout that only fits some shapes and cannot be merged.
    made.support_avx512bf16_for_cpu = False
    return made


@torch.no_grad()
def merge_quantised(net: PeftModel, dtype: torch.dtype) -> Any:
    """The base network of an adapter with plain layers again, in `dtype`: the dequantised weights plus the adapter's.

    peft would round the sum to 4 bits again, which would not be the trained model.
    """
    base: Any = net.get_base_model()
    for name, made in written_out(net, dtype).items():
        base.set_submodule(name, made())
    _forget_quantiser(base)
    base.to(dtype)
    return net.merge_and_unload()  # type: ignore[operator]


def written_out(net: Any, dtype: torch.dtype) -> dict[str, Callable[[], nn.Module]]:
    """For each layer in 4 bits, a function that builds the plain layer in `dtype`, with its adapter merged if it has
    one; by the layer's name in the base network."""
    found: dict[str, Callable[[], nn.Module]] = {}
    for name, module in beneath(net).named_modules():
        if isinstance(module, BaseTunerLayer) and isinstance(module.get_base_layer(), Linear4bit):
            found[name] = partial(_summed, module, dtype)
        elif isinstance(module, Linear4bit) and name.rpartition(".")[0] not in found:
            found[name] = partial(_plain, module, dtype)
    return found


def without_bits(net: Any) -> None:
    """Replaces layers in 4 bits by plain layers without memory."""
    for name, module in list(net.named_modules()):
        if isinstance(module, Linear4bit):
            with torch.device("meta"):
                net.set_submodule(name, nn.Linear(module.in_features, module.out_features, module.bias is not None))
    _forget_quantiser(net)


def _forget_quantiser(net: Any) -> None:
    """Removes the library's attributes of a network loaded in 4 bits; they would block saving it as plain."""
    net.is_loaded_in_4bit = False
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        net.__dict__.pop(name, None)
    net.config.__dict__.pop("quantization_config", None)
    conversions = net.__dict__.get("_weight_conversions")  # reverted when the network is saved
    if conversions is not None:
        net._weight_conversions = [one for one in conversions if not _reads_four_bits(one)]


def _reads_four_bits(conversion: Any) -> bool:
    return any(type(step).__name__ == "Bnb4bitDeserialize" for step in getattr(conversion, "operations", None) or ())


@torch.no_grad()
def _summed(adapted: Any, dtype: torch.dtype) -> nn.Linear:
    """A layer in 4 bits and its adapter as one plain layer."""
    delta = sum(adapted.get_delta_weight(adapter) for adapter in adapted.active_adapters)
    return _plain(adapted.get_base_layer(), dtype, delta)


@torch.no_grad()
def _plain(layer: Any, dtype: torch.dtype, delta: Any = 0.0) -> nn.Linear:
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(torch.float32) + delta
    with torch.device("meta"):
        made = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    made.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    if layer.bias is not None:
        made.bias = layer.bias
    return made
