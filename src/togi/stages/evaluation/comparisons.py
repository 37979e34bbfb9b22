"""Joins a judge's comparisons with human labels of the same two answers, by their texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from togi.core.records import Message, Pair, Sample, Verdict

Key = tuple[str, str]
"""The ids of two answers, in the order of the samples."""
Asked = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """One comparison. `preference` is the judge's preference for the first answer, averaged over the orders.
    `first_shown` is the share of verdicts for the answer shown first; `consistent` is whether both orders agree. Both
    are None for grades, and without two orders."""

    key: Key
    prompt: str
    models: tuple[str | None, str | None]
    lengths: tuple[int, int]
    preference: float
    first_shown: float | None = None
    consistent: bool | None = None

    def longer(self) -> bool | None:
        """Whether the first answer is longer; None if both have the same length."""
        one, other = self.lengths
        return None if one == other else one > other


def judged_pairs(samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> list[Judged]:
    """The comparisons decided by verdicts, in their order. Grades give a comparison of every two answers to a
    prompt."""
    known = {sample.id: sample for sample in samples}
    place = {name: number for number, name in enumerate(known)}
    if any(len(verdict.answers) == 1 for verdict in verdicts):
        return _by_grades(samples, verdicts)
    last: dict[Key, dict[int, Verdict]] = {}
    for verdict in verdicts:
        if verdict.outcome in ("winner", "tie") and all(name in known for name in verdict.answers):
            one, other = sorted(verdict.answers, key=place.__getitem__)
            last.setdefault((one, other), {})[verdict.order] = verdict
    return [_judged(known, key, list(orders.values())) for key, orders in last.items()]


def _judged(known: Mapping[str, Sample], key: Key, verdicts: Sequence[Verdict]) -> Judged:
    first = [_for_answer(verdict, verdict.answers[0]) for verdict in verdicts]
    mine = [_for_answer(verdict, key[0]) for verdict in verdicts]
    winners = [verdict.winner for verdict in verdicts]
    both = winners[0] == winners[1] if len(winners) == 2 else None
    return _made(known, key, sum(mine) / len(mine), sum(first) / len(first) if both is not None else None, both)


def _for_answer(verdict: Verdict, name: str) -> float:
    """1 if the verdict prefers the answer `name`, 0 if the other one, 0.5 for a tie."""
    return 0.5 if verdict.winner is None else float(verdict.winner == name)


def _made(
    known: Mapping[str, Sample], key: Key, preference: float, first: float | None = None, both: bool | None = None
) -> Judged:
    one, other = known[key[0]], known[key[1]]
    lengths = (len(one.text.strip()), len(other.text.strip()))
    return Judged(key, one.prompt.id, (one.model, other.model), lengths, preference, first, both)


def _by_grades(samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> list[Judged]:
    grades: dict[str, list[float]] = {}
    for verdict in verdicts:
        if verdict.score is not None:
            grades.setdefault(verdict.answers[0], []).append(verdict.score)
    known = {sample.id: sample for sample in samples if sample.id in grades}
    mean = {name: sum(found) / len(found) for name, found in grades.items()}
    prompts: dict[str, list[str]] = {}
    for sample in known.values():
        prompts.setdefault(sample.prompt.id, []).append(sample.id)
    keys = [key for names in prompts.values() for key in combinations(names, 2)]
    return [
        _made(known, key, 0.5 + ((mean[key[0]] > mean[key[1]]) - (mean[key[0]] < mean[key[1]])) / 2) for key in keys
    ]


def label_of(pair: Pair) -> float:
    """The preference for the chosen side: 1, or 0.5 for a tie (margin 0)."""
    return 0.5 if pair.margin == 0 else 1.0


def _asked(messages: Sequence[Message]) -> Asked:
    """The identity of a prompt: its turns without the system turn."""
    return tuple((turn.role, turn.content.strip()) for turn in messages if turn.role != "system")


@dataclass(slots=True)
class Labels:
    """Human labels of a judge's comparisons: their mean preference for the first answer, by comparison."""

    samples: Sequence[Sample]
    judged: Sequence[Judged]
    said: dict[Key, list[float]] = field(default_factory=dict)
    names: dict[tuple[Asked, str], list[str]] = field(default_factory=dict)
    keys: dict[Key, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for sample in self.samples:
            self.names.setdefault((_asked(sample.prompt.messages), sample.text.strip()), []).append(sample.id)
        self.keys = {each.key: each.prompt for each in self.judged}

    def take(self, pair: Pair) -> bool:
        """Adds a label; False if it matches no comparison. The same text from several models counts as several
        answers."""
        asked, value = _asked(pair.prompt), label_of(pair)
        better, worse = (self.names.get((asked, side[-1].content.strip()), []) for side in (pair.chosen, pair.rejected))
        found = False
        for one in better:
            for other in worse:
                for key, preference in (((one, other), value), ((other, one), 1 - value)):
                    if key in self.keys:
                        self.said.setdefault(key, []).append(preference)
                        found = True
        return found

    def human(self) -> dict[Key, float]:
        """The mean label of each comparison that has one."""
        return {key: sum(found) / len(found) for key, found in self.said.items()}

    def annotators(self) -> tuple[list[float], list[str]]:
        """How often two annotators of one comparison agree, and the prompt of each comparison with several."""
        several = [(key, found) for key, found in self.said.items() if len(found) > 1]
        rates = [[float(one == other) for one, other in combinations(found, 2)] for _, found in several]
        return [sum(each) / len(each) for each in rates], [self.keys[key] for key, _ in several]
