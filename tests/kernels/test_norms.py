"""Norms by torch: the library's values and gradients, of which less is kept."""

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from togi.kernels import Norm, norm

EPSILON, WIDTH = 1e-3, 48
LIBRARY = {0.0: LlamaRMSNorm, 1.0: Gemma3RMSNorm}
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def library_norm(shift: float, dtype: torch.dtype) -> nn.Module:
    made = LIBRARY[shift](WIDTH, eps=EPSILON).to(dtype)
    generator = torch.Generator().manual_seed(3)
    made.weight.data = torch.randn(WIDTH, generator=generator).to(dtype)
    return made


def numbers(dtype: torch.dtype, seed: int) -> torch.Tensor:
    return (3 * torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(seed))).to(dtype)


def ours(module: nn.Module, x: torch.Tensor, shift: float, dtype: torch.dtype | None = None) -> torch.Tensor:
    return norm(x, Norm(module.weight, EPSILON, shift), dtype)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("shift", LIBRARY)
def test_a_norm_has_the_librarys_bits(shift, dtype):
    module, x = library_norm(shift, dtype), numbers(dtype, 1)
    assert torch.equal(ours(module, x, shift), module(x))
    assert ours(module, x, shift, torch.bfloat16).dtype is torch.bfloat16


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", LIBRARY)
def test_the_gradients_of_a_norm_are_those_of_its_formula(shift, dtype):
    module, x, grad = library_norm(shift, dtype), numbers(dtype, 1).requires_grad_(), numbers(dtype, 2)
    ours(module, x, shift).backward(grad)
    exact_x, weight = x.detach().double().requires_grad_(), module.weight.detach().double().requires_grad_()
    scale = (exact_x.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
    (exact_x * scale * (shift + weight)).backward(grad.double())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    for found, exact in ((x.grad, exact_x.grad), (module.weight.grad, weight.grad)):
        assert found is not None and exact is not None
        assert (found.double() - exact).abs().max() <= tolerance * exact.abs().max()


@pytest.mark.parametrize("shift", LIBRARY)
def test_a_graph_keeps_only_the_input_of_a_norm_and_a_number_per_row(shift):
    module, x = library_norm(shift, torch.bfloat16), numbers(torch.bfloat16, 1).requires_grad_()
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ours(module, x, shift)
    assert sum(kept.values()) == x.nbytes + 4 * 2 * 7 + module.weight.nbytes
