"""Compiled norms, gates and rotary turns, and their gradients, against float64."""

import shutil

import pytest
import torch
from torch.nn import functional as F

from togi.kernels.native import NORM_TYPES, Native, Norm, native

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
ERRORS = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
"""Types with the largest relative error: a bfloat16 is rounded once, by half of its last place."""


@pytest.fixture(scope="module")
def functions() -> Native:
    found = native()
    assert found is not None
    return found


def numbers(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=generator).to(dtype)


def close(found: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype, atol: float = 1e-6) -> None:
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=ERRORS[dtype], atol=atol, equal_nan=True)


# --- norms ------------------------------------------------------------------------------------------------------------


def exact_norm(x: torch.Tensor, weight: torch.Tensor, shift: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt() * (shift + weight)


@NEEDS_COMPILER
@pytest.mark.parametrize("types", NORM_TYPES)
@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize(("rows", "width"), [(1, 7), (5, 100), (70, 576)])
@pytest.mark.parametrize("added", [False, True])
def test_a_norm_and_its_gradients_are_rounded_once(functions, types, shift, rows, width, added):
    generator = torch.Generator().manual_seed(width)
    wide, narrow = types[0], types[2]
    x, passed = (3 * numbers(generator, rows, 1, width, dtype=wide) for _ in range(2))
    more, grad = (numbers(generator, rows, 1, width, dtype=narrow) for _ in range(2))
    norm = Norm(numbers(generator, width, dtype=types[1]), 1e-2, shift)
    whole, y = functions.norm(x, norm, narrow, more if added else None)
    if added:
        close(whole, x.double() + more.double(), wide)
    else:
        assert whole is x
    start = whole.double().requires_grad_()
    weight = norm.weight_F.double().requires_grad_()
    exact = exact_norm(start, weight, shift)
    close(y, exact.detach(), narrow)
    exact.backward(grad.double())
    assert start.grad is not None
    assert weight.grad is not None
    grad_sum = passed if added else None
    grad_x, grad_more, grad_weight = functions.norm_backward(whole, norm, grad, grad_sum, (added, True))
    exact_x = start.grad + (passed.double() if added else 0)
    close(grad_x, exact_x, wide, atol=2e-6)
    assert grad_weight is not None
    close(grad_weight, weight.grad, types[1], atol=2e-5)
    if added:
        assert grad_more is not None
        assert torch.equal(grad_more, grad_x.to(narrow))
    assert functions.norm_backward(whole, norm, grad, grad_sum, (False, False))[1:] == (None, None)


@NEEDS_COMPILER
def test_the_gradient_of_a_norms_weight_is_the_same_with_any_number_of_threads(functions):
    generator = torch.Generator().manual_seed(5)
    x, grad = (numbers(generator, 500, 300) for _ in range(2))
    norm, before, found = Norm(numbers(generator, 300), 1e-5, 0.0), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(functions.norm_backward(x, norm, grad, None, (False, True))[2])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


# --- gates ------------------------------------------------------------------------------------------------------------


@NEEDS_COMPILER
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(1, 5), (33, 1536)])
def test_a_gate_and_its_gradients_are_rounded_once(functions, dtype, gelu, rows, width):
    generator = torch.Generator().manual_seed(width)
    x, up, grad = (4 * numbers(generator, rows, width, dtype=dtype) for _ in range(3))
    x[0, :4] = torch.tensor([0.0, 300.0, -300.0, torch.nan])
    open_, by = (tensor.double().requires_grad_() for tensor in (x, up))
    exact = (F.gelu(open_, approximate="tanh") if gelu else F.silu(open_)) * by
    exact.backward(grad.double())
    close(functions.gate(x, up, gelu), exact.detach(), dtype, atol=1e-5)
    grad_x, grad_up, again = functions.gate_backward(x, up, grad, gelu, True)
    assert open_.grad is not None
    assert by.grad is not None
    close(grad_x, open_.grad, dtype, atol=4e-5)
    close(grad_up, by.grad, dtype, atol=1e-5)
    assert again is not None
    close(again, exact.detach(), dtype, atol=1e-5)
    assert functions.gate_backward(x, up, grad, gelu, False)[2] is None


# --- rotary turns -----------------------------------------------------------------------------------------------------


@NEEDS_COMPILER
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("angles", ERRORS)
@pytest.mark.parametrize(("positions", "heads", "size"), [(1, 1, 2), (7, 3, 20), (130, 9, 64)])
def test_a_turn_and_its_gradient_are_rounded_once(functions, dtype, angles, positions, heads, size):
    """The halves of an angle's row differ here, which no model's do: nothing is taken for granted."""
    generator = torch.Generator().manual_seed(size)
    x = numbers(generator, positions, heads, size, dtype=dtype)
    turn = numbers(generator, positions, size, dtype=angles), numbers(generator, positions, size, dtype=angles)
    grad = numbers(generator, heads, positions, size, dtype=dtype)
    start = x.double().requires_grad_()
    half = torch.cat((-start[..., size // 2 :], start[..., : size // 2]), -1)
    exact = (start * turn[0].double()[:, None] + half * turn[1].double()[:, None]).transpose(0, 1)
    exact.backward(grad.double())
    close(functions.turn(x, turn), exact.detach(), dtype)
    assert start.grad is not None
    close(functions.turn(grad, turn, back=True), start.grad, dtype)


@NEEDS_COMPILER
def test_no_rows_have_no_share_in_the_gradient_of_a_norms_weight(functions):
    norm = Norm(torch.ones(4), 1e-5, 0.0)
    assert (
        functions.norm_backward(torch.empty(0, 4), norm, torch.empty(0, 4), None, (False, True))[2].tolist() == [0] * 4
    )


# --- the softmax of a head --------------------------------------------------------------------------------------------


@NEEDS_COMPILER
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("factor", [1.0, 0.37])
@pytest.mark.parametrize(("tokens", "width"), [(1, 3), (5, 37), (9, 5003)])
def test_log_probabilities_and_their_gradient_are_rounded_once(functions, dtype, factor, tokens, width):
    generator = torch.Generator().manual_seed(width)
    logits = 6 * numbers(generator, tokens, width, dtype=dtype)
    logits[0, 1] = -torch.inf
    target = torch.randint(0, width, (tokens,), generator=generator)
    grad = numbers(generator, tokens)
    exact = logits.double().requires_grad_()
    logp = torch.log_softmax(exact * factor, -1).gather(1, target[:, None])[:, 0]
    logp.backward(grad.double())
    chosen, lse, entropy = functions.softmax(logits, target, factor, entropy=True)
    assert functions.softmax(logits, target, factor)[2] is None
    shares = torch.softmax(exact.detach() * factor, -1)
    close(entropy, torch.special.entr(shares).sum(-1), torch.float32, atol=1e-5)
    close(chosen - lse, logp.detach(), torch.float32, atol=1e-5)
    close(lse, torch.logsumexp(exact.detach() * factor, -1), torch.float32, atol=1e-5)
    functions.softmax_backward_(logits, target, lse, grad, factor)
    assert exact.grad is not None
    close(logits, exact.grad, dtype, atol=2e-6)


@NEEDS_COMPILER
def test_a_logit_that_is_no_number_shows(functions):
    logits = torch.zeros(3, 70)
    logits[0, 5] = torch.nan
    logits[1, 69] = torch.nan
    _, lse, entropy = functions.softmax(logits, torch.tensor([1, 2, 3]), 1.0, entropy=True)
    assert lse.isnan().tolist() == entropy.isnan().tolist() == [True, True, False]
    with pytest.raises(ValueError, match="contiguous"):
        functions.softmax(torch.zeros(70, 3).T, torch.tensor([1, 2, 3]), 1.0)
