"""Gates by torch: the same bits as torch's own graph, of which less is kept."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from togi.kernels import gate, gated_linear

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
SHAPES = {"x": (2, 5, 24), "up": (2, 5, 24), "weight": (8, 24), "bias": (8,), "grad": (2, 5, 8)}


def numbers(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Inputs of a gate and of the linear map behind it, and a gradient of its output."""
    generator = torch.Generator().manual_seed(7)
    return {name: torch.randn(*shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def plain(x: torch.Tensor, up: torch.Tensor, gelu: bool) -> torch.Tensor:
    return (F.gelu(x, approximate="tanh") if gelu else F.silu(x)) * up


def results(function: Callable[..., torch.Tensor], inputs: list[torch.Tensor], *more) -> list[torch.Tensor | None]:
    """The function's result, and the gradients of the inputs for a given gradient of it."""
    leaves = [each.clone().requires_grad_() for each in inputs]
    found = function(*leaves, *more)
    found.backward(numbers(found.dtype)["grad" if len(leaves) > 2 else "up"])
    return [found.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gelu", [False, True])
def test_a_gate_and_its_gradients_are_those_of_torch(gelu, dtype):
    inputs = [numbers(dtype)[name] for name in ("x", "up")]
    for ours, torchs in zip(results(gate, inputs, gelu), results(plain, inputs, gelu), strict=True):
        assert ours is not None
        assert torchs is not None
        assert torch.equal(ours, torchs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("gelu", [False, True])
def test_a_gate_with_its_linear_map_and_their_gradients_are_those_of_torch(gelu, biased, dtype):
    names, more = ("x", "up", "weight", "bias")[: 4 if biased else 3], [gelu] if biased else [None, gelu]
    inputs = [numbers(dtype)[name] for name in names]

    def by_torch(x, up, weight, bias, gelu) -> torch.Tensor:
        return F.linear(plain(x, up, gelu), weight, bias)

    for ours, torchs in zip(results(gated_linear, inputs, *more), results(by_torch, inputs, *more), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=2 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("gelu", [False, True])
def test_a_graph_keeps_only_the_inputs_of_a_gate(gelu):
    given = {name: tensor.requires_grad_() for name, tensor in numbers(torch.float32).items()}
    x, up, weight, bias = (given[name] for name in ("x", "up", "weight", "bias"))
    kept: set[int] = set()

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        products = [gate(x, up, gelu), gated_linear(x, up, weight, bias, gelu)]
    assert all(product.requires_grad for product in products)
    assert kept == {each.untyped_storage().data_ptr() for each in (x, up, weight)}
