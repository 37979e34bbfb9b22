import pytest

from togi.core.errors import InputError
from togi.core.records import Drop, Message, Pair, Prompt
from togi.data.pairs import build_pair, cut_to_shorter
from togi.data.prompts_fewshot import Draft, choose_shots, fewshot_text, parse_draft, stop_strings

PROMPT = Prompt(id="p", messages=(Message("user", "Q"),))


def example(question: str, answer: str | None = None) -> Prompt:
    return Prompt(id=question, messages=(Message("user", question),), answer=answer)


def test_a_pair() -> None:
    pair = build_pair(PROMPT, " good\n", "bad", stage="pairs")
    assert isinstance(pair, Pair)
    assert (pair.prompt, pair.parents) == (PROMPT.messages, ("p",))
    assert (pair.chosen, pair.rejected) == ((Message("assistant", "good"),), (Message("assistant", "bad"),))
    assert build_pair(PROMPT, "good", "bad", stage="pairs") == pair
    other = build_pair(PROMPT, "good", "bad", stage="pairs", index=1)
    assert other.id != pair.id


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (" ", "x", "empty_answer"),
        ("x", "", "empty_answer"),
        ("Yes.", "yes!", "equal_answers"),
        ("?", "?", "equal_answers"),
    ],
)
def test_no_pair(chosen: str, rejected: str, reason: str) -> None:
    drop = build_pair(PROMPT, chosen, rejected, stage="pairs")
    assert isinstance(drop, Drop) and (drop.stage, drop.reason) == ("pairs", reason)


def test_marks_alone_can_differ() -> None:
    assert isinstance(build_pair(PROMPT, "!", "?", stage="pairs"), Pair)
    assert isinstance(build_pair(PROMPT, "Use C#.", "Use C++.", stage="pairs"), Pair)


def test_cut_to_shorter() -> None:
    assert cut_to_shorter([1, 2, 3], [4]) == ([1], [4])
    assert cut_to_shorter("ab", "cde") == ("ab", "cd")


def test_fewshot_text() -> None:
    shots = [example("What is\n up?", "Not much."), example("Why?", "So.")]
    assert fewshot_text(shots, "en", "question") == "Question: What is up?\n\nQuestion: Why?\n\nQuestion:"
    assert fewshot_text(shots[1:], "ja", "question_answer") == "質問: Why?\n回答: So.\n\n質問:"
    with pytest.raises(InputError, match="example Q has no answer"):
        fewshot_text([example("Q")], "en", "question_answer")


def test_choose_shots() -> None:
    examples = [example(str(i)) for i in range(9)]
    shots = choose_shots(examples, 4, 17, "batch", 0)
    assert len(dict.fromkeys(s.id for s in shots)) == 4
    assert shots == choose_shots(examples, 4, 17, "batch", 0) != choose_shots(examples, 4, 17, "batch", 1)
    assert len(choose_shots(examples[:2], 4, 1)) == 2


@pytest.mark.parametrize(
    ("text", "style", "ended", "draft"),
    [
        (" Why is it so?\n\nQuestion: more", "question", False, Draft("Why is it so?")),
        (" Why is it so?", "question", True, Draft("Why is it so?")),
        (" Why is it", "question", False, "no_end"),
        ("\n Why?\n", "question", False, Draft("Why?")),
        (" \n", "question", True, "empty"),
        ("", "question", True, "empty"),
        (" Why? Answer: so", "question", True, "label_inside"),
        (" Why? Question: How?", "question", True, "label_inside"),
        (" Why?\nAnswer: So\nit is.\n\nQ", "question_answer", False, Draft("Why?", "So it is.")),
        (" Why?\nAnswer: So.\nQuestion: How?", "question_answer", False, Draft("Why?", "So.")),
        (" Why?\nAnswer: So", "question_answer", False, "no_end"),
        (" Why?\n\nAnswer: So.", "question_answer", True, "no_answer"),
        (" Why?\nAnswer: So. Answer: No.", "question_answer", True, "label_inside"),
    ],
)
def test_parse_draft(text: str, style, ended: bool, draft: Draft | str) -> None:
    assert parse_draft(text, "en", style, ended) == draft


def test_stop_strings() -> None:
    assert stop_strings("ja", "question") == ("\n",)
    assert stop_strings("ja", "question_answer") == ("\n\n", "\n質問:")
