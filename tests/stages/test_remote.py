"""To stages, models on servers look like models in this process."""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from togi.client.answers import Answer, Choice, Failure, Scores, Vectors
from togi.client.requests import AnyRequest
from togi.core.errors import GraderError
from togi.core.records import Message, Prompt, SamplingParams
from togi.stages.remote import (
    END,
    RemoteChooser,
    RemoteCompleter,
    RemoteEmbedder,
    RemoteGenerator,
    RemoteScorer,
)

BROKEN = Failure(reason="broken", message="half an answer")


class Fake:
    """Returns the given answers and records the requests."""

    name = "teacher"

    def __init__(self, *answers) -> None:
        self.answers = list(answers)
        self.asked: list[AnyRequest] = []

    def ask(self, requests: Iterable[AnyRequest]) -> Iterator:
        for request, answer in zip(requests, self.answers, strict=True):
            self.asked.append(request)
            yield answer


def said(*choices: tuple[str, str]) -> Answer:
    return Answer(choices=tuple(Choice(text=text, finish=finish) for text, finish in choices))


def prompt(name: str, text: str = "Why?") -> Prompt:
    return Prompt(id=name, messages=(Message("user", text),))


def test_answers_end_as_local_ones_do_and_a_failed_request_is_no_answer():
    fake = Fake(said(("So.", "stop"), ("So it", "length")), BROKEN, said(("A", "stop_string"), ("B", "stop")))
    found = RemoteGenerator(fake).generate([prompt(name) for name in "abc"], SamplingParams(n=2, seed=7))
    assert [[(one.text, one.stop) for one in group] for group in found] == [
        [(f"So.{END}", "terminator"), ("So it", "length")],
        [("", "error"), ("", "error")],
        [("A", "stop_string"), (f"B{END}", "terminator")],
    ]


def test_seeds_belong_to_prompts_and_greedy_answers_have_none():
    fake = Fake(*[said(("So.", "stop"))] * 3)
    RemoteGenerator(fake).generate([prompt("a"), prompt("b"), prompt("a")], SamplingParams(seed=7))
    first, second, again = (request.seed for request in fake.asked)
    assert first == again != second and 0 <= first < 2**31
    greedy = Fake(said(("So.", "stop")))
    (found,) = RemoteGenerator(greedy).generate([prompt("a")], SamplingParams(seed=7, temperature=0.0, n=3))
    assert greedy.asked[0].seed is None and greedy.asked[0].params.n == 1  # one is requested and used for all
    assert [one.text for one in found] == [f"So.{END}"] * 3


def test_a_greedy_question_that_is_put_again_is_another_request():
    fake = Fake(said(("So.", "stop")))
    for temperature in (0.0, 0.7):
        RemoteGenerator(fake, repeat=2).generate([prompt("a")], SamplingParams(seed=7, temperature=temperature))
    assert [request.index for request in fake.asked] == [2, 0]  # sampled requests already differ in their seeds


@pytest.mark.parametrize(("reason", "refused"), [("refused", True), ("filtered", True), ("server", False)])
def test_what_a_server_will_not_answer_is_marked(reason, refused):
    fake = Fake(Failure(reason=reason, message="no"))
    ((found,),) = RemoteGenerator(fake).generate([prompt("a")], SamplingParams())
    assert (found.stop, found.refused) == ("error", refused)


def test_continuations_hold_no_terminator():
    fake = Fake(said((" upon", "stop")), said((" a", "length")))
    found = RemoteCompleter(fake).complete(["Once", "Such"], SamplingParams(), [[1], [2]])
    assert [(group[0].text, group[0].stop) for group in found] == [(" upon", "stop_string"), (" a", "length")]
    assert [request.prompt for request in fake.asked] == ["Once", "Such"]


def likeliest(**tokens: float) -> Answer:
    top = tuple((token.replace("_", " "), logp) for token, logp in tokens.items())
    return Answer(choices=(Choice(text="x", finish="length", top=(top,)),))


def test_a_choice_is_read_among_the_likeliest_first_tokens():
    fake = Fake(likeliest(yes=-0.5, _no=-1.5), likeliest(_yes=-1.0, y=-1.0, n=-3.0), likeliest(yes=-0.1, So=-4.0))
    asked = [(Message("user", "Is it?"),)] * 3
    found = RemoteChooser(fake).margins(asked, "yes", "no")
    assert found == pytest.approx([1.0, -1.0 + math.log(2) + 3.0, 3.9])  # the last: `no` is at most as likely as So
    assert all(request.params.max_tokens == 1 and request.params.logprobs == 20 for request in fake.asked)
    mixed = Fake(likeliest(yes=-0.5, no=-1.5), BROKEN, likeliest(Well=-0.1))
    good, broken, neither = RemoteChooser(mixed).margins(asked, "yes", "no")
    assert good == pytest.approx(1.0)
    assert isinstance(broken, GraderError) and "half an answer" in str(broken)
    assert isinstance(neither, GraderError) and "neither with 'yes' nor with 'no'" in str(neither)
    assert "'Well'" in str(neither)


ITEMS = [((Message("user", "Why?"),), "So."), ((Message("user", "How?"),), "Thus.")]


def test_scores_are_one_request_and_failures_are_never_zeros():
    fake = Fake(Scores(scores=(1.25, "it is too long")))
    first, second = RemoteScorer(fake).score(ITEMS)
    assert first == 1.25 and isinstance(second, GraderError) and "too long" in str(second)
    assert fake.asked[0].items[1] == (Message("user", "How?"), Message("assistant", "Thus."))
    failed = RemoteScorer(Fake(BROKEN)).score(ITEMS)
    assert all(isinstance(each, GraderError) and "half an answer" in str(each) for each in failed)
    rendered = Fake(Scores(scores=(1.0, 2.0)))
    RemoteScorer(rendered, lambda messages: (len(messages), 7)).score(ITEMS)
    assert rendered.asked[0].items == ((2, 7), (2, 7))


def test_many_scores_are_several_requests_at_once_and_one_that_fails_costs_its_own():
    given = (*(0.5,) * 64,), (*(1.5,) * 2,)
    fake = Fake(Scores(scores=given[0]), BROKEN, Scores(scores=given[1]))
    found = RemoteScorer(fake).score(ITEMS[:1] * 130)
    assert [len(request.items) for request in fake.asked] == [64, 64, 2]
    assert found[:64] == list(given[0]) and found[128:] == list(given[1])
    assert all(isinstance(each, GraderError) for each in found[64:128])


def test_embeddings_have_length_one_and_the_prefix_of_the_model():
    fake = Fake(*[Vectors(rows=np.array(rows, np.float32)) for rows in ([[3, 4], [0, 2]], [[5, 0]])])
    found = RemoteEmbedder(fake, "query: ", batch=2).embed(["a", "b", "c"])
    assert np.allclose(found, [[0.6, 0.8], [0, 1], [1, 0]])
    assert [request.texts for request in fake.asked] == [("query: a", "query: b"), ("query: c",)]
