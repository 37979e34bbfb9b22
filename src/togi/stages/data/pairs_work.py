"""The work of `pairs`: one pass over the samples that holds only the answers to one prompt in memory."""

import math
from collections.abc import Iterator
from hashlib import blake2b
from itertools import groupby

from togi.core.errors import InputError, StageError
from togi.core.records import Drop, Pair, Sample
from togi.data.ranking import Ranked, Rules, Wins, best_chats, pairs_of, rank
from togi.stages.context import Context
from togi.stages.data.answers import PlainAnswers
from togi.stages.data.pairs import Pairs, wrong_score

EXAMPLES = 12


def run(settings: Pairs, context: Context) -> None:
    """Raises InputError if it is unclear which score to rank by, and StageError if neither pairs nor best answers
    result."""
    ranking = _Ranking(settings, context)
    rules = _rules(settings, context, ranking.by)
    examples: list[Pair] = []
    with context.writer("pairs") as pairs, context.writer("chats", "best") as best:
        for answers in ranking.groups():
            ranked = rank(answers)
            made = list(pairs_of(ranked, rules))
            context.drop_all(each for each in made if isinstance(each, Drop))
            kept = [each for each in made if isinstance(each, Pair)]
            examples += kept[: EXAMPLES - len(examples)]
            pairs.write(kept)
            best.write(best_chats(ranked, rules))
        _look_at_harvest(context, pairs.count, best.count)
    ranking.tell_torn()
    context.summary |= {"by": ranking.by, "examples": [_shown(pair) for pair in examples]}


def _rules(settings: Pairs, context: Context, by: str) -> Rules:
    return Rules(
        stage=context.name,
        producer=context.folder.name,
        by=by,
        best=settings.best,
        worst=settings.worst,
        min_gap=settings.min_gap,
        min_chosen=settings.min_chosen,
        max_rejected=settings.max_rejected,
        reference=settings.chosen == "reference",
    )


class _Ranking:
    """What answers are ranked `by`, and their scores. `torn` counts prompts whose answers are not adjacent."""

    def __init__(self, settings: Pairs, context: Context) -> None:
        self.settings = settings
        self.context = context
        self.plain = PlainAnswers.of(context, settings.samples)
        self.wins = _wins(settings, context)
        self.by = "verdicts" if self.wins is not None else _score_name(settings, context)
        self.torn = 0

    def groups(self) -> Iterator[list[Ranked]]:
        """Yields the scored answers to each prompt that has any; counts all prompts."""
        seen: dict[bytes, None] = {}
        samples = (sample for batch in self.context.batches(self.settings.samples) for sample in batch)
        self.context.counts["samples"] = self.context.records_count(self.settings.samples)
        for prompt, answers in groupby(samples, key=lambda sample: sample.prompt.id):
            key = blake2b(prompt.encode(), digest_size=8).digest()
            self.torn += key in seen
            seen[key] = None
            self.context.count_in(1)
            if ranked := [each for answer in answers if (each := self._ranked(answer)) is not None]:
                yield ranked

    def _ranked(self, sample: Sample) -> Ranked | None:
        score = sample.scores.get(self.by) if self.wins is None else self.wins.score(sample.id)
        if score is None or not math.isfinite(score):
            self.context.drop(sample, "no_score")
            return None
        return Ranked(self.plain(sample), score)

    def tell_torn(self) -> None:
        """Raises an alarm if answers to one prompt occur in several places, since each place is ranked separately."""
        if self.torn:
            self.context.alarm(
                "torn_prompts",
                f"{self.torn} times answers to a prompt are not adjacent to earlier ones, so they are ranked "
                "separately; this is right only for samples of a policy from several training steps",
                value=self.torn,
            )


def _wins(settings: Pairs, context: Context) -> Wins | None:
    if settings.verdicts is None:
        return None
    wins = Wins()
    for batch in context.batches(settings.verdicts):
        for verdict in batch:
            wins.take(verdict)
    return wins


def _score_name(settings: Pairs, context: Context) -> str:
    """Returns the score to rank by: the one named in the settings, else the only one. Some answers may lack it."""
    names: dict[str, None] = {}
    for batch in context.batches(settings.samples):
        names |= dict.fromkeys(name for sample in batch for name in sample.scores)
        if settings.by in names:
            return settings.by
    if wrong := wrong_score(settings, list(names)):
        raise InputError(f"stage {context.name}: {wrong}")
    return next(iter(names))


def _look_at_harvest(context: Context, pairs: int, best: int) -> None:
    prompts, why = context.counts.get("in", 0), context.drop_reasons()
    if not pairs and not best:
        raise StageError(f"stage {context.name}: the answers to {prompts} prompts gave no records; reasons: {why}")


def _shown(pair: Pair) -> dict[str, object]:
    """A pair as the report shows it."""
    question = next((m.content for m in reversed(pair.prompt) if m.role == "user"), "")
    sides = (("chosen", pair.chosen), ("rejected", pair.rejected))
    said = [{"who": who, "text": side[-1].content, "score": pair.extra.get(f"{who}_score")} for who, side in sides]
    return {"question": question, "said": said}
