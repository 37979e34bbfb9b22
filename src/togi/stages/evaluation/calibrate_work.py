"""Runs `calibrate`: joins verdicts, answers and labels by their texts, then counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from togi.core.errors import InputError
from togi.core.records import Figure, Pair, Sample, Verdict
from togi.core.seeds import derive, make_id
from togi.evaluate.calibration import (
    FEWEST,
    Corrected,
    clustered_mean,
    count_tables,
    kappa_interval,
    prediction_powered,
    side,
)
from togi.evaluate.statistics import Bootstrap, Interval, by_prompt
from togi.evaluate.table import Metric, Row, rows_to_json, single
from togi.stages.context import Context
from togi.stages.evaluation.calibrate import Calibrate
from togi.stages.evaluation.comparisons import Judged, Labels, judged_pairs


def run(settings: Calibrate, context: Context) -> None:
    samples: list[Sample] = context.records(settings.samples)
    verdicts: list[Verdict] = context.records(settings.verdicts)
    labels: list[Pair] = context.records(settings.labels)
    context.count_in(len(labels))
    judged = judged_pairs(samples, verdicts)
    found = Labels(samples, judged)
    for pair in labels:
        if not found.take(pair):
            context.drop(pair, "not_judged")
    human = found.human()
    labelled = [(each, human[each.key]) for each in judged if each.key in human]
    _refuse_few(context, settings, labelled)
    measure = _Measures(settings, context, verdicts[0].judge)
    measure.agreement(labelled, found)
    measure.leanings(labelled, judged)
    measure.own_answers(labelled, samples)
    measure.win_rates(labelled, judged)
    measure.unreadable(verdicts)
    context.write("tables", measure.figures())
    context.counts["out"] = len(labels) - len(context.drops)
    context.summary |= {"table": rows_to_json(measure.rows), "labelled_comparisons": len(labelled)}
    context.summary["judged_comparisons"] = len(judged)


def _refuse_few(context: Context, settings: Calibrate, labelled: Sequence[tuple[Judged, float]]) -> None:
    prompts = len(dict.fromkeys(each.prompt for each, _ in labelled))
    if prompts < 2:
        raise InputError(
            f"stage {context.name}: {len(context.drops)} of {context.counts['in']} labels of {settings.labels} match "
            f"no comparison of {settings.verdicts}, and the others cover {prompts} prompts; at least 2 are needed. "
            "A label matches if its prompt and both its answers have the same text as those that were judged"
        )
    if len(labelled) < FEWEST:
        context.alarm(
            "few_labels",
            f"only {len(labelled)} comparisons are labelled, so the intervals are rough; label at least {FEWEST}, "
            "drawn at random",
            value=float(len(labelled)),
            threshold=float(FEWEST),
        )


Labelled = Sequence[tuple[Judged, float]]


@dataclass(slots=True)
class _Measures:
    """Collects the rows of the table. `judge` is the judge's name."""

    settings: Calibrate
    context: Context
    judge: str
    rows: list[Row] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)

    @property
    def bootstrap(self) -> Bootstrap:
        """The bootstrap for intervals."""
        seed = derive(self.context.seed, "bootstrap")
        return Bootstrap(seed=seed, level=self.settings.level, resamples=self.settings.bootstrap)

    def figures(self) -> list[Figure]:
        """The rows as records."""
        return [
            Figure(
                id=make_id(self.context.folder.name, (), number),
                benchmark="calibration",
                metric=row.metric,
                subject=subject,
                value=row.policy.mean,
                low=row.policy.low,
                high=row.policy.high,
                count=row.policy.n,
                higher_is_better=row.higher_is_better,
                note=row.note,
            )
            for number, (row, subject) in enumerate(zip(self.rows, self.subjects, strict=True))
        ]

    def agreement(self, labelled: Labelled, found: Labels) -> None:
        """How often the judge and people agree; kappa corrects for agreement by chance."""
        judged, human = [each.preference for each, _ in labelled], [label for _, label in labelled]
        prompts = [each.prompt for each, _ in labelled]
        same = [float(side(one) == side(other)) for one, other in zip(judged, human, strict=True)]
        self._share(_metric("agreement", True, "both prefer the same answer, or both call a tie"), same, prompts)
        clear = [i for i in range(len(same)) if side(judged[i]) != 1 and side(human[i]) != 1]
        note = "only comparisons that neither calls a tie"
        self._share(
            _metric("agreement without ties", True, note), [same[i] for i in clear], [prompts[i] for i in clear]
        )
        value, low, high = kappa_interval(
            count_tables(judged, human, prompts),
            seed=derive(self.context.seed, "kappa"),
            resamples=self.settings.bootstrap,
            level=self.settings.level,
        )
        if low == low:  # NaN if all verdicts and labels are the same: kappa is not defined
            self._add(_metric("kappa", True, "0 is chance, 1 is perfect agreement"), value, low, high, len(labelled))
        pairs, owners = found.annotators()
        note = "the same two answers, two annotators"
        self._share(_metric("agreement among people", None, note), pairs, owners)

    def leanings(self, labelled: Labelled, judged: Sequence[Judged]) -> None:
        """What sways the judge besides quality."""
        shown = [(each.first_shown, each.prompt) for each in judged if each.first_shown is not None]
        note = "how often it prefers the answer shown first; 0.5 is fair"
        self._share(_metric("position bias: first preferred", None, note), *_columns(shown))
        both = [(float(each.consistent), each.prompt) for each in judged if each.consistent is not None]
        self._share(_metric("position bias: orders agree", True, "the same winner in both orders"), *_columns(both))
        longer = [(each.longer(), each, label) for each, label in labelled if each.longer() is not None]
        note = "how much more often than people it prefers the longer answer; 0 is fair"
        self._difference(
            _metric("length bias", None, note),
            [label if first else 1 - label for first, _, label in longer],
            [each.preference if first else 1 - each.preference for first, each, _ in longer],
            [each.prompt for _, each, _ in longer],
        )

    def own_answers(self, labelled: Labelled, samples: Sequence[Sample]) -> None:
        """Whether the judge favours its own answers."""
        own = self.settings.own or (self.judge,)
        self._check_own(own, samples)
        mixed = [pair for pair in labelled if (pair[0].models[0] in own) is not (pair[0].models[1] in own)]
        first = [each.models[0] in own for each, _ in mixed]
        self._difference(
            _metric(f"self-preference: {', '.join(own)}", None, "how much more often than people it prefers its own"),
            [label if mine else 1 - label for mine, (_, label) in zip(first, mixed, strict=True)],
            [each.preference if mine else 1 - each.preference for mine, (each, _) in zip(first, mixed, strict=True)],
            [each.prompt for each, _ in mixed],
        )

    def _check_own(self, own: Sequence[str], samples: Sequence[Sample]) -> None:
        known = sorted({sample.model for sample in samples if sample.model is not None})
        if unknown := [name for name in self.settings.own if name not in known]:
            raise InputError(
                f"stage {self.context.name}: own names {', '.join(unknown)}, but the answers are by "
                f"{', '.join(known) or 'models without a name'}"
            )

    def win_rates(self, labelled: Labelled, judged: Sequence[Judged]) -> None:
        """Each model's win rate against the others: by the judge, by people, and corrected."""
        names = list(dict.fromkeys(name for each in judged for name in each.models if name is not None))
        labels = {each.key: label for each, label in labelled}
        for name in names if len(names) > 1 else ():
            mine = [each for each in judged if each.models.count(name) == 1]
            known = [each for each in mine if each.key in labels]
            rest = [each for each in mine if each.key not in labels]
            if len(dict.fromkeys(each.prompt for each in known)) < 2:
                continue
            said = [_of(name, each, each.preference) for each in mine]
            truth = [_of(name, each, labels[each.key]) for each in known]
            owners = [each.prompt for each in known]
            judge = clustered_mean(said, [each.prompt for each in mine], self.settings.level)
            self._rate(f"win rate of {name}: by the judge", judge, len(mine), name, "all comparisons")
            people = clustered_mean(truth, owners, self.settings.level)
            self._rate(f"win rate of {name}: by people", people, len(known), name, "labelled comparisons only")
            fair = prediction_powered(
                truth,
                [_of(name, each, each.preference) for each in known],
                [_of(name, each, each.preference) for each in rest],
                prompts_L=owners,
                prompts_U=[each.prompt for each in rest],
                level=self.settings.level,
            )
            note = f"prediction-powered, {len(known)} labels, weight of the judge {fair.weight:.2f}"
            self._rate(f"win rate of {name}: corrected", fair, len(mine), name, note)

    def _rate(self, name: str, rate: Corrected, n: int, subject: str, note: str) -> None:
        self._add(_metric(name, None, note), rate.mean, rate.low, rate.high, n, subject)

    def unreadable(self, verdicts: Sequence[Verdict]) -> None:
        """The share of verdicts that are unreadable or failed."""
        lost = [(float(each.outcome in ("unreadable", "failed")), each.prompt) for each in verdicts]
        note = "texts without a verdict, including those that were asked for again"
        self._share(_metric("unreadable", False, note), *_columns(lost))

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _share(self, metric: Metric, values: Sequence[float], prompts: Sequence[str]) -> None:
        """Adds a row with a share, the mean over prompts; no row if fewer than two prompts have a value."""
        self._row(metric, lambda: self.bootstrap.share(by_prompt(values, prompts)), prompts)

    def _difference(
        self, metric: Metric, human: Sequence[float], judged: Sequence[float], prompts: Sequence[str]
    ) -> None:
        """Adds a row with the judge's share of the comparisons minus people's share; the comparisons of one prompt are
        not independent."""
        self._row(metric, lambda: self.bootstrap.share_difference(human, judged, prompts), prompts)

    def _row(self, metric: Metric, interval: Callable[[], Interval], prompts: Sequence[str]) -> None:
        if len(dict.fromkeys(prompts)) >= 2:
            self.rows.append(single(metric, interval()))
            self.subjects.append(self.judge)

    def _add(self, metric: Metric, mean: float, low: float, high: float, n: int, subject: str = "") -> None:
        found = Interval(mean=mean, low=low, high=high, level=self.settings.level, n=n)
        self.rows.append(single(metric, found))
        self.subjects.append(subject or self.judge)


def _metric(name: str, higher_is_better: bool | None, note: str) -> Metric:
    return Metric(name=name, higher_is_better=higher_is_better, note=note)


def _columns(rows: Sequence[tuple[float, str]]) -> tuple[list[float], list[str]]:
    return [value for value, _ in rows], [prompt for _, prompt in rows]


def _of(name: str, each: Judged, preference: float) -> float:
    """The preference for the named model's answer."""
    return preference if each.models[0] == name else 1 - preference
