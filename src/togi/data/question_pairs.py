"""Extracts questions and answers from a model's reply about a text."""

import re
from dataclasses import dataclass
from functools import lru_cache

from togi.data.prompts_fewshot import LABELS
from togi.text.compare import normalise
from togi.text.script import is_spaced

_QUESTIONS = {"en": ("Question", "Q"), "ja": ("質問", "問い", "問"), "ru": ("Вопрос",)}
_ANSWERS = {"en": ("Answer", "A"), "ja": ("回答", "答え", "答"), "ru": ("Ответ",)}
_QUE, _ANS, _END = "<QUE>", "<ANS>", "</END>"  # the form of Instruction Pre-Training (arXiv 2406.14491)
_BOLD = r"[*_#\s]*"


@dataclass(frozen=True, slots=True)
class QuestionPair:
    """A question with its answer; a missing answer is empty."""

    question: str
    answer: str


@lru_cache(maxsize=8)
def _label(words: tuple[str, ...]) -> re.Pattern[str]:
    """Matches a label at the start of a line, with or without a number and bold markup: "**Question 2:**"."""
    return re.compile(rf"^{_BOLD}(?:\d+[.)]\s*)?{_BOLD}(?:{'|'.join(words)})\s*\d*\s*[:：]{_BOLD}", re.M | re.I)


def read_question_pairs(text: str, language: str, *, cut: bool = False) -> list[QuestionPair]:
    """The pairs in the order written, from labelled lines in the language (or in English), or from LMOps' tags.

    `cut`: the length limit ended the text. Its last labelled pair may be incomplete, and is left out.
    """
    if _QUE in text:
        return _tagged(text)
    for tried in dict.fromkeys((language, "en")):
        blocks = _label(_QUESTIONS[tried]).split(text)[1:]
        if blocks:
            pairs = [_pair(block, _label(_ANSWERS[tried])) for block in blocks]
            return pairs[:-1] if cut else pairs
    return []


def _tagged(text: str) -> list[QuestionPair]:
    """The pairs between tags, by the rules of the published code: each ends with </END>, begins with <QUE> and has
    exactly one <ANS>. Whatever breaks a rule is left out alone."""
    halves = [chunk.split(_ANS) for chunk in text.split(_END)[:-1]]
    whole = [(half[0].strip(), half[1].strip()) for half in halves if len(half) == 2]
    return [QuestionPair(q.replace(_QUE, "").strip(), a) for q, a in whole if q.startswith(_QUE)]


def _pair(block: str, label: re.Pattern[str]) -> QuestionPair:
    question, *answers = label.split(block)
    return QuestionPair(_line(question), _line(answers[0]) if answers else "")


def _line(text: str) -> str:
    return " ".join(text.split()).removesuffix("**").strip()


def final_answer(text: str, language: str) -> str | None:
    """The text after the last answer label; None if no line has one."""
    found = [match for tried in dict.fromkeys((language, "en")) for match in _label(_ANSWERS[tried]).finditer(text)]
    return _line(text[max(match.end() for match in found) :]) if found else None


def clean_reply(text: str, language: str) -> str:
    """A reply that should be a single question, without a label or quotation marks around it."""
    text = text.strip()
    for label in (LABELS[language].question, LABELS["en"].question):
        text = text.removeprefix(label).strip()
    for left, right in (('"', '"'), ("“", "”"), ("「", "」"), ("«", "»")):
        inner = text[1:-1]
        if text.startswith(left) and text.endswith(right) and left not in inner and right not in inner and inner:
            text = inner.strip()
    return " ".join(text.split())


def support(answer: str, text: str) -> float:
    """The share of an answer that occurs in a text: of its distinct words, or of its character pairs in scripts without
    spaces. 0 for an answer without letters or digits."""
    found, wanted = normalise(text), normalise(answer)
    if not wanted:
        return 0.0
    if is_spaced(wanted):
        known = set(found.split())
        words = set(wanted.split())
        return sum(word in known for word in words) / len(words)
    close = found.replace(" ", "")
    plain = wanted.replace(" ", "")
    grams = {plain[i : i + 2] for i in range(max(len(plain) - 1, 1))}
    return sum(gram in close for gram in grams) / len(grams)
