"""Few-shot prompts about texts: a list of texts, each with a question and its answer, then one with an open question.
For models that continue a list better than they follow an instruction, that is, base models and small ones."""

from collections.abc import Sequence

from togi.core.errors import InputError
from togi.core.records import Prompt
from togi.data.prompts_fewshot import LABELS

TEXTS = {"en": "Text:", "ja": "文章:", "ru": "Текст:"}
"""The label before a text."""


def open_question(examples: Sequence[Prompt], text: str, language: str) -> str:
    """The examples as labelled blocks, then `text` with an open question. The result ends with the label, without a
    space.

    Raises InputError for an example without an answer, or without a text (column `text`).
    """
    blocks = [_block(example, language) for example in examples]
    return "\n\n".join([*blocks, f"{TEXTS[language]} {_one_line(text)}\n{LABELS[language].question}"])


def _block(example: Prompt, language: str) -> str:
    text, labels = example.extra.get("text"), LABELS[language]
    if not isinstance(text, str) or not text.strip() or example.answer is None:
        missing = "an answer" if example.answer is None else "a text"
        raise InputError(
            f"example {example.id} lacks {missing}: examples of questions about texts need the columns text, question "
            "and answer"
        )
    question, answer = _one_line(example.text), _one_line(example.answer)
    return f"{TEXTS[language]} {_one_line(text)}\n{labels.question} {question}\n{labels.answer} {answer}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def closing_strings(language: str) -> tuple[str, ...]:
    """The strings that end a question and its answer: a blank line, or the label of the next block."""
    return ("\n\n", f"\n{TEXTS[language]}", f"\n{LABELS[language].question}")


def joined_pairs(continuations: Sequence[str], language: str) -> str:
    """Continuations of `open_question` as labelled pairs, separated by blank lines."""
    ends = closing_strings(language)
    kept = []
    for text in continuations:
        for end in ends:
            text = text.lstrip().partition(end)[0]
        kept.append(f"{LABELS[language].question} {text.strip()}")
    return "\n\n".join(kept)
