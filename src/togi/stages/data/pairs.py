"""Declares the stage `pairs`: preference pairs from scored answers (rejection sampling), and the best answers as
chats."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import SamplesRef, VerdictsRef
from togi.stages.base import StageSettings, StageType, gives
from togi.stages.cost import Cost, Inputs, part_of, passing_on
from togi.stages.known_answers import AnswersOf

REASONS = (
    *("no_score", "too_few", "no_reference"),
    *("tie", "small_gap", "chosen_too_low", "rejected_too_high", "same_text"),
)
"""Drop reasons: of answers and prompts first, then of pairs, which are dropped under the id of their rejected
answer."""


class Pairs(StageSettings):
    """Pairs the best answers to each prompt with the worst, ranked by a score, a grade or a judge's verdicts.

    Answers are ranked by score, ties by their number. A prompt with fewer than best + worst answers gives no pair.
    Pairs with equal scores are dropped, and so are pairs whose texts differ only in case, spacing and punctuation. A
    second output, `best`, holds the best answers as chats: best-of-n for SFT.
    """

    type: Literal["pairs"] = "pairs"
    samples: SamplesRef = Field(description="answers with scores; all answers to one prompt must be adjacent")
    verdicts: VerdictsRef | None = Field(
        default=None,
        description="a judge's verdicts on these answers: rank by the share of comparisons that an answer won, or "
        "by its mean grade, instead of a score",
    )
    by: str | None = Field(default=None, min_length=1, description="score to rank by, if the samples have several")
    best: int = Field(default=1, ge=1, description="number of best answers to each prompt to choose")
    worst: int = Field(default=1, ge=1, description="number of worst answers to each prompt to reject")
    chosen: Literal["best", "reference"] = Field(
        default="best",
        description="reference: the chosen side is the prompt's reference answer, instead of the best answers",
    )
    min_gap: float = Field(default=0.0, ge=0, description="minimum difference between the scores of a pair")
    min_chosen: float | None = Field(default=None, description="lowest score of a chosen answer")
    max_rejected: float | None = Field(default=None, description="highest score of a rejected answer")

    @model_validator(mode="after")
    def _reads_what_it_is_given(self) -> Self:
        if self.verdicts is not None and self.by is not None:
            raise ValueError("answers are ranked either by verdicts or by a score: remove verdicts or by")
        if self.chosen == "reference" and (self.min_gap or self.min_chosen is not None):
            name = "min_gap" if self.min_gap else "min_chosen"
            raise ValueError(f"{name} is not read with chosen: reference, which has no score; remove it")
        return self


def estimate(settings: Pairs, inputs: Inputs) -> Cost:
    """Without a known group size: each rejected answer makes at most one pair per chosen side."""
    came = inputs[settings.samples]
    sides = settings.best if settings.chosen == "best" else 1
    most, best = None, came.records
    if came.records is not None:
        most = came.records * sides
    if came.records is not None and came.group is not None:  # a pair of each of the best with each of the worst
        prompts = came.records // came.group
        most, best = prompts * sides * settings.worst, prompts * settings.best
    cost = passing_on(came, most, added=came.added)
    cost.outputs["best"] = part_of(came, best)
    cost.outputs = {name: replace(known, group=None) for name, known in cost.outputs.items()}
    return cost


def wrong_score(settings: Pairs, names: Sequence[str]) -> str:
    """Why it is unclear by which score answers are ranked; empty if it is clear."""
    there = f"{settings.samples} has {'the scores ' + ', '.join(names) if names else 'no scores'}"
    if not names:
        return f"{there}; score the answers first (type: score or label), or set `verdicts`"
    if settings.by is not None:
        return "" if settings.by in names else f"{there}, and none is called {settings.by!r}; change `by`"
    return f"{there}; choose one with `by`" if len(names) > 1 else ""


def refuses(settings: Pairs, of: AnswersOf) -> str:
    """Why it is unclear by which score answers are ranked, as far as their scores are known; empty if it is clear."""
    scores = of(settings.samples).scores
    return "" if scores is None or settings.verdicts is not None else wrong_score(settings, scores)


def empties(settings: Pairs, of: AnswersOf) -> str:
    """Why no prompt can give a pair; empty if one may."""
    came, own = of(settings.samples), settings.chosen == "best"
    if not own and came.references is False:
        return f"chosen: reference needs prompts with a reference answer, and no prompt of {settings.samples} has one"
    needed = settings.worst + (settings.best if own else 0)
    if came.group is None or needed <= came.group:
        return ""
    what = f"best {settings.best} and worst {settings.worst} need" if own else f"worst {settings.worst} needs"
    return (
        f"{what} {needed} answers to each prompt, and {settings.samples} has at most {came.group}; lower them, or "
        "raise `samples` of the stage that answers"
    )


STAGE = StageType(
    "pairs",
    Pairs,
    outputs=gives("pairs", best="chats"),
    work="togi.stages.data.pairs_work",
    version=3,
    reasons=REASONS,
    estimate=estimate,
    refuses=refuses,
    empties=empties,
)
