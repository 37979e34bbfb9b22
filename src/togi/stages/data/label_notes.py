"""What `label` reports about its judge: how many verdicts were readable, how often it prefers the first answer, and
whether it judged its own answers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from togi.core.errors import StageError
from togi.core.records import Sample, Verdict
from togi.judge.contests import Contest
from togi.stages.context import Context
from togi.stages.data.label import Label
from togi.stages.data.shown import PROMPTS
from togi.stages.kinship import Kin, relation, same_model

LEANING = 0.15  # alarm if the share of verdicts for the first answer deviates more than this from one half
ENOUGH = 50  # decided verdicts needed before that share is meaningful


@dataclass(slots=True)
class Tally:
    """Counts the last verdicts of each comparison or answer; `grades` is the sum of the `graded` grades."""

    settings: Label
    context: Context
    asked: int = 0
    read: int = 0
    decided: int = 0
    first: int = 0
    both: int = 0
    agree: int = 0
    graded: int = 0
    grades: float = 0.0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def show(self, contest: Contest, last: Sequence[Verdict]) -> None:
        """Keeps the first comparisons for the report: both answers in the order of the judge's first question, and its
        reply."""
        if len(self.examples) >= PROMPTS:
            return
        verdict = last[0]
        answers = contest.shown(contest.swapped[0])
        said: list[dict[str, Any]] = [
            {"who": f"{letter}: {answer.model or 'unknown'}", "text": answer.text, "score": None}
            for letter, answer in zip("AB", answers, strict=True)
        ]
        words = verdict.text or ("" if verdict.probability is None else f"p(A) = {verdict.probability:.4g}")
        said.append({"who": f"{verdict.judge} ({verdict.outcome})", "text": words, "score": None})
        self.examples.append({"question": contest.prompt.text, "said": said})

    def note(self, last: Sequence[Verdict]) -> None:
        """Counts the verdicts on one comparison (one per order) or on one answer."""
        self.asked += len(last)
        self.read += sum(verdict.outcome not in ("unreadable", "failed") for verdict in last)
        for verdict in last:
            if verdict.score is not None:
                self.graded, self.grades = self.graded + 1, self.grades + verdict.score
        winners = [verdict.winner for verdict in last if verdict.outcome in ("winner", "tie")]
        decided = [verdict for verdict in last if verdict.winner is not None]
        self.decided += len(decided)
        self.first += sum(verdict.winner == verdict.answers[0] for verdict in decided)
        if len(winners) == 2:
            self.both += 1
            self.agree += winners[0] == winners[1]

    def note_own(self, samples: Sequence[Sample], names: Sequence[str], judge: Kin, writers: Mapping[str, Kin]) -> None:
        """Raises an alarm if the judge, which has `names`, or a relative of it wrote some of the answers. `writers` are
        the known models that wrote them."""
        own = [*names, *(name for name, writer in writers.items() if same_model(writer, judge))]
        near = {name: said for name, writer in writers.items() if (said := relation(name, writer, judge))}
        wrote = Counter("" if _wrote(sample, own) else sample.model for sample in samples)
        family = {name: count for name, count in wrote.items() if name in near and count}
        self._alarm_own("judges_itself", "answers_of_the_judge", wrote[""], len(samples))
        told = "; ".join(near[name] for name in family if name)
        self._alarm_own("judges_its_family", "answers_of_its_family", sum(family.values()), len(samples), told)

    def _alarm_own(self, alarm: str, key: str, count: int, total: int, told: str = "") -> None:
        """Raises an alarm about `count` answers of the judge or, as `told`, of its family."""
        if not count:
            return
        judge, whose = self.settings.judge, "their family's answers" if told else "their own answers"
        what = f"{count} of {total} answers that {judge} judges are of its family ({told})"
        what = what if told else f"{judge} wrote {count} of {total} answers that it judges"
        self.context.summary[key] = count
        self.context.alarm(
            alarm,
            f"{what}, and judges favour {whose}. Use `calibrate` to measure this bias, or another model as judge to "
            "avoid it",
            value=count / total,
            threshold=0.0,
        )

    def refuse_unreadable(self, said: Sequence[Mapping[str, Any]]) -> None:
        """Raises StageError if none of the replies is readable: then the judge, its prompt or the endpoint is wrong."""
        if not said or any(each.get("value") is not None or "probability" in each for each in said):
            return
        failed = sum(each["failed"] for each in said)
        text = next((each["text"] for each in said if each["text"]), "")
        cause = f"the first of {len(said)}: {text[:300]!r}"
        if failed:
            cause = f"{failed} of {len(said)} requests failed" + (f", the first: {text[:300]}" if text else "")
        what = "[[A]], [[B]] or [[C]]" if self.settings.method == "pairwise" else "a grade such as [[7]]"
        raise StageError(
            f"stage {self.context.name}: no reply of {self.settings.judge} can be read as a verdict ({cause}). "
            f"Raise max_tokens if the reply is cut off, use a prompt that asks for {what}, or choose another judge"
        )

    def finish(self) -> None:
        """Writes the figures to the summary."""
        summary = self.context.summary
        summary |= {"examples": self.examples} if self.examples else {}
        summary["verdicts_asked"] = self.asked
        summary["verdicts_unreadable"] = self.asked - self.read
        if self.graded:
            summary["mean_grade"] = self.grades / self.graded
        if self.both:
            summary["orders_agree"] = self.agree / self.both
        if self.decided:
            share = self.first / self.decided
            summary["first_answer_preferred"] = share
            if self.decided >= ENOUGH and abs(share - 0.5) > LEANING:
                place, often = ("first", share) if share > 0.5 else ("second", 1 - share)
                self.context.alarm(
                    "position_bias",
                    f"{self.settings.judge} preferred the answer shown {place} in {often:.0%} of {self.decided} "
                    "verdicts; keep only verdicts on which both orders agree",
                    value=share,
                    threshold=0.5,
                )


def _wrote(sample: Sample, names: Sequence[str]) -> bool:
    """Whether one of the models in `names` wrote the answer, under its own name or as another model of the same
    source."""
    if sample.model in names:
        return True
    own = [source for source in sample.sources if source not in sample.prompt.sources]
    return any(source.kind == "model" and source.dataset in names for source in own)
