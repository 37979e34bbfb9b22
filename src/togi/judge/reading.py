"""Reads a judge's reply: which of two answers is better, or a grade.

An unreadable reply is None, never a default: no verdict, two that differ, a grade off the scale, a refusal, or
unfinished reasoning. Verdicts inside the judge's reasoning and in quoted lines do not count.
"""

import re
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

Choice = Literal["A", "B", "tie"]
Value = TypeVar("Value")

# --- the part of a reply that counts ----------------------------------------------------------------------------------

_NAMES = "think|thinking|thought|thoughts|reasoning|reflection|analysis|scratchpad"
_OPEN = rf"(?:<(?:{_NAMES})>|\[THINK\]|◁think▷|<\|channel\|>analysis<\|message\|>)"
_CLOSE = rf"(?:</(?:{_NAMES})>|\[/THINK\]|◁/think▷|<\|channel\|>final<\|message\|>)"
_BLOCK = re.compile(rf"{_OPEN}.*?{_CLOSE}", re.S | re.I)
_LAST_CLOSE = re.compile(rf".*{_CLOSE}", re.S | re.I)
_UNENDED = re.compile(rf"{_OPEN}.*", re.S | re.I)
_WIDE = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)} | {0x3000: " "}  # full-width forms of ASCII
_SIGNS = str.maketrans({**dict(zip("【】〔〕〖〗", "[][][]", strict=True)), "≫": ">>", "≪": "<<", "≈": "=", "−": "-"})


def spoken(text: str) -> str:
    """The reply after its reasoning. Empty if the reasoning never ended."""
    text = _BLOCK.sub("", text)
    text = _LAST_CLOSE.sub("", text)  # the chat template may have opened the block
    return _UNENDED.sub("", text)


def _lines(text: str) -> list[str]:
    """The lines that are neither empty nor quotes, with full-width signs as ASCII."""
    lines = spoken(text).translate(_WIDE).translate(_SIGNS).splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith(">")]


def _agreed(lines: list[str], read: Callable[[str], Iterator[Value]]) -> tuple[bool, Value | None]:
    """(whether anything was found, the value on which all lines agree). A line with several values restates the
    question or revises itself, so it does not count."""
    found = [list(dict.fromkeys(read(line))) for line in lines]
    clear = list(dict.fromkeys(values[0] for values in found if len(values) == 1))
    return any(found), clear[0] if len(clear) == 1 else None


# --- which of two -----------------------------------------------------------------------------------------------------

_WHO = r"ASSISTANT|ANSWER|RESPONSE|MODEL|OPTION|アシスタント|回答|応答|АССИСТЕНТ|ОТВЕТ|МОДЕЛЬ|ВАРИАНТ"
_DRESS = re.compile(r"[\s*_`\"'«»“”:.]")
_CYRILLIC = str.maketrans("АВС", "ABC")  # Cyrillic letters that look like Latin ones
LABELS: dict[str, Choice] = {
    **dict.fromkeys(("A", "A>B", "A>>B", "B<A", "B<<A"), "A"),
    **dict.fromkeys(("B", "B>A", "B>>A", "A<B", "A<<B"), "B"),
    **dict.fromkeys(("C", "TIE", "DRAW", "A=B", "B=A", "引き分け", "同点", "НИЧЬЯ"), "tie"),
}
_DOUBLE = re.compile(r"\[\[([^\[\]\n]{1,40})\]\]")
_KEY = (
    r"(?:VERDICT|WINNER|JUDGE?MENT|DECISION|CHOICE|BETTER|判定|結論|勝者|最終評価|"
    r"ВЕРДИКТ|ПОБЕДИТЕЛЬ|РЕШЕНИЕ|ВЫВОД|ИТОГ|ЛУЧШЕ)"
)
_NAME = rf"(?:(?:{_WHO})\s*)?(?:[ABCАВС]|TIE|DRAW|引き分け|同点|НИЧЬЯ)"
_KEYED = re.compile(rf"(?<![A-Z]){_KEY}\s*(?:IS|は)?\W{{0,6}}({_NAME})\W*(?:です|だ|である)?\W*$", re.I)
_ALONE = re.compile(rf"^\W*({_NAME})\W*$", re.I)


def read_choice(text: str) -> Choice | None:
    """Which of answers A and B is better: a label in double brackets ([[A]], [[B]], [[C]], [[A>>B]], ...), else the
    last line, if it consists only of a verdict."""
    lines = _lines(text)
    found, choice = _agreed(lines, lambda line: _labels(_DOUBLE, line))
    if found or not lines:
        return choice
    last = _last(lines)
    return next((choice for pattern in (_KEYED, _ALONE) for choice in _labels(pattern, last)), None)


def _last(lines: list[str]) -> str:
    """The last line that contains a word; closing JSON brackets may follow it."""
    return next((line for line in reversed(lines) if re.search(r"\w", line)), "")


def _labels(pattern: re.Pattern[str], line: str) -> Iterator[Choice]:
    for raw in pattern.findall(line):
        bare = re.sub(_WHO, "", _DRESS.sub("", raw).upper()).translate(_CYRILLIC)
        if bare in LABELS:
            yield LABELS[bare]


_BRACKETS = re.compile(r"\[\[([^\[\]\n]{1,400})\]\]")


def bracketed(text: str) -> str | None:
    """The text in double brackets ([[correct]]), in lower case; None if there is none, or different ones."""
    found = list(dict.fromkeys(word.strip().lower() for line in _lines(text) for word in _BRACKETS.findall(line)))
    return found[0] if len(found) == 1 else None


# --- a grade ----------------------------------------------------------------------------------------------------------

_NUMBER = r"([+-]?\d+(?:[.,]\d+)?)(?:\s*(?:/|OUT OF|из)\s*(\d+))?"
_UNIT = r"(?:\s*(?:点|POINTS?|БАЛЛ\w*))?"
_IN_BRACKETS = re.compile(rf"\[\[[\s*_]*{_NUMBER}{_UNIT}[\s*_]*\]\]", re.I)
_GRADE_KEY = r"(?:RATING|SCORE|GRADE|評価値?|評点|点数|スコア|採点|ОЦЕНКА|БАЛЛ\w*|РЕЙТИНГ)"
_GRADED = re.compile(rf"{_GRADE_KEY}\s*(?:IS|OF|は)?\W{{0,6}}?{_NUMBER}{_UNIT}(?:です)?[^\w]*$", re.I)
_LONE = re.compile(rf"^[\s*_`\[]*{_NUMBER}{_UNIT}[\s*_`\].。]*$", re.I)


def read_grade(text: str, low: float, high: float) -> float | None:
    """A grade from `low` to `high`: a number in double brackets ([[7]]), else one after a word like Rating at the end
    of a line, else one alone on the last line. 8/10 is a grade on a scale that ends with 10."""
    lines = _lines(text)
    for pattern, among in ((_IN_BRACKETS, lines), (_GRADED, lines), (_LONE, [_last(lines)])):
        found, grade = _agreed(among, lambda line, pattern=pattern: _grades(pattern, line, low, high))
        if found:
            return grade
    return None


def _grades(pattern: re.Pattern[str], line: str, low: float, high: float) -> Iterator[float | None]:
    """The grades of a line; None for one off the scale, which does not count."""
    for number, of in pattern.findall(line):
        value = float(number.replace(",", "."))
        yield value if low <= value <= high and (not of or float(of) == high) else None
