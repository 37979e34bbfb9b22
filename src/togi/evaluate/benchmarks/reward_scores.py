"""A reward model's scores of answers, uncut, or cut to the shortest length, so that ending properly or shortening an
answer alone cannot raise its score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

from togi.core.errors import GraderError, InputError
from togi.core.protocols import Scorer
from togi.core.records import Prompt
from togi.evaluate.benchmarks.base import Answered, Compared, Subject, manifest
from togi.evaluate.lengths import cut_to_shortest
from togi.evaluate.table import Metric


@dataclass(frozen=True, slots=True)
class Graded:
    """Scores of a reward model on texts without terminator. With `cut`, all answers to one prompt are cut to the
    shortest one's length."""

    name: str
    judge: Scorer
    cut: bool = False

    @property
    def note(self) -> str:
        """The text that the reward model reads."""
        return "text without terminator" + (", both answers cut to the shorter one's length" if self.cut else "")

    def run(self, subjects: Sequence[Subject], answered: Answered) -> Compared:
        """The mean score of every subject, and its difference from the first. A prompt with an answer that cannot be
        scored is left out for all subjects; the manifest counts such answers. Raises InputError if no prompt is
        left."""
        texts = {each.name: each.texts for each in subjects}
        if self.cut:
            columns = zip(*texts.values(), strict=True)
            texts = dict(zip(texts, map(list, zip(*map(cut_to_shortest, columns), strict=True)), strict=True))
        wrong: list[str] = []
        values = {name: _scores(self.judge, answered.owners, given, wrong) for name, given in texts.items()}
        kept = _whole(answered, values, wrong)
        answered = answered.only(kept)
        scored = {
            name: [score for score in compress(given, kept) if score is not None] for name, given in values.items()
        }
        base, *others = texts
        metric = Metric(name=self.name, higher_is_better=True, note=self.note)
        rows = {name: [answered.row(metric, scored[base], scored[name])] for name in others}
        if self.cut:
            note = "characters of each answer that it reads"
            metric = Metric(name=f"{self.name}: length read", least=0.0, note=note)
            lengths = {name: [float(len(text)) for text in compress(given, kept)] for name, given in texts.items()}
            for name in others:
                rows[name].append(answered.row(metric, lengths[base], lengths[name]))
        made = manifest(answered, cut=self.cut)
        if wrong:
            made["failed"] = {"answers": len(wrong), "first": wrong[0]}
        return Compared(benchmark=self.name, baseline=base, rows=rows, values=values, manifest=made)


def _scores(judge: Scorer, owners: Sequence[Prompt], texts: Sequence[str], wrong: list[str]) -> list[float | None]:
    """The scores; None for an answer without one, with the reason appended to `wrong`."""
    found = judge.score([(prompt.messages, text) for prompt, text in zip(owners, texts, strict=True)])
    wrong += [
        f"prompt {prompt.id}: {score}"
        for prompt, score in zip(owners, found, strict=True)
        if isinstance(score, GraderError)
    ]
    return [None if isinstance(score, GraderError) else score for score in found]


def _whole(answered: Answered, values: Mapping[str, list[float | None]], wrong: Sequence[str]) -> list[bool]:
    """For each answer, whether all subjects' answers to its prompt have scores."""
    columns = zip(answered.owners, *values.values(), strict=True)
    broken = dict.fromkeys(prompt.id for prompt, *scores in columns if None in scores)
    kept = [prompt.id not in broken for prompt in answered.owners]
    if not any(kept):
        raise InputError(f"no prompt has a score for each of its answers; the first failure: {wrong[0]}")
    return kept
