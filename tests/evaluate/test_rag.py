"""The numbers of grounded answers, against counts by hand."""

import pytest

from togi.data.grounded_questions import GroundedQuestion
from togi.evaluate.benchmarks.rag import COLUMNS, GroundedAnswer, id_values, rag_parts, rag_values, values_of
from togi.evaluate.rouge import words
from togi.evaluate.statistics import Bootstrap
from togi.text.grounded import Relevant, Shown

BOOTSTRAP = Bootstrap(seed=2**40 + 7, resamples=200)
DOCUMENTS = tuple(Shown(None, f"text {number}") for number in range(4))


def question(name: str, relevant: tuple[int, ...] | None, **more) -> GroundedQuestion:
    domain = None if relevant is None else "in_domain" if relevant else "out_of_domain"
    given = {"id": name, "question": "Why?", "documents": DOCUMENTS, "owner": name, "domain": domain, **more}
    return GroundedQuestion(relevant=relevant, **given)


@pytest.mark.parametrize(
    ("named", "right", "wanted"),
    [
        ((2, 0), (0, 2), (1, 1, 0, 0)),
        ((1,), (0, 3), (0, 0, 1, 1)),
        ((0, 1), (0,), (0, 2 / 3, 1, 0)),
        ((), (), (1, 1, 0, 0)),
        ((1,), (), (0, 0, 1, None)),
        ((), (1, 2), (0, 0, 2, None)),
    ],
    ids=["same", "other", "one-more", "none", "should-be-none", "nothing-named"],
)
def test_lists_of_ids_are_compared(named, right, wanted):
    assert list(id_values(named, right).values()) == [
        None if value is None else pytest.approx(value) for value in wanted
    ]


def test_the_numbers_of_an_answer():
    answer = GroundedAnswer(text="a b c", relevant=Relevant((1,), unknown=("9",)), correct=True, unsupported=0.25)
    found = values_of(question("q", (1, 2), reference="a c d"), answer, words)
    assert found["ROUGE-L"] == pytest.approx(2 / 3) and found["correct"] == 1 and found["unsupported"] == 0.25
    assert (found["ids: exact"], found["ids: not readable"], found["ids: unknown"]) == (0, 0, 1)


def test_what_is_not_known_is_no_number():
    failed = values_of(question("q", (1,), reference="a"), GroundedAnswer(text=None), words)
    assert set(failed.values()) == {None}
    at_once = values_of(question("q", (1,)), GroundedAnswer(text="a", grounded=False, correct=False), words)
    assert {name for name, value in at_once.items() if value is not None} == {"correct"}
    unread = values_of(question("q", (1,)), GroundedAnswer(text="a"), words)
    assert {name: value for name, value in unread.items() if value is not None} == {"ids: not readable": 1}
    nobody_says = values_of(question("q", None), GroundedAnswer(text="a", relevant=Relevant((1,))), words)
    assert {name for name, value in nobody_says.items() if value is not None} == {"ids: not readable", "ids: unknown"}


def test_questions_in_domain_and_out_of_it_have_tables_of_their_own():
    questions = [question("a", (1,)), question("b", (2,)), question("c", ()), question("d", None)]
    said = [Relevant((1,)), Relevant((1,)), Relevant(()), Relevant(())]
    answers = {"m": [GroundedAnswer(text="x", relevant=each) for each in said]}
    values = rag_values(questions, answers, words, COLUMNS)
    inside, outside = rag_parts(questions, values, COLUMNS, BOOTSTRAP)
    assert (inside.title, inside.note, outside.note) == ("in domain", "2 questions", "1 question")
    cell = inside.cells["m"]["ids: exact"]
    assert (cell.value, cell.n) == (0.5, 2) and cell.low is not None and cell.low < 0.5
    assert outside.cells["m"]["ids: exact"].value == 1 and outside.cells["m"]["correct"].value is None
