"""Rules that drop a record: small pure functions of its text, each with a short constant reason."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from togi.core.records import Drop, Record
from togi.text.compare import jaccard, normalise, shingles
from togi.text.script import is_spaced, script_share

R = TypeVar("R", bound=Record)

WORDS_IN_A_ROW = 3
CHARS_IN_A_ROW = 6
_EN = """
what why how who whom whose when where which can could would should is are was were do does did will may explain
describe write give list name compare summarize summarise tell suggest create find show define translate discuss
identify outline provide calculate draw make help please imagine rewrite recommend
"""
_RU = """
что кто как почему зачем где когда куда откуда какой какая какое какие сколько чем чей можно можешь является объясни
объясните опиши опишите напиши напишите назови назовите расскажи расскажите составь составьте дай перечисли перечислите
сравни сравните придумай придумайте предложи предложите переведи найди покажи помоги
"""
ASKING = {"en": _EN.split(), "ru": _RU.split()}
ASKING_ENDS_JA = (
    "か",
    "ください",
    "下さい",
    "なさい",
    "せよ",
    "しろ",
    "よ",
    "ますか",
    "たい",
    "ほしい",
    "教えて",
    "の",
    "何",
)


@dataclass(frozen=True, slots=True)
class Filter:
    """`fails(text)` is True for a record to drop; `reason` is the drop's reason."""

    reason: str
    fails: Callable[[str], bool]


def text_of(record: Any) -> str:
    """The text that filters check: a prompt's question, a conversation's last answer, a sample's answer."""
    return record.text


def run_filters(
    records: Sequence[R], filters: Sequence[Filter], *, stage: str, text: Callable[[R], str] = text_of
) -> tuple[list[R], list[Drop]]:
    """The records that pass all filters, in order, and a drop with the first failed one's reason for each other."""
    kept: list[R] = []
    drops: list[Drop] = []
    for record in records:
        reason = first_failure(text(record), filters)
        if reason is None:
            kept.append(record)
        else:
            drops.append(Drop(id=record.id, stage=stage, reason=reason))
    return kept, drops


def first_failure(text: str, filters: Sequence[Filter]) -> str | None:
    """The reason of the first filter that the text fails, or None."""
    return next((f.reason for f in filters if f.fails(text)), None)


def too_short(chars: int) -> Filter:
    """Fewer than `chars` characters, without surrounding spaces."""
    return Filter("too_short", lambda text: len(text.strip()) < chars)


def too_long(chars: int) -> Filter:
    """More than `chars` characters, without surrounding spaces."""
    return Filter("too_long", lambda text: len(text.strip()) > chars)


def repeated_ngrams(max_share: float) -> Filter:
    """More than `max_share` of the n-grams repeat earlier ones."""
    return Filter("repeated_ngrams", lambda text: repeated_share(text) > max_share)


def repeated_share(text: str) -> float:
    """Share of n-grams that repeat earlier ones: 3 words, or 6 characters in scripts without spaces. 0 for short
    texts."""
    plain = normalise(text)
    units, n = (plain.split(), WORDS_IN_A_ROW) if is_spaced(plain) else (plain, CHARS_IN_A_ROW)
    grams = list(zip(*(units[i:] for i in range(n)), strict=False))
    return 1 - len(dict.fromkeys(grams)) / len(grams) if grams else 0.0


def wrong_language(language: str, detect: Callable[[str], tuple[str, float]], confidence: float = 0.5) -> Filter:
    """Not in `language` according to `detect` (text -> code, confidence), such as `togi.text.language.detect`."""

    def fails(text: str) -> bool:
        found, share = detect(text)
        return found != language or share < confidence

    return Filter("wrong_language", fails)


def wrong_script(language: str, min_share: float = 0.6) -> Filter:
    """Fewer than `min_share` of the letters are of the language's writing system. Needs no detector."""
    return Filter("wrong_language", lambda text: script_share(text, language) < min_share)


def copy_of_seed(seeds: Sequence[str], max_jaccard: float = 0.6, n: int = 4) -> Filter:
    """Equal to a seed, or more similar to one than `max_jaccard`, by character n-grams."""
    known = [shingles(seed, n) for seed in seeds]

    def fails(text: str) -> bool:
        grams = shingles(text, n)
        return any(jaccard(grams, other) > max_jaccard for other in known)

    return Filter("copy_of_seed", fails)


def not_a_question(language: str) -> Filter:
    """Neither a question nor a request, judged by question mark, first word (en, ru) or ending (ja)."""
    return Filter("not_a_question", lambda text: not asks(text, language))


def asks(text: str, language: str) -> bool:
    """Whether a text looks like a question or a request. In languages without a word list only the question mark
    counts."""
    if any(mark in text for mark in "?？"):
        return True
    if language == "ja":
        return text.strip().rstrip("。．.!！」』").endswith(ASKING_ENDS_JA)
    words = normalise(text).split()
    return bool(words) and words[0] in ASKING.get(language, ())


def contains(strings: Sequence[str], reason: str) -> Filter:
    """Contains one of the strings: labels of the few-shot prompt, markup, addresses."""
    return Filter(reason, lambda text: any(string in text for string in strings))
