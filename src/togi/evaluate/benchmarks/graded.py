"""The scores that a reward model gives to answers: whole ones, or ones cut to the length of the shortest, so that
closing or shortening an answer cannot raise its score by itself."""

from collections.abc import Sequence
from dataclasses import dataclass

from togi.core.errors import GraderError, InputError
from togi.core.protocols import Scorer
from togi.core.records import Prompt
from togi.evaluate.benchmarks.base import Answered, Subject, Table, manifest
from togi.evaluate.lengths import cut_characters
from togi.evaluate.table import Metric


@dataclass(frozen=True, slots=True)
class Graded:
    """Scores of a reward model on the texts without terminator. With `cut`, all answers to one prompt are cut to the
    length of the shortest."""

    name: str
    judge: Scorer
    cut: bool = False

    @property
    def note(self) -> str:
        """What the reward model read."""
        return "text without terminator" + (", both answers cut to the shorter one's length" if self.cut else "")

    def run(self, subjects: Sequence[Subject], answered: Answered) -> Table:
        """The mean score of every subject, and its difference from the first. Raises InputError for an answer that
        cannot be scored."""
        texts = {each.name: each.texts for each in subjects}
        if self.cut:
            columns = zip(*texts.values(), strict=True)
            texts = dict(zip(texts, map(list, zip(*map(_shortest, columns), strict=True)), strict=True))
        values = {name: _scores(self.judge, answered.owners, given) for name, given in texts.items()}
        base, *others = texts
        metric = Metric(name=self.name, higher_is_better=True, note=self.note)
        rows = {name: [answered.row(metric, values[base], values[name])] for name in others}
        if self.cut:
            metric = Metric(name=f"{self.name}: length read", note="characters that it read of each answer")
            lengths = {name: [float(len(text)) for text in given] for name, given in texts.items()}
            for name in others:
                rows[name].append(answered.row(metric, lengths[base], lengths[name]))
        made = manifest(answered, cut=self.cut)
        return Table(benchmark=self.name, baseline=base, rows=rows, values=values, manifest=made)


def _shortest(texts: Sequence[str]) -> tuple[str, ...]:
    """Answers to one prompt, cut to the shortest one's length."""
    shortest = min(texts, key=len)
    return tuple(cut_characters(text, shortest)[0] for text in texts)


def _scores(judge: Scorer, owners: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    """The scores, none missing, because subjects are compared answer by answer. Raises InputError for a missing one."""
    scores = []
    found = judge.score([(prompt.messages, text) for prompt, text in zip(owners, texts, strict=True)])
    for prompt, score in zip(owners, found, strict=True):
        if isinstance(score, GraderError):
            raise InputError(f"prompt {prompt.id}: {score}; leave the prompt out or lower max_tokens")
        scores.append(score)
    return scores
