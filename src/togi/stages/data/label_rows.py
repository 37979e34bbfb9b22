"""The row-wise part of `label`: the judge's replies to the questions of a unit."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from togi.core.errors import GraderError
from togi.core.protocols import Chooser
from togi.core.records import Prompt
from togi.judge.asking import Asker
from togi.judge.reading import read_choice
from togi.stages.data.label import Label
from togi.stages.judging_work import asker_of, grade_reader, judge_prompt
from togi.stages.model_shards import computed
from togi.stages.shards import Shard

TOGETHER = 16  # questions that a local model reads at once for their log-probabilities
Said = dict[str, Any]
"""One reply of the judge: its `text` and the `value` read from it, or whether it `failed`; or a `probability`."""


def reader(settings: Label) -> Callable[[str], Any]:
    """The function that reads a verdict or a grade in a reply."""
    if settings.method == "pairwise":
        return read_choice
    return grade_reader(settings, judge_prompt(settings, "graded"))


def replies(settings: Label, judge: Asker[Any], questions: Sequence[Prompt]) -> list[list[Said]]:
    """The judge's replies to each question, as text."""
    return [
        [{"text": each.text, "value": each.value, "failed": each.failed} for each in answered.attempts]
        for answered in judge.ask(questions, settings.rounds)
    ]


def choices(judge: Chooser, questions: Sequence[Prompt], together: int = TOGETHER) -> list[list[Said]]:
    """One reply to each question, from the log-probabilities of A and B. `together` questions are read at once."""
    asked = [question.messages for question in questions]
    margins = [judge.margins(asked[i : i + together], "A", "B") for i in range(0, len(asked), together)]
    return [[_chosen(margin)] for each in margins for margin in each]


def _chosen(margin: float | GraderError) -> Said:
    if isinstance(margin, GraderError):
        return {"text": str(margin), "value": None, "failed": True}
    return {"probability": _sigmoid(margin)}


def _sigmoid(margin: float) -> float:
    return 1 / (1 + math.exp(-margin)) if margin >= 0 else math.exp(margin) / (1 + math.exp(margin))


def value_of(settings: Label, shard: Shard, more: dict[str, Any]) -> dict[str, Any]:
    """`found`: the replies to the shard's questions."""

    def work(judge: Any) -> list[list[Said]]:
        if settings.by == "logprobs":
            return choices(judge, shard.records)
        return replies(settings, asker_of(settings, shard.seed, judge, reader(settings)), shard.records)

    return computed(settings.judge, shard, more, work)
