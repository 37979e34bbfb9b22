"""The health of single chat answers: visible defects, found without a judge.

The caller passes the language detector, because it loads a model.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from togi.rewards.repetition import ngrams, repeated_share
from togi.text.compare import normalise
from togi.text.script import Script, expected_scripts, is_spaced, script_shares
from togi.text.template import TEMPLATES

Detect = Callable[[str], tuple[str, float]]
"""Text -> (ISO 639-1 code, confidence from 0 to 1)."""

SURE = 0.5  # minimum confidence of a detected language
LETTERS = {True: 20, False: 8}  # minimum letters for language detection, in scripts with and without spaces
RUN = {True: 4, False: 10}  # n-gram size for repeats: words, or characters in scripts without spaces
LOOP = 3  # minimum repeats of an ending in a loop
LOOP_CHARACTERS = 24  # minimum characters of a loop

_OWN = sorted({mark.strip() for each in TEMPLATES.values() for mark in (each.terminator, *each.turn_starts)})
_OTHERS = (
    *("<s>", "<bos>", "<eos>", "<pad>", "<unk>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<<SYS>>"),
    *("### Instruction:", "### Response:", "### Input:", "### 入力:"),
)
_MARKS = re.compile("|".join([r"<\|[\w ]{1,40}\|>", r"<｜[^｜\n]{1,40}｜>", *map(re.escape, (*_OWN, *_OTHERS))]))
_ROLES = "user|human|assistant|ユーザー|アシスタント|пользователь|ассистент"
_HEADERS = re.compile(rf"^[\s*#]*(?:(?:{_ROLES})\s*\**\s*[:：]|(?:user|assistant|system)\s*$)", re.I | re.M)
_CODE = re.compile(r"```.*?(?:```|\Z)", re.S)
_FOREIGN: tuple[Script, ...] = ("cyrillic", "kana", "kanji", "hangul")


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The defects of one answer. `leaks`: strings of chat templates in it; `headers`: whether a line opens another
    role's turn; `drift`: whether it is not in the expected language (None: cannot be detected); `mixed`: whether it has
    letters of an unexpected script; `repeated`: the share of its n-grams that repeat an earlier one; `looped`: whether
    it ends in a loop."""

    empty: bool
    leaks: tuple[str, ...]
    headers: bool
    drift: bool | None
    mixed: bool
    repeated: float
    looped: bool


def health(prompt: str, answer: str, detect: Detect, language: str | None = None) -> Health:
    """The health of an answer, passed without its terminator.

    `prompt` is the question: strings in it are allowed in the answer. The answer should be in the prompt's language, or
    in `language` (ISO 639-1) if given.
    """
    wanted = language or _language(prompt, detect)
    found = _language(answer, detect)
    return Health(
        empty=not answer.strip(),
        leaks=tuple(mark for mark in dict.fromkeys(_MARKS.findall(answer)) if mark not in prompt),
        headers=bool(_HEADERS.search(answer)) and not _HEADERS.search(prompt),
        drift=None if wanted is None or found is None else found != wanted,
        mixed=_mixed(prompt, answer, wanted),
        repeated=repeated(answer),
        looped=looped(answer),
    )


def repeated(text: str) -> float:
    """The share of 4-word n-grams (10-character ones in scripts without spaces) that repeat an earlier one: seq-rep-n
    of Welleck et al. (arXiv 1908.04319). 0 for a shorter text."""
    plain = normalise(text)
    spaced = is_spaced(plain)
    return repeated_share(ngrams(plain.split() if spaced else plain.replace(" ", ""), RUN[spaced]))


def looped(text: str) -> bool:
    """Whether the text ends in a piece repeated at least three times in a row, over at least 24 characters; the last
    repeat may be incomplete."""
    text = text.strip()
    for period in range(1, len(text) // LOOP + 1):
        span = max(LOOP * period, LOOP_CHARACTERS)
        if span <= len(text) and text[-1] == text[-1 - period] and text[-span:-period] == text[period - span :]:
            return True
    return False


def _language(text: str, detect: Detect) -> str | None:
    """The language of a text without its code blocks; None if it has too few letters or the detector is not sure."""
    prose = _CODE.sub(" ", text)
    if sum(map(str.isalpha, prose)) < LETTERS[is_spaced(prose)]:
        return None
    found, confidence = detect(prose)
    return found if found and confidence >= SURE else None


def _mixed(prompt: str, answer: str, language: str | None) -> bool:
    """Whether the answer has non-Latin letters that neither the language nor the prompt uses. False for a language
    whose scripts are unknown."""
    allowed = expected_scripts(language) if language else None
    if allowed is None:
        return False
    asked = script_shares(prompt)
    return any(script in _FOREIGN and script not in allowed and script not in asked for script in script_shares(answer))
