"""Grounded dialogues, exactly as Vikhr-Nemo's card has them: documents, a question, the ids of the documents that help,
then the answer. Source: the model card and the data set Vikhrmodels/Grounded-RAG-RU-v2.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from togi.core.records import Message

SYSTEM = (
    "Your task is to answer the user's questions using only the information from the provided documents. Give two "
    "answers to each question: one with a list of relevant document identifiers and the second with the answer to the "
    "question itself, using documents with these identifiers."
)
"""The card's system prompt, word for word; the model wants it in this form."""

ROLE = "documents"
MOST = 16
"""Documents that one dialogue may show; the card's data shows up to six."""

NO_ANSWER = {
    "en": "The documents do not answer this question.",
    "ja": "提供された文書には、この質問への答えはありません。",
    "ru": "В предоставленных документах нет ответа на этот вопрос.",
}
"""What is said where no document helps; the words are ours."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A document as a dialogue shows it; its id is its place."""

    title: str | None
    content: str


def documents_message(documents: Sequence[Shown]) -> Message:
    """The turn of the documents: a JSON list of {doc_id, title, content}, ids from 0 in order, not escaped."""
    rows = [{"doc_id": i, "title": each.title, "content": each.content} for i, each in enumerate(documents)]
    return Message(ROLE, json.dumps(rows, ensure_ascii=False))


def relevant_message(ids: Sequence[int]) -> Message:
    """The assistant's first turn: `{"relevant_doc_ids": [0, 2]}`, with the empty list where nothing helps."""
    return Message("assistant", json.dumps({"relevant_doc_ids": sorted(ids)}))


def dialogue(documents: Sequence[Shown], question: str, relevant: Sequence[int], answer: str) -> tuple[Message, ...]:
    """A whole dialogue. Both assistant turns carry loss, and stand one behind the other."""
    asked = (Message("system", SYSTEM), documents_message(documents), Message("user", question))
    return (*asked, relevant_message(relevant), Message("assistant", answer))
