"""Few-shot prompts for a base model to write new questions, and the parser of its drafts.

Method and sources: docs/methods.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from togi.core.errors import InputError
from togi.core.records import Prompt
from togi.core.seeds import derive

Style = Literal["question", "question_answer"]


@dataclass(frozen=True, slots=True)
class Labels:
    """The words in front of a question and of an answer."""

    question: str
    answer: str


LABELS = {
    "en": Labels("Question:", "Answer:"),
    "ja": Labels("質問:", "回答:"),
    "ru": Labels("Вопрос:", "Ответ:"),
}


@dataclass(frozen=True, slots=True)
class Draft:
    """A question parsed from a completion, with its answer in the style question_answer."""

    question: str
    answer: str | None = None


def choose_shots(examples: Sequence[Prompt], shots: int, *parts: int | str) -> list[Prompt]:
    """Returns `shots` different examples in random order (all of them, shuffled, if there are fewer), drawn with a seed
    from `parts`."""
    order = np.random.default_rng(derive("shots", *parts)).permutation(len(examples))
    return [examples[i] for i in order[:shots]]


def fewshot_text(examples: Sequence[Prompt], language: str, style: Style) -> str:
    """The examples as labelled blocks, then an open question. The text ends with the label, without a space.

    Raises InputError if an example has no answer in the style question_answer.
    """
    labels = LABELS[language]
    blocks = [_block(example, labels, style) for example in examples]
    return "\n\n".join([*blocks, labels.question])


def open_answer(examples: Sequence[Prompt], question: str, language: str) -> str:
    """The examples with their answers as labelled blocks, then `question` with an open answer.

    Raises InputError if an example has no answer.
    """
    return f"{fewshot_text(examples, language, 'question_answer')} {_one_line(question)}\n{LABELS[language].answer}"


def _block(example: Prompt, labels: Labels, style: Style) -> str:
    question = f"{labels.question} {_one_line(example.text)}"
    if style == "question":
        return question
    if example.answer is None:
        raise InputError(
            f"example {example.id} has no answer, which style: question_answer needs: add a column `answer` to the "
            "examples, or set style: question"
        )
    return f"{question}\n{labels.answer} {_one_line(example.answer)}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def stop_strings(language: str, style: Style) -> tuple[str, ...]:
    """The strings that end a draft: the end of the line, or, with answers, a blank line or the next question's
    label."""
    if style == "question":
        return ("\n",)
    return ("\n\n", f"\n{LABELS[language].question}")


def parse_draft(text: str, language: str, style: Style, ended: bool = True) -> Draft | str:
    """The draft in a completion of `fewshot_text`, or the reason why there is none.

    Reasons: no_end (cut off by the length limit, that is, `ended` is False), empty, no_answer, label_inside.
    """
    labels = LABELS[language]
    for stop in stop_strings(language, style):
        head, found, _ = text.lstrip().partition(stop)
        text, ended = head, ended or bool(found)
    if not ended:
        return "no_end"
    question, _, answer = text.partition(labels.answer)
    question, answer = _one_line(question), _one_line(answer)
    if not question:
        return "empty"
    if style == "question_answer" and not answer:
        return "no_answer"
    if labels.question in question + answer or labels.answer in answer or (style == "question" and answer):
        return "label_inside"
    return Draft(question, answer or None)
