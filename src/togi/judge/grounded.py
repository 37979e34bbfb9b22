"""A judge of answers from documents: whether an answer is correct, and which of its sentences the documents do not
support. The prompts are ours; the card's judge was told to weigh relevance and factual completeness, given the
documents and a reference answer."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from togi.judge.reading import bracketed
from togi.text.grounded import Shown
from togi.text.prompt_file import PromptFile, read_prompt

Language = Literal["en", "ja", "ru"]
OWN = Path(__file__).parent / "prompts"
LABELS = {
    **dict.fromkeys(("correct", "正解", "正しい", "верно", "верный", "правильно"), True),
    **dict.fromkeys(("incorrect", "不正解", "誤り", "неверно", "неверный", "неправильно"), False),
}
NONE = ("none", "0", "なし", "нет")
_BORDER = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])(?![」』）])|(?<=[。！？][」』）])|\n+")


def correct_prompt(language: Language) -> PromptFile:
    """Asks whether an answer is correct; for `case_values`."""
    return read_prompt(OWN / f"grounded-correct.{language}.j2")


def support_prompt(language: Language) -> PromptFile:
    """Asks which sentences of an answer the documents do not support; for `case_values`."""
    return read_prompt(OWN / f"grounded-support.{language}.j2")


def case_values(documents: Sequence[Shown], question: str, answer: str, reference: str | None) -> dict[str, object]:
    """The variables of the prompts. A non-empty `letter` asks for one letter instead of a verdict in words: A or B,
    where `letter` means correct and the other one incorrect."""
    shown = [{"title": each.title or "", "content": each.content} for each in documents]
    numbered = [{"number": number, "text": text} for number, text in enumerate(sentences(answer), 1)]
    return {
        "documents": shown,
        "question": question,
        "answer": answer,
        "reference": reference or "",
        "sentences": numbered,
        "letter": "",
    }


def sentences(text: str) -> list[str]:
    """The sentences of a text, split at punctuation. A number alone, as in a list, belongs to the next sentence."""
    found: list[str] = []
    for piece in filter(None, map(str.strip, _BORDER.split(text))):
        if found and not any(char.isalpha() for char in found[-1]):
            found[-1] += f" {piece}"
        else:
            found.append(piece)
    return found


def read_correct(text: str) -> bool | None:
    """Whether the judge called the answer correct; None for no verdict or for two."""
    return LABELS.get(bracketed(text) or "")


def read_numbers(text: str) -> tuple[int, ...] | None:
    """The numbers of the sentences that the judge named, each once; None for no verdict or for two."""
    found = bracketed(text)
    if found is None or found in NONE:
        return None if found is None else ()
    numbers = [word for word in re.split(r"[,;、\s]+", found) if word]
    if not numbers or not all(re.fullmatch(r"[1-9][0-9]{0,3}", word) for word in numbers):
        return None
    return tuple(dict.fromkeys(map(int, numbers)))
