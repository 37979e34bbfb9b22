"""How a benchmark asks its subjects and its judge, and whether the judge's replies can be read."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from togi.core.records import Prompt, SamplingParams
from togi.core.settings import ModelRef
from togi.judge.asking import Answered

FIRST = 8
"""The number of questions in a judge's first unit, and of unreadable replies after which a benchmark stops. It is
small, because each request may cost money."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """Options of one of several calls. `repeat` counts earlier calls with the same greedy questions, so that a server
    is asked again. With `refusable`, a server may refuse every prompt of this call; the benchmark itself checks that it
    got answers. `asked` lists the prompts for the manifest, if this call leaves some out."""

    repeat: int = 0
    refusable: bool = False
    asked: Sequence[Prompt] | None = None


ONCE = Again()


@dataclass(frozen=True, slots=True)
class Asking:
    """How a judge is asked: `rounds` readable verdicts on each question, with up to `retries` repeats for an unreadable
    one. `phase` distinguishes several calls of one benchmark; those of one kind have the same text before the first
    hyphen. `judge` replaces the evaluation's judge."""

    params: SamplingParams
    phase: str = "verdicts"
    retries: int = 1
    rounds: int = 1
    judge: ModelRef | None = None
    again: Again = ONCE

    @property
    def kind(self) -> str:
        """What is asked, regardless of the subject and the round."""
        return self.phase.partition("-")[0]

    def note(self, noted: dict[str, Any]) -> None:
        """Adds the parameters to the manifest. A subject that acts as judge is listed there already."""
        phase = self.phase if self.judge is None else "subjects"
        told = {"sampling": asdict(self.params), "retries": self.retries, "rounds": self.rounds}
        noted.setdefault("judged", {})[phase] = told


@dataclass(slots=True)
class Legible:
    """How many questions to a judge have a readable reply, how many only unreadable ones, and the first such reply.
    Failed requests count as neither."""

    read: int = 0
    unread: int = 0
    text: str = ""

    def note(self, found: Sequence[Answered[Any]]) -> None:
        """Adds the replies to some questions."""
        self.read += sum(bool(each.values) for each in found)
        lost = [each for each in found if not (each.values or each.failed)]
        if lost and not self.unread:
            self.text = lost[0].attempts[0].text
        self.unread += len(lost)
