"""Questions over documents, for benchmarks of grounded answers.

Supported forms: dialogues (a documents turn before the question, as in Grounded-RAG-RU-v2), questions with the text
that answers them (SQuAD), and questions about a folder of documents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from togi.core.errors import InputError
from togi.core.records import Prompt
from togi.core.seeds import derive, digest
from togi.data.document_files import Part
from togi.data.retrieval import Finder, best
from togi.text.grounded import NO_ANSWER, ROLE, Shown, read_documents, read_relevant

Domain = Literal["in_domain", "out_of_domain"]
CONTEXT, TITLE, ANSWERS = "context", "title", "answers"
TYPES: dict[str, Domain] = {"good": "in_domain", "ood": "out_of_domain"}
"""Domains by their names in Grounded-RAG-RU-v2 (column `type`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundedQuestion:
    """A question with the documents shown for it. `relevant` are the ids of the documents that answer it (None:
    unknown), `reference` is a correct answer. `domain` states whether the documents answer it (None: unknown).
    Questions with the same `owner` are about the same text, so they are not independent."""

    id: str
    question: str
    documents: tuple[Shown, ...]
    owner: str
    relevant: tuple[int, ...] | None = None
    reference: str | None = None
    domain: Domain | None = None


# --- dialogues --------------------------------------------------------------------------------------------------------


def has_documents(prompt: Prompt) -> bool:
    """Whether a conversation has a documents turn."""
    return any(message.role == ROLE for message in prompt.messages)


def from_dialogue(prompt: Prompt) -> GroundedQuestion:
    """A dialogue up to its question. Its reference answer begins with the list of ids if the dialogue has one.

    Raises InputError for documents that are not a list of {doc_id, title, content}, and for several user turns.
    """
    text = next(message.content for message in prompt.messages if message.role == ROLE)
    documents = read_documents(text)
    if documents is None:
        raise InputError(
            f"prompt {prompt.id}: the turn of the role {ROLE} is not a JSON list of objects with doc_id 0, 1, ..., "
            f"title and content; found {text[:80]!r}"
        )
    asked = [message.role for message in prompt.messages].count("user")
    if asked != 1:
        raise InputError(f"prompt {prompt.id}: found {asked} user turns; a grounded dialogue has exactly one question")
    ids, _, answer = (prompt.answer or "").partition("\n\n")
    found = read_relevant(ids, len(documents))
    relevant = None if found is None else tuple(sorted(found.ids))
    domain = TYPES.get(str(prompt.extra.get("type")))
    if domain is None and relevant is not None:
        domain = "in_domain" if relevant else "out_of_domain"
    return GroundedQuestion(
        id=prompt.id,
        question=prompt.text,
        documents=tuple(documents),
        owner=digest(text)[:16],
        relevant=relevant,
        reference=(prompt.answer if found is None else answer) or None,
        domain=domain,
    )


# --- questions with the text that answers them ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How texts are drawn for a question: its own text among others, at most `shown` in all. For a share `outside` of
    the questions only texts of other articles are shown, and the correct answer is that there is none."""

    shown: int
    outside: float
    seed: int
    language: str


@dataclass(frozen=True, slots=True)
class _Text:
    """A text that some question is about, and its article."""

    shown: Shown
    article: str


def has_context(prompt: Prompt) -> bool:
    """Whether a question has the text that it is about, in the column `context`."""
    return isinstance(prompt.extra.get(CONTEXT), str) and bool(prompt.extra[CONTEXT].strip())


def from_contexts(prompts: Sequence[Prompt], drawing: Drawing) -> list[GroundedQuestion]:
    """Questions that all have a `context`, each shown among other texts: those of its article (column `title`) first,
    in an order drawn from the seed. For a row with an empty list of answers (SQuAD 2.0) no shown text has the answer.

    Raises InputError if a question should be shown other articles only, and there are none.
    """
    own = [_text_of(prompt) for prompt in prompts]
    texts = list(dict.fromkeys(own))
    away = np.zeros(len(prompts), dtype=np.bool_)
    order = np.random.default_rng(derive(drawing.seed, "outside")).permutation(len(prompts))
    away[order[: round(drawing.outside * len(prompts))]] = True
    return [
        _outside(prompt, text, texts, drawing) if is_away else _inside(prompt, text, texts, drawing)
        for prompt, text, is_away in zip(prompts, own, away.tolist(), strict=True)
    ]


def _text_of(prompt: Prompt) -> _Text:
    content, title = prompt.extra[CONTEXT].strip(), prompt.extra.get(TITLE)
    name = title if isinstance(title, str) and title.strip() else None
    return _Text(Shown(name, content), name or content)


def _inside(prompt: Prompt, own: _Text, texts: Sequence[_Text], drawing: Drawing) -> GroundedQuestion:
    chance = np.random.default_rng(derive(drawing.seed, prompt.id))
    near = [text for text in texts if text.article == own.article and text != own]
    far = [text for text in texts if text.article != own.article]
    others = [*_drawn(near, chance), *_drawn(far, chance)][: drawing.shown - 1]
    order = _drawn([own, *others], chance)
    if _has_no_answer(prompt):
        return _question(prompt, own, order, (), drawing)
    return _question(prompt, own, order, (order.index(own),), drawing)


def _outside(prompt: Prompt, own: _Text, texts: Sequence[_Text], drawing: Drawing) -> GroundedQuestion:
    """Shows the texts of one other article, filled up with texts of further articles."""
    chance = np.random.default_rng(derive(drawing.seed, prompt.id))
    far = [text for text in texts if text.article != own.article]
    if not far:
        raise InputError(
            f"prompt {prompt.id}: all texts belong to one article (column {TITLE!r}), so there is no other article to "
            "show: add more rows, or set out_of_domain: 0"
        )
    first = far[int(chance.integers(len(far)))].article
    near = _drawn([text for text in far if text.article == first], chance)
    order = [*near, *_drawn([text for text in far if text.article != first], chance)][: drawing.shown]
    return _question(prompt, own, order, (), drawing)


def _drawn(texts: Sequence[_Text], chance: np.random.Generator) -> list[_Text]:
    return [texts[i] for i in chance.permutation(len(texts)).tolist()]


def _question(
    prompt: Prompt, own: _Text, texts: Sequence[_Text], relevant: tuple[int, ...], drawing: Drawing
) -> GroundedQuestion:
    return GroundedQuestion(
        id=prompt.id,
        question=prompt.text,
        documents=tuple(text.shown for text in texts),
        owner=digest(own.shown.content)[:16],
        relevant=relevant,
        reference=_reference(prompt) if relevant else NO_ANSWER[drawing.language],
        domain="in_domain" if relevant else "out_of_domain",
    )


def _answers(prompt: Prompt) -> list[str] | None:
    """The answers of a SQuAD row, whose column holds lists of texts and of positions; None if the row has no such
    column."""
    found = prompt.extra.get(ANSWERS)
    texts = found.get("text") if isinstance(found, Mapping) else found
    return [_answer(each) for each in texts] if isinstance(texts, list) else None


def _answer(value: Any) -> str:
    return str(value.get("text", "")) if isinstance(value, Mapping) else str(value)


def _has_no_answer(prompt: Prompt) -> bool:
    return prompt.answer is None and _answers(prompt) == []


def _reference(prompt: Prompt) -> str | None:
    return prompt.answer or next(iter(_answers(prompt) or ()), None)


# --- questions to a folder --------------------------------------------------------------------------------------------


def from_folder(prompts: Sequence[Prompt], parts: Sequence[Part], finder: Finder, shown: int) -> list[GroundedQuestion]:
    """Each question with the `shown` parts that match it best, best first. Which of them answer it is unknown."""
    found = []
    for prompt in prompts:
        places = range(len(parts)) if len(parts) <= shown else [place for place, _ in best(finder, prompt.text, shown)]
        documents = tuple(parts[place].shown for place in places)
        found.append(
            GroundedQuestion(
                id=prompt.id, question=prompt.text, documents=documents, owner=prompt.id, reference=prompt.answer
            )
        )
    return found
