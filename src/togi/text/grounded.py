"""Grounded dialogues, exactly as Vikhr-Nemo's card has them: documents, a question, the ids of the documents that help,
then the answer. Training, chat and benchmarks all read and write them here.

Source: the model card of Vikhr-Nemo-12B-Instruct-R-21-09-24 and the data set Vikhrmodels/Grounded-RAG-RU-v2.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from togi.core.records import Message, SamplingParams

SYSTEM = (
    "Your task is to answer the user's questions using only the information from the provided documents. Give two "
    "answers to each question: one with a list of relevant document identifiers and the second with the answer to the "
    "question itself, using documents with these identifiers."
)
"""The card's system prompt, word for word. The model needs it in this form."""

ROLE = "documents"
KEY = "relevant_doc_ids"

MAX_TOKENS = 2048
IDS = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
"""How the card samples the first answer, the list of ids."""
ANSWER = SamplingParams(temperature=0.3, max_tokens=MAX_TOKENS)
"""How the card samples the second one, and here an answer in one step."""

NO_ANSWER = {
    "en": "The documents do not answer this question.",
    "ja": "提供された文書には、この質問への答えはありません。",
    "ru": "В предоставленных документах нет ответа на этот вопрос.",
}
"""What is said where no document helps; the words are ours."""

AT_ONCE = (
    "Answer the user's question using only the information from the provided documents. If they do not answer it, say "
    "so. Answer in the language of the question."
)
"""What a model without a grounded mode is told; the words are ours."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A document as a dialogue shows it; its id is its place."""

    title: str | None
    content: str


# --- writing ----------------------------------------------------------------------------------------------------------


def documents_text(documents: Sequence[Shown]) -> str:
    """The documents as the model reads them: a JSON list of {doc_id, title, content}, ids from 0, letters as they
    are."""
    rows = [{"doc_id": i, "title": each.title, "content": each.content} for i, each in enumerate(documents)]
    return json.dumps(rows, ensure_ascii=False)


def asked(documents: Sequence[Shown], question: str) -> tuple[Message, ...]:
    """The first step: system prompt, documents, question. The model answers with ids."""
    return (Message("system", SYSTEM), Message(ROLE, documents_text(documents)), Message("user", question))


def asked_again(first: Sequence[Message], said: str) -> tuple[Message, ...]:
    """The second step: the first one with what the model `said` to it, as it stands. The model answers the question."""
    return (*first, Message("assistant", said))


def asked_at_once(documents: Sequence[Shown], question: str) -> tuple[Message, ...]:
    """A question to a model without a grounded mode: the documents stand inside the user's turn."""
    return (Message("user", f"{AT_ONCE}\n\nDocuments: {documents_text(documents)}\n\nQuestion: {question}"),)


def relevant_message(ids: Sequence[int]) -> Message:
    """The assistant's first turn: `{"relevant_doc_ids": [0, 2]}`, with the empty list where nothing helps."""
    return Message("assistant", json.dumps({KEY: sorted(ids)}))


def dialogue(documents: Sequence[Shown], question: str, relevant: Sequence[int], answer: str) -> tuple[Message, ...]:
    """A whole dialogue. Both assistant turns carry loss, and stand one behind the other."""
    return (*asked(documents, question), relevant_message(relevant), Message("assistant", answer))


def role_left_out(text: str, messages: Sequence[Message]) -> str | None:
    """The role of the first turn that is asked and that `text`, which a template made of `messages`, lacks: a system
    prompt that the template replaces, documents for which it has no place. None where all are there."""
    asked = (each for each in messages if each.role != "assistant")
    return next((each.role for each in asked if each.content.strip() not in text), None)


# --- reading ----------------------------------------------------------------------------------------------------------

_LIST = re.compile(rf"""(["']){KEY}\1\s*:\s*\[([^\[\]]*)\]""")
_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Relevant:
    """The ids that a model named: those of documents that it was shown, each once, in its order. `repeated` counts ids
    that it named again; `unknown` are the items that are no id of a document."""

    ids: tuple[int, ...]
    repeated: int = 0
    unknown: tuple[str, ...] = ()


def read_relevant(text: str, documents: int) -> Relevant | None:
    """The ids in a model's first answer, where it was shown so many `documents`; None where it holds no list of them.

    Code fences, single quotes, ids in quotes and text around the object do no harm; the first list counts. A list
    without its key, or one that never ends, is none.
    """
    found = _LIST.search(text)
    if found is None:
        return None
    items = [item.strip().strip("\"'").strip() for item in found[2].split(",")]
    items = [item for item in items if item]
    known = [int(item) for item in items if _NUMBER.fullmatch(item) and int(item) < documents]
    unknown = tuple(item for item in items if not (_NUMBER.fullmatch(item) and int(item) < documents))
    ids = tuple(dict.fromkeys(known))
    return Relevant(ids, len(known) - len(ids), unknown)


def read_documents(text: str) -> list[Shown] | None:
    """The documents of a turn of the role `documents`, in the order of their ids; None for a text that is no such
    list."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return None
    if [row.get("doc_id") for row in rows] != list(range(len(rows))):
        return None
    if not all(isinstance(row.get("content"), str) for row in rows):
        return None
    return [Shown(row["title"] if isinstance(row.get("title"), str) else None, row["content"]) for row in rows]
