"""Grounded dialogues, exactly as in Vikhr-Nemo's card: documents, a question, the ids of the relevant documents, then
the answer. Training, chat and benchmarks all use this module to read and write them.

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
"""The card's system prompt, verbatim. The model needs it in this form."""

ROLE = "documents"
KEY = "relevant_doc_ids"

MAX_TOKENS = 2048
IDS = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
"""Sampling parameters of the card for the first answer, the list of ids."""
ANSWER = SamplingParams(temperature=0.3, max_tokens=MAX_TOKENS)
"""Sampling parameters of the card for the second answer, used here also for an answer in one step."""

NO_ANSWER = {
    "en": "The documents do not answer this question.",
    "ja": "提供された文書には、この質問への答えはありません。",
    "ru": "В предоставленных документах нет ответа на этот вопрос.",
}
"""The answer given when no document is relevant. The wording is ours."""

AT_ONCE = (
    "Answer the user's question using only the information from the provided documents. If they do not answer it, say "
    "so. Answer in the language of the question."
)
"""The instruction for a model without a grounded mode. The wording is ours."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A document as shown in a dialogue; its id is its index."""

    title: str | None
    content: str


# --- writing ----------------------------------------------------------------------------------------------------------


def documents_text(documents: Sequence[Shown]) -> str:
    """The documents as the model reads them: a JSON list of {doc_id, title, content}, ids from 0, letters not
    escaped."""
    rows = [{"doc_id": i, "title": each.title, "content": each.content} for i, each in enumerate(documents)]
    return json.dumps(rows, ensure_ascii=False)


def asked(documents: Sequence[Shown], question: str) -> tuple[Message, ...]:
    """The first step: system prompt, documents, question. The model answers with ids."""
    return (Message("system", SYSTEM), Message(ROLE, documents_text(documents)), Message("user", question))


def asked_again(first: Sequence[Message], said: str) -> tuple[Message, ...]:
    """The second step: the first step followed by the model's reply `said`, unchanged. The model answers the
    question."""
    return (*first, Message("assistant", said))


def asked_at_once(documents: Sequence[Shown], question: str) -> tuple[Message, ...]:
    """A question to a model without a grounded mode: the documents are part of the user turn."""
    return (Message("user", f"{AT_ONCE}\n\nDocuments: {documents_text(documents)}\n\nQuestion: {question}"),)


def relevant_message(ids: Sequence[int]) -> Message:
    """The assistant's first turn: `{"relevant_doc_ids": [0, 2]}`, with an empty list if no document is relevant."""
    return Message("assistant", json.dumps({KEY: sorted(ids)}))


def dialogue(documents: Sequence[Shown], question: str, relevant: Sequence[int], answer: str) -> tuple[Message, ...]:
    """A whole dialogue. Both assistant turns carry loss, and follow each other directly."""
    return (*asked(documents, question), relevant_message(relevant), Message("assistant", answer))


def role_left_out(text: str, messages: Sequence[Message]) -> str | None:
    """The role of the first non-assistant turn that is missing in `text`, which a template made of `messages`: a system
    prompt that the template replaces, or documents that it does not render. None if all are present."""
    asked = (each for each in messages if each.role != "assistant")
    return next((each.role for each in asked if each.content.strip() not in text), None)


# --- reading ----------------------------------------------------------------------------------------------------------

_LIST = re.compile(rf"""(["']){KEY}\1\s*:\s*\[([^\[\]]*)\]""")
_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Relevant:
    """The ids that a model named: those of documents that it was shown, each once, in the model's order. `repeated`
    counts repetitions of an id; `unknown` are the items that are not the id of a document."""

    ids: tuple[int, ...]
    repeated: int = 0
    unknown: tuple[str, ...] = ()


def read_relevant(text: str, documents: int) -> Relevant | None:
    """The ids in a model's first answer, after it was shown `documents` documents; None if the answer has no list of
    ids.

    Code fences, single quotes, ids in quotes and text around the object are accepted; the first list counts. A list
    without its key, or one that never ends, does not count.
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
    """The documents of a turn of the role `documents`, in the order of their ids; None for a text that is not such a
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
