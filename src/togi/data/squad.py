"""Files in the SQuAD layout: articles of paragraphs, each with questions and answers about it."""

from collections.abc import Iterator, Mapping
from typing import Any

from togi.data.values import BadRow, kind_of

ARTICLES, PARAGRAPHS, CONTEXT, QUESTIONS = "data", "paragraphs", "context", "qas"


def is_squad(value: Any) -> bool:
    """Whether a JSON file holds articles of paragraphs."""
    articles = value.get(ARTICLES) if isinstance(value, Mapping) else None
    first = articles[0] if isinstance(articles, list) and articles else None
    return isinstance(first, Mapping) and isinstance(first.get(PARAGRAPHS), list)


def squad_rows(value: Any) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """Yields (position, row) for each question: its id, the question, the text that it is about (`context`), the title
    of the article, and the answers in SQuAD's form; `answer` is the first one."""
    for number, article in enumerate(value[ARTICLES], 1):
        paragraphs = _list(article, PARAGRAPHS)
        if isinstance(paragraphs, BadRow):
            yield f"article {number}", paragraphs
            continue
        for place, paragraph in enumerate(paragraphs, 1):
            where = f"article {number}, paragraph {place}"
            questions = _list(paragraph, QUESTIONS)
            if isinstance(questions, BadRow):
                yield where, questions
                continue
            shared = {"title": article.get("title"), CONTEXT: paragraph.get(CONTEXT)}
            yield from ((f"{where}, question {at}", _row(each, shared)) for at, each in enumerate(questions, 1))


def _list(value: Any, key: str) -> list[Any] | BadRow:
    found = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(found, list):
        return found
    return BadRow("wrong_type", f"{key!r}: found {kind_of(found)}, wanted a list, as in SQuAD files")


def _row(question: Any, shared: Mapping[str, Any]) -> dict[str, Any] | BadRow:
    if not isinstance(question, Mapping):
        return BadRow("not_an_object", f"found {kind_of(question)}, wanted a question with its answers")
    answers = question.get("answers")
    texts = [each.get("text") for each in answers if isinstance(each, Mapping)] if isinstance(answers, list) else []
    row = {**shared, **question}
    return row | ({"answer": texts[0]} if texts else {})
