"""The methods of `synthesize` that ask about documents: `qa` makes questions and answers, as text for instruction
pre-training (arXiv 2406.14491) or as chats; `grounded` makes dialogues over several documents."""

import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np

from togi.core.aside import Aside
from togi.core.errors import InputError
from togi.core.records import Chat, Document, Message, Prompt, Record
from togi.core.seeds import derive, make_id
from togi.data.chunks import chunks, halves
from togi.data.prompt_files import prompt_of
from togi.data.prompts_fewshot import choose_shots
from togi.data.prompts_texts import closing_strings, open_question
from togi.data.question_pairs import QuestionPair, read_question_pairs, support
from togi.stages.context import Context
from togi.stages.data.harvest_work import Plan, continuing, conversing, fits_context
from togi.stages.data.synthesize import Synthesize
from togi.stages.data.synthesize_rows import Continuing, Row, params_of
from togi.stages.data.synthesize_rules import Rules, unusable
from togi.stages.endpoints import embedder
from togi.text.grounded import NO_ANSWER, Shown, dialogue

STANDS_ELSEWHERE = 0.8
"""A document that contains this share of an answer, and of its question, counts as answering it too."""


class Part(NamedTuple):
    """A document, or a part of a long one: the document's id, its number, its title, and the text."""

    id: str
    index: int
    title: str | None
    text: str


def _title(document: Document) -> str | None:
    """The title, if the data has a column of that name."""
    title = document.extra.get("title")
    return title if isinstance(title, str) and title.strip() else None


def parts_of(settings: Synthesize, context: Context, fits: Callable[[str], bool]) -> Sequence[Part]:
    """Returns the documents as parts that the model can read, stored on disk. Cut and dropped documents are counted and
    logged.

    Raises InputError if the model's context has no room for any text, or if no document is left.
    """
    assert settings.documents is not None
    if not fits("a"):
        raise InputError(
            f"stage {context.name}: the context of {settings.model} has no room for a document next to the "
            f"instruction and an answer of at most {params_of(settings).max_tokens} tokens: lower max_tokens, or show "
            "fewer examples (shots)"
        )
    found = Aside[Part](list, lambda row: Part(*row), context.folder)
    count = long = 0
    for document in chain.from_iterable(context.batches(settings.documents)):
        pieces = [half for piece in chunks(document.text, settings.chunk_chars) for half in halves(piece, fits)]
        count, long = count + 1, long + (len(pieces) > 1)
        if not pieces or (len(pieces) > 1 and settings.long_documents == "drop"):
            context.count_in(1)
            context.drop(document, "too_long" if pieces else "empty")
            continue
        kept = pieces[:1] if settings.long_documents == "cut" else pieces
        found.add(Part(document.id, count, _title(document), piece) for piece in kept)
    if not found:
        raise InputError(
            f"stage {context.name}: no document of {settings.documents} is left to ask about "
            f"({context.drop_reasons()}): set long_documents: split, or raise chunk_chars"
        )
    _tell_of_cuts(settings, context, count, long, len(found))
    return found


def _tell_of_cuts(settings: Synthesize, context: Context, documents: int, long: int, parts: int) -> None:
    context.summary["documents"] = {"documents": documents, "long": long, "parts": parts}
    what = {
        "split": "they are split at paragraphs and sentences",
        "cut": "only the first part of each is read",
        "drop": "they are dropped",
    }
    if long:
        context.log(
            f"{long} of {documents} documents are longer than {settings.chunk_chars} characters or than the model's "
            f"context: {what[settings.long_documents]} (long_documents: {settings.long_documents}); {parts} parts "
            "remain"
        )


class Questions:
    """How a model is asked about a part: with the prompt file, as a user turn, or with examples that it continues, as
    plain text. Each pass over the parts uses other examples."""

    def __init__(self, settings: Synthesize, context: Context) -> None:
        self.settings = settings
        self.seed = context.seed
        self.pairs = settings.pairs_per_text if settings.method == "qa" else 1
        self.examples: list[Prompt] | None = None
        if settings.examples is not None:
            self.examples = context.records(settings.examples)
        self.template = prompt_of(settings.prompt, "qa", settings.language)

    def asked(self, part: Part, number: int, turn: int = 0) -> tuple[Message, ...] | str:
        """Returns a conversation, or a text to continue. `turn` counts the passes over all parts."""
        if self.examples is not None:
            shown = choose_shots(self.examples, self.settings.shots, self.seed, turn)
            return open_question(shown, part.text, self.settings.language)
        values = {"text": part.text, "title": part.title, "pairs": self.pairs, "number": number}
        return (Message("user", self.template.render(values)),)


def _parts(settings: Synthesize, context: Context, questions: Questions) -> Sequence[Part]:
    """The parts of all documents, short enough for the context together with the prompt around them."""
    held = fits_context(settings, context)
    return parts_of(settings, context, lambda text: held(questions.asked(Part("", 0, None, text), 0)))


def rehearsed(settings: Synthesize, context: Context) -> Iterator[tuple[str, tuple[Message, ...] | str]]:
    """Yields what the model will be asked first about each part."""
    questions = Questions(settings, context)
    for number, part in enumerate(_parts(settings, context, questions)):
        yield part.id, questions.asked(part, number)


def _plan(settings: Synthesize, context: Context, read: Callable[["Texts", int, Row], Record | str]) -> Plan:
    questions = Questions(settings, context)
    texts = Texts(settings, context, _parts(settings, context, questions))
    most = settings.most(len(texts.parts))

    def asked(numbers: range) -> list[Any]:
        shown = ((texts.name(k), questions.asked(texts.part(k), k, k // len(texts.parts))) for k in numbers)
        return [Document(id=n, text=q) if isinstance(q, str) else Prompt(id=n, messages=q) for n, q in shown]

    def one(number: int, row: Row) -> Record | str:
        reason = unusable({**row, "stop": "terminator"} if row["stop"] == "length" else row)
        return reason or read(texts, number, row)

    if questions.examples is None:
        make = conversing(settings, context, most, asked)
    else:
        how = Continuing(questions.pairs, closing_strings(settings.language), joined=True)
        make = continuing(settings, context, most, how, asked)
    return Plan(most, settings.batch, make, one, lambda number: texts.part(number).id)


class Texts:
    """The parts, and what is read from the answers about them. Candidates cycle through the parts as often as
    needed."""

    def __init__(self, settings: Synthesize, context: Context, parts: Sequence[Part]) -> None:
        self.settings = settings
        self.context = context
        self.parts = parts
        self.rules = Rules(settings)
        self._vectors: Vectors | None = None

    def part(self, number: int) -> Part:
        """The part that a candidate asks about."""
        return self.parts[number % len(self.parts)]

    def name(self, number: int) -> str:
        """The id of the record that a candidate becomes."""
        return make_id(self.context.folder.name, (self.part(number).id,), number)

    def known(self, number: int) -> dict[str, Any]:
        """The id and parents of a new record."""
        return {"id": self.name(number), "parents": (self.part(number).id,)}

    def pairs(self, number: int, row: Row) -> list[QuestionPair] | str:
        """Returns the pairs that pass the rules, or the drop reason of the first one if none does. A pair cut off by
        the length limit is ignored."""
        cut = row["stop"] == "length"
        found = read_question_pairs(row["text"], self.settings.language, cut=cut)
        if not found:
            return "no_end" if cut else "empty"
        most = self.settings.pairs_per_text if self.settings.method == "qa" else 1
        reasons = [(pair, self._failure(pair, self.part(number).text)) for pair in found[:most]]
        good = [pair for pair, reason in reasons if reason is None]
        return good or next(reason for _, reason in reasons if reason is not None)

    def _failure(self, pair: QuestionPair, text: str) -> str | None:
        if pair.answer and support(pair.answer, text) < self.settings.min_support:
            return "unsupported_answer"
        if says_nothing(pair):
            return "echo"
        return self.rules.failure(pair.question, pair.answer, text if self.settings.method == "qa" else "")

    def related(self, number: int, count: int) -> list[Part]:
        """Returns up to `count` parts of other documents, most similar first."""
        if self._vectors is None:
            asked = embedder(self.context, self.settings.embedder)
            self._vectors = Vectors(lambda rows: asked.embed([part.text for part in rows]), self.parts, self.context)
        own = self.part(number)
        alike_N = self._vectors.times(number % len(self.parts))
        others = (self.parts[row] for row in np.argsort(-alike_N, kind="stable"))
        return list(islice((part for part in others if part.index != own.index), count))


class Vectors:
    """The embeddings of all parts, on disk."""

    def __init__(self, embed: Callable[[list[Part]], np.ndarray], parts: Sequence[Part], context: Context) -> None:
        self._file = tempfile.TemporaryFile(dir=context.folder)  # noqa: SIM115 - it lives as long as this
        weakref.finalize(self, self._file.close)
        self._count = len(parts)
        for first in range(0, len(parts), TILE):
            tile_TW = embed([*parts[first : first + TILE]])
            self._dtype, self._width = tile_TW.dtype, tile_TW.shape[1]
            self._file.write(tile_TW.tobytes())
            context.progress(min(first + TILE, len(parts)), len(parts), "embedding")

    def times(self, row: int) -> np.ndarray:
        """(N,) similarity of each part to the part at `row`."""
        (own_W,) = self._rows(row, 1)
        return np.concatenate([self._rows(first, TILE) @ own_W for first in range(0, self._count, TILE)])

    def _rows(self, first: int, count: int) -> np.ndarray:
        self._file.seek(first * self._width * self._dtype.itemsize)
        read = self._file.read(count * self._width * self._dtype.itemsize)
        return np.frombuffer(read, self._dtype).reshape(-1, self._width)


TILE = 4096
SHORTEST_ECHO = 12
"""Minimum length of an echo, in characters: a shorter answer may be a choice that its question names ("Green or black?"
"Green.")."""


def says_nothing(pair: QuestionPair) -> bool:
    """Whether all words of a longer answer occur in its question."""
    return len(pair.answer) >= SHORTEST_ECHO and support(pair.answer, pair.question) == 1


# --- questions and answers --------------------------------------------------------------------------------------------


def qa(settings: Synthesize, context: Context) -> Plan:
    """A text with its questions and answers, as one document or as a chat about the text."""
    layout = prompt_of(settings.layout, "qa-text", settings.language)

    def read(texts: Texts, number: int, row: Row) -> Record | str:
        pairs = texts.pairs(number, row)
        if isinstance(pairs, str):
            return pairs
        part, known = texts.part(number), texts.known(number)
        if settings.gives == "chats":
            return Chat(**known, messages=_chat(part.text, pairs))
        told = [{"question": pair.question, "answer": pair.answer} for pair in pairs]
        turn = derive(context.seed, "layout", known["id"]) % 1_000_000
        values = {"text": part.text, "title": part.title, "pairs": told, "number": turn}
        return Document(**known, text=layout.render(values))

    return _plan(settings, context, read)


def _chat(text: str, pairs: Sequence[QuestionPair]) -> tuple[Message, ...]:
    """Makes a chat; the text precedes the first question."""
    turns = [(Message("user", pair.question), Message("assistant", pair.answer)) for pair in pairs]
    (first, reply), *rest = turns
    first = replace(first, content=f"{text}\n\n{first.content}")
    return (first, reply, *(message for turn in rest for message in turn))


# --- grounded dialogues -----------------------------------------------------------------------------------------------


def grounded(settings: Synthesize, context: Context) -> Plan:
    """A question about one document, shown among related documents, or among related documents only, none of which has
    the answer."""

    def read(texts: Texts, number: int, row: Row) -> Record | str:
        pairs = texts.pairs(number, row)
        return pairs if isinstance(pairs, str) else _dialogue(settings, context, texts, number, pairs[0])

    return _plan(settings, context, read)


def _dialogue(settings: Synthesize, context: Context, texts: Texts, number: int, pair: QuestionPair) -> Chat | str:
    known = texts.known(number)
    chance = np.random.default_rng(derive(context.seed, "documents", known["id"]))
    answered = chance.random() >= settings.unanswerable
    own, count = texts.part(number), settings.distractors
    others = texts.related(number, count if answered else count + 1)
    if any(_answers(pair, other.text) for other in others):
        return "answer_elsewhere"
    shown = [*([own] if answered else []), *others]
    order = chance.permutation(len(shown)).tolist()
    documents = [Shown(shown[i].title, shown[i].text) for i in order]
    relevant = [order.index(0)] if answered else []
    known["parents"] += tuple(dict.fromkeys(other.id for other in others))
    answer = pair.answer if answered else settings.no_answer or NO_ANSWER[settings.language]
    return Chat(**known, messages=dialogue(documents, pair.question, relevant, answer))


def _answers(pair: QuestionPair, text: str) -> bool:
    """Whether another document may answer the question too."""
    return min(support(pair.answer, text), support(pair.question, text)) >= STANDS_ELSEWHERE
