"""Log-probabilities of answers that share prompts, against the library's own logits of each text alone."""

import pytest
import torch
from tiny import TrueFloat64
from tiny_models import loaded

from togi.stages.evaluation.benchmarks.answer_logp_work import AnswerLogp

GROUPS = [
    ([5, 9, 23, 7], [[11, 12, 13], [11, 12, 40, 41, 42, 43], [50]]),
    ([8], [[9, 10], [10, 9]]),
    ([30, 31, 32], []),
    ([5, 9, 60], [[61, 62, 63, 64]]),
]
"""Prompts and answers: with a common beginning, of one token, without answers, and of one answer."""


def expected(net: torch.nn.Module, prompt: list[int], answer: list[int], temperature: float) -> float:
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logp_TV = torch.log_softmax(net(input_ids=ids).logits[0] / temperature, -1)
    return sum(logp_TV[len(prompt) + i - 1, token].item() for i, token in enumerate(answer))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tokens_at_once", [8, 4096])
def test_the_sums_of_answers_are_those_of_the_library(tokens_at_once: int, temperature: float):
    with TrueFloat64():
        net = loaded().net.double()
        found = AnswerLogp(net, tokens_at_once=tokens_at_once).sums(GROUPS, temperature)
        for (prompt, answers), own in zip(GROUPS, found, strict=True):
            wanted = [expected(net, prompt, answer, temperature) for answer in answers]
            assert own == pytest.approx(wanted, abs=1e-10)
