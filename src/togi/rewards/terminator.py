"""Gate: the answer ends with the template's terminator and stays within its turn."""

from dataclasses import dataclass

from togi.rewards.base import Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminatorCheck:
    """Passes an answer that is not blank, ends with its only terminator (whitespace may follow), contains no string of
    `turn_starts`, and was not cut off by the token budget. It searches the text, not the ids."""

    terminator: str
    turn_starts: tuple[str, ...] = ()

    def __call__(self, attempt: Attempt) -> str | None:
        text = attempt.completion.text
        before, _, after = text.partition(self.terminator)
        broken = {
            "length": attempt.completion.stop == "length",
            "error": attempt.completion.stop == "error",
            "no_terminator": self.terminator not in text,
            "several_terminators": self.terminator in after,
            "text_after_terminator": bool(after.strip()),
            "turn_start": any(start in text for start in self.turn_starts),
            "empty": not before.strip(),
        }
        return next((reason for reason, found in broken.items() if found), None)
