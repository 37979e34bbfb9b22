"""Benchmarks measure any number of subjects; a table holds each number once, with its interval."""

import pytest

from togi.core.errors import GraderError, InputError
from togi.core.records import Message, Prompt
from togi.evaluate.benchmarks.answers import CLOSED, LENGTH, Diversity
from togi.evaluate.benchmarks.base import Answered, Subject
from togi.evaluate.benchmarks.reward_scores import Graded
from togi.evaluate.statistics import Bootstrap

PROMPTS = [Prompt(id=f"p{i}", messages=(Message("user", f"Question {i}?"),)) for i in range(4)]
TEXTS = {
    "a": ["one two three", "four five six", "seven eight", "nine ten eleven"],
    "b": ["one two", "three", "four", "five"],
    "c": ["one", "two three four five", "six seven", "eight"],
}


def subject(name: str) -> Subject:
    texts = TEXTS[name]
    return Subject(name, texts, [len(text) < 10 for text in texts], [len(text.split()) for text in texts])


SUBJECTS = [subject(name) for name in TEXTS]
ANSWERED = Answered(PROMPTS, 1, Bootstrap(seed=1, resamples=100))


class Words:
    """Scores an answer by its number of words, and keeps the texts that it scored."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def score(self, items):
        self.asked += [text for _, text in items]
        return [float(len(text.split())) for _, text in items]


def test_three_subjects_are_each_measured_and_set_against_the_first():
    table = LENGTH.run(SUBJECTS, ANSWERED)
    assert (table.baseline, list(table.rows)) == ("a", ["b", "c"])
    found = {(figure.subject, figure.against): figure for figure in table.figures()}
    means = {name: sum(each.lengths) / 4 for name, each in zip(TEXTS, SUBJECTS, strict=True)}
    assert list(found) == [("a", None), ("b", None), ("b", "a"), ("c", None), ("c", "a")]
    assert {name: found[name, None].value for name in TEXTS} == means
    assert found["c", "a"].value == means["c"] - means["a"] and found["c", "a"].count == 4
    assert found["b", None].low <= means["b"] <= found["b", None].high
    assert found["b", None].extra["intervals"]["resamples"] == 100


def test_two_subjects_of_three_have_the_numbers_that_they_have_alone():
    for benchmark in (CLOSED, LENGTH, Diversity("en"), Graded("reward", Words())):
        alone = benchmark.run([SUBJECTS[0], SUBJECTS[2]], ANSWERED).rows["c"]
        assert benchmark.run(SUBJECTS, ANSWERED).rows["c"] == alone


def test_answers_to_one_prompt_are_cut_to_the_shortest_of_all_subjects():
    words = Words()
    table = Graded("held-out", words, cut=True).run(SUBJECTS, ANSWERED)
    assert words.asked == ["one", "four", "seve", "nine", "one", "three", "four", "five", "one", "two", "six", "eigh"]
    assert list(table.values) == ["a", "b", "c"] and [row.metric for row in table.rows["b"]][1].endswith("length read")


def test_an_answer_that_cannot_be_scored_names_its_prompt():
    class Refuses:
        def score(self, items):
            return [GraderError("too long")] * len(items)

    with pytest.raises(InputError, match="prompt p0: too long"):
        Graded("reward", Refuses()).run(SUBJECTS, ANSWERED)
