"""The rules of `synthesize`: why a candidate is dropped."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from togi.core.records import Prompt
from togi.data.filters import Filter, copy_of_seed, first_failure, repeated_ngrams, too_long, too_short, wrong_script
from togi.stages.data.synthesize import Synthesize
from togi.text.compare import comparable


def unusable(row: dict[str, Any]) -> str | None:
    """The drop reason of a row without a readable answer, else None."""
    if row["stop"] == "error":
        return "failed"
    if row["stop"] == "over_context":
        return "over_context"
    return "no_end" if row["stop"] == "length" else None


class Rules:
    """The rules for a question and its answer; each gives a drop reason or None. With `distinct`, repetitions of a
    question about the same text are dropped."""

    def __init__(self, settings: Synthesize, seeds: Sequence[Prompt] = (), *, distinct: bool = True) -> None:
        repeats = repeated_ngrams(settings.max_repeated_ngrams)
        self.question: list[Filter] = [too_short(settings.min_chars), too_long(settings.longest_question)]
        self.question += [wrong_script(settings.language), copy_of_seed([seed.text for seed in seeds]), repeats]
        self.answer: list[Filter] = [copy_of_seed([seed.answer for seed in seeds if seed.answer]), repeats]
        self.known: set[bytes] | None = set() if distinct else None  # hashes: some 100 bytes per accepted question

    def failure(self, question: str, answer: str | None = None, about: str = "") -> str | None:
        """Returns the first broken rule. A question that passes is remembered, with the text that it is about if it may
        be asked about another one too."""
        if not question:
            return "empty"
        if answer is not None and not answer:
            return "no_answer"
        reason = first_failure(question, self.question) or first_failure(answer or "", self.answer)
        return reason or self._duplicate(question, about)

    def _duplicate(self, question: str, about: str) -> str | None:
        if self.known is None:
            return None
        told = f"{comparable(question)}\0{about}"
        key = blake2b(told.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key in self.known:
            return "duplicate"
        self.known.add(key)
        return None
