"""Upper bounds for what a stage's requests to models read, before the stage runs.

Texts on disk count as UTF-8 bytes: a token has at least one. Texts that a model will write count as the most tokens
that they can have, and texts that are elsewhere as the tokens that the recipe expects.
"""

import heapq
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from togi.core.records import Chat, Document, Message, Pair, Prompt, Record, Sample
from togi.stages.cost import Cost, Known

TURN = 8
"""The most tokens that a chat template writes around a turn, without its role."""
REQUEST = 40
"""The most tokens that a template adds to a conversation: a system turn of its own, and the start of the answer."""
ITEMS = 64
"""The most texts in one request for scores or vectors."""
LABEL = 18
"""The most bytes of the label before a question, an answer or a text in a list of examples, with its line breaks."""
SILENT = re.compile(r"\{#.*?#\}|\{%(?!-?\s*set\b).*?%\}", re.DOTALL)
"""The parts of a Jinja template that write nothing."""
PACKAGE = Path(__file__).parent.parent

Size = Callable[[Any], int]
"""The bytes that a request shows of a record."""


# --- sizes ------------------------------------------------------------------------------------------------------------


def text_size(*texts: str | None) -> int:
    """The bytes of several texts; None has none."""
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts if text)


def turns_size(messages: Iterable[Message]) -> int:
    """The bytes of turns, with what a template adds to each."""
    return sum(TURN + text_size(m.role, m.content, _extra(m)) for m in messages)


def _extra(message: Message) -> str:
    return json.dumps(message.extra, ensure_ascii=False) if message.extra else ""


def whole(record: Record) -> int:
    """The bytes of a record: all its turns and texts, without a reference answer."""
    match record:
        case Prompt() | Chat():
            return turns_size(record.messages)
        case Sample():
            return turns_size((*record.prompt.messages, Message("assistant", record.text)))
        case Pair():
            return turns_size((*record.prompt, *record.chosen, *record.rejected))
        case Document():
            return text_size(record.text)
    return 0


def answered(record: Record) -> int:
    """The bytes of a record with its reference answer, if it has one."""
    return whole(record) + (text_size(record.answer) if isinstance(record, Prompt) else 0)


def question(record: Record) -> int:
    """The bytes of a prompt's last question; of other records, those of all texts."""
    return text_size(record.text) if isinstance(record, Prompt) else whole(record)


def last_turns(record: Record) -> int:
    """The bytes of a conversation's last question and of its answer; of other records, those of all texts."""
    if isinstance(record, Prompt):
        return text_size(record.text, record.answer)
    if not isinstance(record, Chat):
        return whole(record)
    question = next((m.content for m in reversed(record.messages) if m.role == "user"), "")
    last = record.messages[-1]
    return text_size(question, last.content if last.role == "assistant" else "")


def document_part_sizes(document: Document, chars: int, *, every: bool) -> list[int]:
    """The bytes of the parts of a document, or (without `every`) of its first part, each with the document's title, if
    parts are as long as they may be: `chars` characters."""
    text, title = document.text, document.extra.get("title")
    size, above = text_size(text), text_size(title) if isinstance(title, str) else 0
    most = max(1, min(size, chars * text_size(max(text, default=""))))
    full, rest = divmod(size, most) if every else (1, 0)
    return [above + most] * full + [above + rest] * (rest > 0)


def prompt_size(own: str | Path | None, of: Literal["judge", "data"], name: str, language: str) -> int:
    """The bytes of a prompt file: the user's `own`, or the built-in one of a name and a language. All branches of a
    template count, its comments and tags do not."""
    path = PACKAGE / of / "prompts" / f"{name}.{language}.j2" if own is None else Path(own)
    if path.suffix not in (".j2", ".jinja"):
        return path.stat().st_size if path.is_file() else 0
    return text_size(SILENT.sub("", path.read_text(encoding="utf-8"))) if path.is_file() else 0


# --- sums -------------------------------------------------------------------------------------------------------------


def largest(sizes: Sequence[int], count: int) -> int:
    """The largest sum of `count` sizes. If there are fewer sizes, each is used equally often, give or take one."""
    if not sizes:
        return 0
    times, rest = divmod(count, len(sizes))
    return times * sum(sizes) + sum(heapq.nlargest(rest, sizes))


def shown(came: Known, records: int, size: Size = whole) -> int | None:
    """The most tokens that requests about `records` of the input records show of them, without the tokens that the
    records will gain (`came.added`); None if their lengths are unknown."""
    if sizes := [size(record) + more for record, more in records_of(came)]:
        return largest(sizes, records)
    return None if came.tokens is None or came.beside is None else math.ceil(records * came.tokens)


def records_of(came: Known) -> Iterator[tuple[Record, int]]:
    """Yields the records on disk that the input is made from, each with the tokens that it gains beyond those that all
    gain; none if some of them are unknown."""
    if came.beside is not None:
        yield from ((record, more) for found, more in ((came.samples, 0), *came.beside) for record in found)


def read(came: Known, records: int, around: int = 0, size: Size = whole) -> int | None:
    """The most tokens of one request about each of `records` input records, with `around` tokens of instructions."""
    found = shown(came, records, size)
    return None if found is None else found + records * (came.added + around + REQUEST)


def examples_shown(came: Known, shots: int, size: Size = last_turns, labels: int = 2) -> int | None:
    """The most tokens of a list of `shots` examples with their labels; None if their lengths are unknown."""
    found = shown(came, shots, size)
    return None if found is None else found + shots * (came.added + labels * LABEL)


def example_of_text(record: Record) -> int:
    """The bytes of an example with a text: the text, its question and its answer."""
    text = record.extra.get("text")
    return last_turns(record) + (text_size(text) if isinstance(text, str) else 0)


def beside(found: int | None, more: int | None, requests: int) -> int | None:
    """The tokens that requests read if each also shows `more` tokens; None if either number is unknown."""
    return None if found is None or more is None else found + requests * more


def ask_answers(cost: Cost, name: str, came: Known, answers: int, tokens: int) -> None:
    """Adds requests for the scores of `answers` answers to the prompts, each with at most `tokens` tokens."""
    ask_scores(cost, name, answers, read(came, answers, tokens + TURN))


def ask_scores(cost: Cost, name: str, items: int, read: int | None, batch: int | None = None) -> None:
    """Adds requests for the scores, or vectors, of `items` texts that come `batch` at a time."""
    if batch is None:
        cost.ask(name, -(-items // ITEMS), read, 0)
        return
    full, rest = divmod(items, batch)
    cost.ask(name, full * -(-batch // ITEMS) + -(-rest // ITEMS), read, 0)
