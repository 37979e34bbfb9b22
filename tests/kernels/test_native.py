"""Compiled norms, rotations and softmax, and their gradients, against float64."""

import shutil

import pytest
import torch

from togi.kernels.dispatch import kernels
from togi.kernels.native import NORM_TYPES, Native

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
ERRORS = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
"""Types with the largest relative error: a bfloat16 is rounded once, by half of its last place."""


@pytest.fixture(scope="module")
def functions() -> Native:
    found = kernels().native
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
def test_a_norm_and_its_gradients_are_rounded_once(functions, types, shift, rows, width):
    generator = torch.Generator().manual_seed(width)
    wide, weighted, narrow = types
    x = 3 * numbers(generator, rows, 1, width, dtype=wide)
    grad = numbers(generator, rows, 1, width, dtype=narrow)
    weight_F = numbers(generator, width, dtype=weighted)
    start, weight = x.double().requires_grad_(), weight_F.double().requires_grad_()
    exact = exact_norm(start, weight, shift)
    close(functions.norm(x, weight_F, 1e-2, shift, narrow), exact.detach(), narrow)
    exact.backward(grad.double())
    assert start.grad is not None
    assert weight.grad is not None
    grad_x, grad_weight = functions.norm_backward(x, weight_F, 1e-2, shift, grad, True)
    close(grad_x, start.grad, wide, atol=2e-6)
    assert grad_weight is not None
    close(grad_weight, weight.grad, weighted, atol=2e-5)
    assert functions.norm_backward(x, weight_F, 1e-2, shift, grad, False)[1] is None


@NEEDS_COMPILER
def test_the_gradient_of_a_norms_weight_is_the_same_with_any_number_of_threads(functions):
    generator = torch.Generator().manual_seed(5)
    x, grad = (numbers(generator, 500, 300) for _ in range(2))
    weight_F, before, found = numbers(generator, 300), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(functions.norm_backward(x, weight_F, 1e-5, 0.0, grad, True)[1])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@NEEDS_COMPILER
def test_no_rows_have_no_share_in_the_gradient_of_a_norms_weight(functions):
    none = torch.empty(0, 4)
    grad_weight = functions.norm_backward(none, torch.ones(4), 1e-5, 0.0, none, True)[1]
    assert grad_weight.tolist() == [0] * 4


# --- rotary positions -------------------------------------------------------------------------------------------------


@NEEDS_COMPILER
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("angles", ERRORS)
@pytest.mark.parametrize(("positions", "heads", "size"), [(1, 1, 2), (7, 3, 20), (130, 9, 64)])
def test_a_rotation_and_its_gradient_are_rounded_once(functions, dtype, angles, positions, heads, size):
    """The two halves of a row of angles differ here, though they are equal in every model: both must be read."""
    generator = torch.Generator().manual_seed(size)
    x = numbers(generator, positions, heads, size, dtype=dtype)
    angle_pair = numbers(generator, positions, size, dtype=angles), numbers(generator, positions, size, dtype=angles)
    grad = numbers(generator, heads, positions, size, dtype=dtype)
    start = x.double().requires_grad_()
    half = torch.cat((-start[..., size // 2 :], start[..., : size // 2]), -1)
    exact = (start * angle_pair[0].double()[:, None] + half * angle_pair[1].double()[:, None]).transpose(0, 1)
    exact.backward(grad.double())
    close(functions.rotate(x, angle_pair), exact.detach(), dtype)
    assert start.grad is not None
    close(functions.rotate(grad, angle_pair, back=True), start.grad, dtype)


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
