"""Grading in parallel with sampling: when it happens, in what order; failures and stops are reported as without it."""

import threading
from collections.abc import Sequence
from threading import Event, get_ident
from typing import Any

import pytest
import torch
from grpo_runs import Bench, lines, weights

from togi.client.endpoint import Endpoint
from togi.core.errors import InputError
from togi.core.records import Completion, Message, Prompt
from togi.core.settings import PromptsRef
from togi.core.sources import ModelSource
from togi.rewards.base import Attempt, Term
from togi.rewards.combine import Reward
from togi.stages.context import Resolved
from togi.stages.training import grpo_rollouts_work
from togi.stages.training.grading_work import beside_sampling, graded_columns, is_elsewhere
from togi.stages.training.grpo_work import run

WAIT = 60  # seconds; reached only if something hangs


class Grader:
    """A grader that waits for permission to grade, and records what it is asked."""

    def __init__(self) -> None:
        self.may, self.begun = Event(), Event()
        self.asked: list[str] = []
        self.where: set[tuple[int, int]] = set()

    def __call__(self, attempts: Sequence[Attempt]) -> list[float]:
        self.begun.set()
        assert self.may.wait(WAIT)
        self.asked += [attempt.answer for attempt in attempts]
        self.where.add((get_ident(), torch.get_num_threads()))
        return [float(len(attempt.answer)) for attempt in attempts]


def reward(grader: Any) -> Reward:
    return Reward(gates=(), terms=(Term(name="length", grader=grader),), terminator="</s>")


def group(name: str, *texts: str) -> tuple[Prompt, list[Completion]]:
    """Returns a prompt and answers to it."""
    prompt = Prompt(id=name, messages=(Message("user", name),))
    return prompt, [Completion(text=text, stop="terminator") for text in texts]


def test_groups_are_graded_in_order_while_others_are_sampled():
    grader = Grader()
    with beside_sampling(reward(grader)) as grade:
        first, second = grade(*group("a", "x", "xx")), grade(*group("b", "y"))
        assert grader.begun.wait(WAIT) and not first.done()  # sampling does not wait for the grader
        grader.may.set()
        assert [row.total for row in second.result(WAIT)] == [1.0]
        assert [row.total for row in first.result(WAIT)] == [1.0, 2.0]
    assert grader.asked == ["x", "xx", "y"]
    ((thread, threads),) = grader.where
    assert thread != get_ident() and threads == torch.get_num_threads()


def test_what_a_grader_raises_is_raised_where_its_answers_are_wanted():
    def broken(attempts: Sequence[Attempt]) -> list[float]:
        raise OSError("the disk is full")

    with beside_sampling(reward(broken)) as grade:
        found = grade(*group("a", "x"))
        with pytest.raises(OSError, match="disk is full"):
            found.result(WAIT)


def test_after_the_block_nothing_more_is_graded():
    grader, before = Grader(), set(threading.enumerate())
    with beside_sampling(reward(grader)) as grade:
        grade(*group("a", "x"))
        assert grader.begun.wait(WAIT)
        late = grade(*group("b", "y"))  # the thread has not started on it when the block ends
        (thread,) = set(threading.enumerate()) - before
    grader.may.set()
    thread.join(WAIT)
    assert not thread.is_alive() and grader.asked == ["x"]
    assert late.cancelled()


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("graded"))


def place(device: str = "", url: str = "") -> Resolved:
    endpoint = Endpoint(name="rm", urls=(url,), model="rm", protocol="togi") if url else None
    return Resolved("scorer", source=ModelSource(kind="path", name="rm", device=device), endpoint=endpoint)


@pytest.mark.parametrize(
    ("places", "beside"),
    [
        ({}, False),
        ({"one": {}}, False),
        ({"one": {"device": "cpu"}}, False),
        ({"one": {"url": "http://127.0.0.1:1/v1"}}, True),
        ({"one": {"device": "meta"}}, True),
        ({"one": {"device": "meta"}, "two": {}}, False),
    ],
)
def test_only_models_that_are_all_elsewhere_grade_beside_sampling(bench, places, beside):
    context = bench.context("places")
    context.inputs |= {f"${name}": place(**where) for name, where in places.items()}
    terms: list[dict[str, Any]] = [{"type": "model", "scorer": f"${name}", "name": name} for name in places]
    more = {"reward": {"terms": terms}} if terms else {}
    assert is_elsewhere(context, bench.settings(**more)) is beside


def test_a_policy_that_is_graded_beside_sampling_learns_the_same(bench, monkeypatch):
    run(bench.settings(), here := bench.context("here"))
    monkeypatch.setattr(grpo_rollouts_work, "is_elsewhere", lambda context, settings: True)
    run(bench.settings(), there := bench.context("there"))
    assert weights(there.folder) == weights(here.folder)
    assert lines(there.folder) == lines(here.folder)


ASKING = """
def right(completions, answer):
    return [0.0] * len(completions)
"""


def test_a_function_that_needs_a_column_is_refused_before_anything_is_sampled(tmp_path):
    bench = Bench(tmp_path)
    (tmp_path / "asking.py").write_text(ASKING)
    term = {"type": "function", "file": str(tmp_path / "asking.py"), "name": "right", "style": "trl"}
    settings = bench.settings(reward={"terms": [term]})
    with pytest.raises(InputError, match=r"right asks for `answer`, and none of the [0-9]+ rows has one"):
        bench.at_work(settings)
    names = [each.rows for each in graded_columns(settings.model_copy(update={"validation": PromptsRef("$v")}), [], [])]
    assert names == ["rows", "validation rows"]
