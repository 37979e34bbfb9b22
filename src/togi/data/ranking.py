"""Preference pairs from ranked answers to one prompt: the best against the worst (rejection sampling)."""

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from togi.core.records import Chat, Drop, Message, Pair, Prompt, Sample, Verdict
from togi.core.seeds import make_id
from togi.text.compare import same


@dataclass(frozen=True, slots=True)
class Ranked:
    """An answer with the score that it is ranked by: higher is better."""

    sample: Sample
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How many answers to a prompt are chosen and rejected, and the conditions for a pair.

    With `reference` the chosen side is the prompt's reference answer, which has no score, so `min_gap` and `min_chosen`
    are ignored. Ids are derived from `producer`; `by` is the name of the score.
    """

    stage: str
    producer: str
    by: str
    best: int = 1
    worst: int = 1
    min_gap: float = 0.0
    min_chosen: float | None = None
    max_rejected: float | None = None
    reference: bool = False


def rank(answers: Sequence[Ranked]) -> list[Ranked]:
    """Best first; ties in the order of the answers' numbers, then in input order."""
    return sorted(answers, key=lambda each: (-each.score, each.sample.index or 0))


def pairs_of(ranked: Sequence[Ranked], rules: Rules) -> Iterator[Pair | Drop]:
    """The pairs of one prompt's ranked answers: each of the best with each of the worst, starting with the worst one.

    A prompt with fewer than best + worst answers has none (too_few), so that no answer is on both sides. A pair is
    dropped if its scores are equal (tie), or if their gap or one of them misses its threshold (small_gap,
    chosen_too_low, rejected_too_high). It is also dropped if the texts differ only in case, spacing and punctuation
    (same_text). The drop has the id of the rejected answer.
    """
    prompt, best = ranked[0].sample.prompt, 0 if rules.reference else rules.best
    if len(ranked) < best + rules.worst:
        yield Drop(id=prompt.id, stage=rules.stage, reason="too_few")
        return
    rejected = list(reversed(ranked[-rules.worst :]))
    if rules.reference:
        if not (prompt.answer or "").strip():
            yield Drop(id=prompt.id, stage=rules.stage, reason="no_reference")
            return
        for other in rejected:
            yield _against_reference(prompt, other, rules)
        return
    for chosen in ranked[:best]:
        for other in rejected:
            yield _pair(chosen, other, rules)


def best_chats(ranked: Sequence[Ranked], rules: Rules) -> list[Chat]:
    """The best answers of a prompt as conversations; those below `min_chosen` are left out."""
    least = rules.min_chosen
    return [
        Chat(
            id=make_id(rules.producer, (each.sample.id,), 0),
            parents=(each.sample.id,),
            source=each.sample.source,
            extra=_known(score=each.score, by=rules.by, model=each.sample.model),
            messages=(*each.sample.prompt.messages, Message("assistant", each.sample.text.strip())),
        )
        for each in ranked[: rules.best]
        if least is None or each.score >= least
    ]


def _pair(chosen: Ranked, rejected: Ranked, rules: Rules) -> Pair | Drop:
    gap = chosen.score - rejected.score
    least = rules.min_chosen
    objections = (
        ("tie", gap <= 0),
        ("small_gap", gap < rules.min_gap and not math.isclose(gap, rules.min_gap)),  # 0.7 - 0.4 is 0.3
        ("chosen_too_low", least is not None and chosen.score < least),
        ("rejected_too_high", _too_high(rejected, rules)),
    )
    reason = next((name for name, objects in objections if objects), None)
    if reason is not None:
        return Drop(id=rejected.sample.id, stage=rules.stage, reason=reason)
    more = _known(chosen_score=chosen.score, chosen_model=chosen.sample.model)
    parents = (chosen.sample.id, rejected.sample.id)
    return _built(parents, chosen.sample.text, rejected, rules, more, margin=gap)


def _against_reference(prompt: Prompt, rejected: Ranked, rules: Rules) -> Pair | Drop:
    if _too_high(rejected, rules):
        return Drop(id=rejected.sample.id, stage=rules.stage, reason="rejected_too_high")
    return _built((prompt.id, rejected.sample.id), prompt.answer or "", rejected, rules, {}, margin=None)


def _too_high(rejected: Ranked, rules: Rules) -> bool:
    return rules.max_rejected is not None and rejected.score > rules.max_rejected


def _built(
    parents: tuple[str, ...], chosen: str, rejected: Ranked, rules: Rules, more: dict[str, Any], margin: float | None
) -> Pair | Drop:
    good, bad = chosen.strip(), rejected.sample.text.strip()
    if same(good, bad):
        return Drop(id=rejected.sample.id, stage=rules.stage, reason="same_text")
    scores = _known(by=rules.by, rejected_score=rejected.score, rejected_model=rejected.sample.model)
    return Pair(
        id=make_id(rules.producer, parents, 0),
        parents=parents,
        source=rejected.sample.source,
        extra={**more, **scores},
        prompt=rejected.sample.prompt.messages,
        chosen=(Message("assistant", good),),
        rejected=(Message("assistant", bad),),
        margin=margin,
    )


def _known(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


# --- verdicts ---------------------------------------------------------------------------------------------------------


class Wins:
    """Scores of answers from a judge's verdicts: for comparisons, the share that an answer won, where a tie is half a
    win for each; for grades, the mean grade. Unreadable and failed verdicts are ignored.

    An answer takes about 150 bytes of memory: a hash of its id with its position, a sum, and a count.
    """

    def __init__(self) -> None:
        self._place: dict[bytes, int] = {}
        self._sums = array("d")
        self._counts = array("q")

    def take(self, verdict: Verdict) -> None:
        """Counts one verdict."""
        if verdict.outcome in ("unreadable", "failed"):
            return
        if len(verdict.answers) == 2:
            one, other = verdict.answers
            first = verdict.probability
            if first is None:
                first = 0.5 if verdict.winner is None else float(verdict.winner == one)
            self._add(one, first)
            self._add(other, 1.0 - first)
        elif verdict.score is not None:
            for answer in verdict.answers:
                self._add(answer, verdict.score)

    def _add(self, answer: str, value: float) -> None:
        place = self._place.setdefault(_key(answer), len(self._sums))
        if place == len(self._sums):
            self._sums.append(0.0)
            self._counts.append(0)
        self._sums[place] += value
        self._counts[place] += 1

    def score(self, answer: str) -> float | None:
        """The mean result of an answer; None for an answer without a verdict."""
        place = self._place.get(_key(answer))
        return None if place is None else self._sums[place] / self._counts[place]


def _key(name: str) -> bytes:
    """A hash that identifies an id."""
    return blake2b(name.encode(), digest_size=16).digest()
