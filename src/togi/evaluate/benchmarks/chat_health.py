"""The columns of the benchmark `chat_health`: visible defects of answers, counted without a judge."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from togi.evaluate.health import Detect, Health, health
from togi.evaluate.table import Metric

ENDED = Metric(
    name="ended properly", higher_is_better=True, share=True,
    note="not empty, ended by the template's terminator, no other turn begun",
)  # fmt: skip
CUT = Metric(name="cut off", higher_is_better=False, share=True, note="stopped by max_tokens")
EMPTY = Metric(name="empty", higher_is_better=False, share=True, note="only white space")
LEAKS = Metric(
    name="template leaks", higher_is_better=False, share=True, note="special tokens or headers of a chat template"
)
HEADERS = Metric(name="role headers", higher_is_better=False, share=True, note="a line opens a turn, such as `User:`")
DRIFT = Metric(
    name="language drift", higher_is_better=False, share=True,
    note="not in the requested language; counted if both languages can be detected",
)  # fmt: skip
MIXED = Metric(
    name="foreign letters", higher_is_better=False, share=True,
    note="Cyrillic, Japanese, Chinese or Korean letters found neither in the language nor in the prompt",
)  # fmt: skip
REPEATED = Metric(
    name="repetition", higher_is_better=False, most=1.0,
    note="share of 4-word n-grams (10-character ones in scripts without spaces) that repeat an earlier one",
)  # fmt: skip
LOOPED = Metric(
    name="loops", higher_is_better=False, share=True, note="ends in a piece that is repeated 3 times in a row"
)
CHARACTERS = Metric(name="length (characters)", least=0.0)
TOKENS = Metric(name="length (tokens)", least=0.0, note="by the model's own tokenizer")
COLUMNS = (ENDED, CUT, EMPTY, LEAKS, HEADERS, DRIFT, MIXED, REPEATED, LOOPED, CHARACTERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer without its terminator. `closed`: it ended properly; `cut`: max_tokens ended it; `tokens` is 0 if
    unknown."""

    text: str
    closed: bool
    cut: bool
    tokens: int = 0


Replies = Mapping[str, Sequence[Sequence[Reply | None]]]
"""By subject, then by prompt; None is a failed answer."""
Numbers = dict[str, dict[str, list[float | None]]]
"""By subject and column: the number of each answer, prompt after prompt; None without a number."""


@dataclass(frozen=True, slots=True)
class Checkup:
    """The result: the columns, their numbers, and how many answers of each subject contain each leaked string."""

    columns: Sequence[Metric]
    values: Numbers
    leaked: Mapping[str, Mapping[str, int]]


def check_up(prompts: Sequence[str], replies: Replies, detect: Detect, language: str | None = None) -> Checkup:
    """The health of all answers to `prompts` (see `health`). Adds a column of tokens if all counts are known."""
    counted = all(
        one is None or one.tokens or not one.text for own in replies.values() for group in own for one in group
    )
    columns = (*COLUMNS, TOKENS) if counted else COLUMNS
    values: Numbers = {}
    leaked: dict[str, Counter[str]] = {}
    for name, own in replies.items():
        found = [
            None if one is None else (one, health(prompt, one.text, detect, language))
            for prompt, group in zip(prompts, own, strict=True)
            for one in group
        ]
        values[name] = {
            column.name: [None if each is None else _value(column, *each) for each in found] for column in columns
        }
        leaked[name] = Counter(mark for each in found if each is not None for mark in each[1].leaks)
    return Checkup(columns, values, leaked)


def _value(column: Metric, reply: Reply, found: Health) -> float | None:
    """The number of one answer in one column. An empty answer has no number in columns that read its text."""
    always = {
        ENDED.name: reply.closed,
        CUT.name: reply.cut,
        EMPTY.name: found.empty,
        CHARACTERS.name: len(reply.text),
        TOKENS.name: reply.tokens,
    }
    if column.name in always:
        return float(always[column.name])
    read = {
        LEAKS.name: bool(found.leaks),
        HEADERS.name: found.headers,
        DRIFT.name: found.drift,
        MIXED.name: found.mixed,
        REPEATED.name: found.repeated,
        LOOPED.name: found.looped,
    }[column.name]
    return None if found.empty or read is None else float(read)
