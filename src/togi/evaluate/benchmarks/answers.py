"""Measures that need only the answers: whether they end properly, their length, and their diversity."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from togi.data.features import HashedNgrams
from togi.evaluate.benchmarks.base import Answered, Compared, Subject, manifest
from togi.evaluate.diversity import Texts, diversity_rows
from togi.evaluate.table import Metric


@dataclass(frozen=True, slots=True)
class Measured:
    """A measure with one number per answer, taken from the subject."""

    name: str
    metric: Metric
    values: Callable[[Subject], Sequence[float]]

    def run(self, subjects: Sequence[Subject], answered: Answered) -> Compared:
        """The mean of every subject, and its difference from the first subject."""
        values = {each.name: [float(value) for value in self.values(each)] for each in subjects}
        base, *others = values
        rows = {name: [answered.row(self.metric, values[base], values[name])] for name in others}
        return Compared(benchmark=self.name, baseline=base, rows=rows, values=values, manifest=manifest(answered))


CLOSED = Measured(
    "closed",
    Metric(
        name="ended properly",
        higher_is_better=True,
        note="share of answers that pass the terminator gate",
        share=True,
    ),
    lambda subject: subject.closed,
)
LENGTH = Measured("length", Metric(name="length (tokens)", least=0.0), lambda subject: subject.lengths)
CHARACTERS = Measured(
    "length",
    Metric(name="length (characters)", least=0.0),
    lambda subject: [float(len(text)) for text in subject.texts],
)
"""For subjects that do not report token counts."""


@dataclass(frozen=True, slots=True)
class Diversity:
    """How much the first answers to the prompts differ from one another. The answers of two subjects to a prompt are
    cut to the same length."""

    language: str
    name: str = "diversity"

    def run(self, subjects: Sequence[Subject], answered: Answered) -> Compared:
        """Distinct n-grams, self-BLEU and dispersion of every subject compared with the first."""
        base, *others = subjects
        first = slice(None, None, answered.samples)
        embedder = HashedNgrams()
        rows = {}
        for each in others:
            texts = Texts(base=base.texts[first], policy=each.texts[first]).cut()
            vectors = (embedder.embed(texts.base), embedder.embed(texts.policy))
            rows[each.name] = diversity_rows(texts, self.language, answered.bootstrap, vectors)
        made = manifest(answered, language=self.language)
        return Compared(benchmark=self.name, baseline=base.name, rows=rows, manifest=made)
