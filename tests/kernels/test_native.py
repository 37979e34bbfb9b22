"""The compiled softmax of a head, and its gradient, against float64."""

import shutil

import pytest
import torch

from togi.kernels.dispatch import kernels
from togi.kernels.native import Native

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
