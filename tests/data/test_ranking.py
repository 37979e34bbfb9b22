"""Rejection sampling: which answers are chosen or rejected, and the reason for each drop."""

from dataclasses import replace
from typing import Any

import pytest

from togi.core.records import Completion, Drop, Message, Pair, Prompt, Sample, Verdict
from togi.data.ranking import Ranked, Rules, Wins, best_chats, pairs_of, rank

PROMPT = Prompt(id="p", messages=(Message("system", "s"), Message("user", "Why?")), answer="The right one.")
RULES = Rules(stage="pairs", producer="pairs-0", by="rm", best=1, worst=2)


def answers(scores: list[float], texts: list[str] | None = None, prompt: Prompt = PROMPT) -> list[Ranked]:
    found = []
    for index, score in enumerate(scores):
        text = texts[index] if texts else f"answer {index}"
        done = Completion(text=text, stop="terminator")
        found.append(Ranked(Sample(id=f"s{index}", prompt=prompt, completion=done, model="a", index=index), score))
    return found


def sides(made: list[Pair | Drop]) -> list[tuple[str, str]]:
    return [each.parents for each in made if isinstance(each, Pair)]  # type: ignore[misc]


def drops(made: list[Pair | Drop]) -> list[tuple[str, str]]:
    return [(each.id, each.reason) for each in made if isinstance(each, Drop)]


def made_of(
    scores: list[float], texts: list[str] | None = None, prompt: Prompt = PROMPT, **changes: Any
) -> list[Pair | Drop]:
    return list(pairs_of(rank(answers(scores, texts, prompt)), replace(RULES, **changes)))


def test_of_seven_answers_the_best_stands_against_the_two_worst():
    """The model card's recipe: of 7 answers, the 2 worst are rejected. That the best one is chosen is our reading."""
    made = made_of([0.1, 3.0, -2.0, 0.5, -1.0, 0.2, 0.3])
    assert sides(made) == [("s1", "s2"), ("s1", "s4")]
    first = made[0]
    assert isinstance(first, Pair) and first.margin == 5.0 and first.prompt == PROMPT.messages
    assert (first.chosen[0].content, first.rejected[0].content) == ("answer 1", "answer 2")
    assert first.extra == {
        **{"by": "rm", "chosen_score": 3.0, "rejected_score": -2.0, "chosen_model": "a", "rejected_model": "a"}
    }
    assert len({each.id for each in made}) == 2


def test_equal_scores_are_ranked_by_the_number_of_the_answer():
    assert [each.sample.id for each in rank(answers([1, 2, 2, 1]))] == ["s1", "s2", "s0", "s3"]
    two = [*answers([1, 1]), *(Ranked(replace(r.sample, id=f"{r.sample.id}b"), r.score) for r in answers([1, 1]))]
    assert [each.sample.id for each in rank(two)] == ["s0", "s0b", "s1", "s1b"]  # ties keep the order of the models


def test_no_answer_is_ever_on_both_sides():
    assert drops(made_of([1, 2])) == [("p", "too_few")] == drops(made_of([1.0]))
    for count in range(1, 9):
        for best in range(1, 4):
            for worst in range(1, 4):
                made = made_of([float(i) for i in range(count)], best=best, worst=worst)
                chosen, rejected = ({pair[side] for pair in sides(made)} for side in (0, 1))
                assert not chosen & rejected
                assert len(sides(made)) == (best * worst if count >= best + worst else 0)


def test_each_of_the_best_meets_each_of_the_worst():
    assert sides(made_of([5, 4, 3, 2, 1], best=2)) == [("s0", "s4"), ("s0", "s3"), ("s1", "s4"), ("s1", "s3")]


@pytest.mark.parametrize(
    ("scores", "texts", "changes", "expected"),
    [
        ([1, 1, 1], None, {}, [("s2", "tie"), ("s1", "tie")]),
        ([2, 1, 0], ["Paris.", "paris", "Rome."], {}, [("s1", "same_text")]),
        ([2, 1, 0], ["...", "!!!", "Rome."], {}, []),  # only punctuation: not the same text
        ([2, 1, 0], ["x < 5", "x > 5", "😀"], {}, []),  # symbols tell texts apart
        ([0.7, 0.4, 0.1], None, {"min_gap": 0.3}, []),  # 0.7 - 0.4 < 0.3 in floating point
        ([2, 1.5, 0], None, {"min_gap": 1.0}, [("s1", "small_gap")]),
        ([2, 1, 0], None, {"min_gap": 1.0}, []),
        ([2, 1, 0], None, {"min_chosen": 2.5}, [("s2", "chosen_too_low"), ("s1", "chosen_too_low")]),
        ([2, 1, 0], None, {"max_rejected": 0.5}, [("s1", "rejected_too_high")]),
    ],
)
def test_a_pair_that_says_nothing_is_dropped_under_its_reason(scores, texts, changes, expected):
    made = made_of(scores, texts, **changes)
    assert drops(made) == expected and len(sides(made)) == 2 - len(expected)


def test_the_reference_is_chosen_where_it_is_asked_for():
    made = made_of([2, 1, 0], reference=True)
    assert sides(made) == [("p", "s2"), ("p", "s1")]
    assert all(
        isinstance(each, Pair) and each.margin is None and each.chosen[0].content == "The right one." for each in made
    )
    assert drops(made_of([2, 1, 0], ["a", "the right one", "b"], reference=True)) == [("s1", "same_text")]
    assert drops(made_of([2, 1, 0], prompt=replace(PROMPT, answer=" "), reference=True)) == [("p", "no_reference")]
    assert drops(made_of([2], reference=True)) == [("p", "too_few")]
    assert len(sides(made_of([2, 1], reference=True))) == 2  # the reference is chosen, so both answers can be rejected


def test_the_best_answers_are_chats():
    chats = best_chats(rank(answers([1, 3, 2])), replace(RULES, best=2))
    assert [chat.parents for chat in chats] == [("s1",), ("s2",)]
    assert chats[0].messages == (*PROMPT.messages, Message("assistant", "answer 1"))
    assert chats[0].extra == {"score": 3, "by": "rm", "model": "a"}
    assert [chat.parents for chat in best_chats(rank(answers([1, 3, 2])), replace(RULES, best=3, min_chosen=2))] == [
        ("s1",),
        ("s2",),
    ]


def verdict(answers: tuple[str, ...], **said: Any) -> Verdict:
    return Verdict(id="v", prompt="p", answers=answers, judge="j", text="", **said)


def test_verdicts_become_the_share_of_comparisons_that_an_answer_won():
    wins = Wins()
    for each in (
        verdict(("a", "b"), winner="a"),
        verdict(("b", "a"), winner="b", order=1),
        verdict(("a", "c"), winner="a"),
        verdict(("c", "b"), outcome="tie"),
        verdict(("a", "b"), outcome="unreadable"),
        verdict(("b", "a"), outcome="failed"),
        verdict(("c", "a"), probability=0.25),
    ):
        wins.take(each)
    assert wins.score("a") == pytest.approx((1 + 0 + 1 + 0.75) / 4)
    assert wins.score("b") == pytest.approx((0 + 1 + 0.5) / 3)
    assert wins.score("c") == pytest.approx((0 + 0.5 + 0.25) / 3)
    assert wins.score("d") is None


def test_grades_of_several_rounds_are_averaged_and_unread_ones_count_for_nothing():
    wins = Wins()
    for score, outcome in ((4.0, "grade"), (None, "unreadable"), (5.0, "grade")):
        wins.take(verdict(("a",), score=score, outcome=outcome))
    assert wins.score("a") == 4.5
    wins.take(verdict(("b",), outcome="failed"))
    assert wins.score("b") is None
