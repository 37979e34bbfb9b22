"""Each gate alone: what passes it, and the reason for which anything else fails."""

import re

import pytest

from togi.core.records import Completion, Message, Prompt
from togi.rewards.base import Attempt
from togi.rewards.echo import EchoCheck
from togi.rewards.language import LanguageCheck
from togi.rewards.length import LengthCheck
from togi.rewards.pattern import PatternCheck
from togi.rewards.repetition import RepetitionCheck, repeated_share
from togi.rewards.terminator import TerminatorCheck

END, START = "<|im_end|>", "<|im_start|>"
PROMPT = Prompt(id="p0", messages=(Message("user", "Hi"),))


def attempt(text: str, stop="terminator", token_ids=()) -> Attempt:
    completion = Completion(text=text, stop=stop, token_ids=tuple(token_ids))
    return Attempt(prompt=PROMPT, completion=completion, answer=text.partition(END)[0])


@pytest.mark.parametrize(
    ("text", "stop", "reason"),
    [
        (f"Hello{END}", "terminator", None),
        (f"Hello{END} \n\t", "terminator", None),
        (f"Hello\n{END}\n", "stop_string", None),
        (f"Hello{END}", "length", "length"),
        (f"Hello{END}", "error", "error"),
        ("Hello", "stop_string", "no_terminator"),
        ("Hello<|im_end|", "terminator", "no_terminator"),
        (f"Hello{END}{END}", "terminator", "several_terminators"),
        (f"Hello{END} and{END}", "terminator", "several_terminators"),
        (f"Hello{END} more", "terminator", "text_after_terminator"),
        (f"{START}user\nHello{END}", "terminator", "turn_start"),
        (END, "terminator", "empty"),
        (f" \n　{END}", "terminator", "empty"),
    ],
)
def test_terminator(text, stop, reason):
    check = TerminatorCheck(terminator=END, turn_starts=(START,))
    assert check(attempt(text, stop)) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("これは日本語の長い文章です。", None),
        ("This is a longer English text.", "language_en"),
        ("???? ???? ???? ????", "language_unsure"),
        ("OK", None),
    ],
)
def test_language(text, reason):
    def detect(text: str) -> tuple[str, float]:
        if "?" in text:
            return "ja", 0.1
        return ("en" if text.isascii() else "ja"), 0.9

    assert LanguageCheck(detect=detect, allowed=("ja",), min_confidence=0.5, min_chars=10)(attempt(text)) == reason


@pytest.mark.parametrize(
    ("unit", "reason"), [("chars", {0: "too_short", 2: None, 5: "too_long"}), ("tokens", {5: "too_long"})]
)
def test_length_counts_the_answer_without_terminator_or_the_sampled_tokens(unit, reason):
    check = LengthCheck(unit=unit, min=1, max=4)
    for length, wanted in reason.items():
        assert check(attempt(" " + "x" * length + END, token_ids=range(length))) == wanted


def test_repetition_of_characters_words_and_lines():
    chars = RepetitionCheck(unit="chars", size=3, max_share=0.5)
    assert chars(attempt("abcdefghij")) is None
    assert chars(attempt("はいはいはいはいはいはい")) == "repeated_ngrams"
    words = RepetitionCheck(unit="words", size=2, max_share=0.4)
    assert words(attempt("a b c d a b e f")) is None
    assert words(attempt("a b a b a b a b")) == "repeated_ngrams"
    lines = RepetitionCheck(size=50, max_line_share=0.3)
    assert lines(attempt("one\ntwo\nthree\n")) is None
    assert lines(attempt("one\ntwo\n one \n")) == "repeated_lines"


def test_nothing_to_repeat_is_no_repetition():
    assert repeated_share([]) == 0.0
    assert RepetitionCheck()(attempt("short")) is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("What is the best kind of coffee", "says_the_prompt"),
        ("what IS the best  kind of coffee?!", "says_the_prompt"),
        ("The best kind of coffee is the one that you drink with a friend.", None),
        ("Answer in one short sentence.", "says_the_prompt"),
        ("Answer the best kind in one short sentence", "says_the_prompt"),
        ("Beans roasted in the morning.", None),
        ("Espresso.", None),
        ("", None),
    ],
)
def test_echo(answer, reason):
    turns = (
        ("system", "Answer in one short sentence."),
        ("documents", "Beans roasted in the morning."),
        ("user", "What is the best kind of coffee?"),
    )
    prompt = Prompt(id="p", messages=tuple(Message(*turn) for turn in turns))
    completion = Completion(text=answer + END, stop="terminator")
    assert EchoCheck()(Attempt(prompt=prompt, completion=completion, answer=answer)) == reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("What do you think", "forbidden_pattern"),
        ("  how about you", "forbidden_pattern"),
        ("Fine, and you?", "forbidden_pattern"),
        ("Whatever you like.", None),
        ("I know how it works.", None),
        ("", None),
    ],
)
def test_pattern(answer, reason):
    assert PatternCheck(forbidden=re.compile(r"(?i)\?|^(what|how)\b"))(attempt(answer + END)) == reason
