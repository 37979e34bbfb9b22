"""The row-wise parts of `curate`: its rules, and what a model says of a unit of drafts in one phase of the stage."""

import importlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from togi.core.errors import GraderError
from togi.core.extras import missing
from togi.core.records import Chat, Drop, Message, Prompt, SamplingParams
from togi.core.settings import ModelRef, ScorerRef
from togi.data.filters import (
    Filter,
    contains,
    not_a_question,
    repeated_ngrams,
    run_filters,
    too_long,
    too_short,
    wrong_language,
    wrong_script,
)
from togi.stages.data.curate import Curate
from togi.stages.endpoints import ChatGenerator
from togi.stages.model_shards import computed
from togi.stages.shards import Shard

Phase = Literal["judge", "score", "verdict", "rewrite"]
"""In which a model is asked: a choice between yes and no, a reward model's score, a JSON verdict, a rewrite."""
NOT_PLAIN = ("http://", "https://", "<|", "_____")
RETRY = "That was not one JSON object. Write the JSON object and nothing else."


class JsonVerdict(BaseModel):
    """The JSON object that the judge is asked for (docs/methods.md)."""

    model_config = ConfigDict(extra="ignore", strict=True)
    keep: bool
    reason: str = ""
    question: str = ""
    answer: str = ""


def rules(settings: Curate) -> list[Filter]:
    """Returns the rules that a draft must pass before a model is asked."""
    by_detector = settings.language_by == "detector"
    return [
        too_short(settings.min_chars),
        too_long(settings.max_chars),
        repeated_ngrams(settings.max_repeated_ngrams),
        wrong_script(settings.language),
        *([_by_detector(settings.language)] if by_detector else []),
        *([contains(NOT_PLAIN, "not_plain_text")] if settings.must_be_plain else []),
        *([not_a_question(settings.language)] if settings.must_ask else []),
    ]


def _by_detector(language: str) -> Filter:
    """Raises RecipeError if the detector's package is not installed."""
    try:
        detect = importlib.import_module("togi.text.language").detect
    except ModuleNotFoundError as error:
        raise missing(error) or error from error
    return wrong_language(language, detect)


def question_of(record: Prompt | Chat) -> str:
    """Returns the last question; an empty string for a chat without one."""
    return next((m.content for m in reversed(record.messages) if m.role == "user"), "")


def map_rows(settings: Curate, shard: Shard) -> tuple[list[Prompt | Chat], list[Drop]]:
    """Returns the drafts that pass all rules, and the drops of the others with the first rule that each breaks."""
    return run_filters(shard.records, rules(settings), stage=shard.stage, text=question_of)


# --- what a model says ------------------------------------------------------------------------------------------------


def model_of(settings: Curate, phase: Phase) -> ModelRef | ScorerRef:
    """The model that is asked in a phase."""
    found = settings.scorer if phase == "score" else settings.model
    assert found is not None, "the settings ask for one"
    return found


def said(settings: Curate, seed: int, phase: Phase, model: Any, asked: Sequence[Prompt]) -> list[Any]:
    """What the model says of each draft, JSON-like: a score, or the reason why there is none; in the phases `verdict`
    and `rewrite` an answer, or None. A draft has the turns with which the model is asked about it.

    Raises RecipeError for words that the model cannot tell apart.
    """
    if phase == "judge":
        return _scores_or_why(model.margins([prompt.messages for prompt in asked], settings.yes, settings.no))
    if phase == "score":
        return _scores_or_why(model.score([(prompt.messages, prompt.answer or "") for prompt in asked]))
    params = SamplingParams(temperature=0.0, max_tokens=settings.max_tokens, seed=seed)
    texts = _answers(model, params, asked)
    return texts if phase == "rewrite" else _with_second_answers(model, params, asked, texts)


def _scores_or_why(found: Sequence[float | GraderError]) -> list[float | str]:
    """Scores as stored by a unit. A missing one is replaced by the reason; one that is not finite is missing."""
    return [
        str(score) if isinstance(score, GraderError) else score if math.isfinite(score) else f"the model gave {score}"
        for score in found
    ]


def _answers(speaker: ChatGenerator, params: SamplingParams, asked: Sequence[Prompt]) -> list[str | None]:
    """One greedy answer to each prompt, None if the model failed."""
    found = [answers[0] for answers in speaker.generate(asked, params)] if asked else []
    return [None if c.stop == "error" else c.text.partition(speaker.terminator)[0].strip() for c in found]


def _with_second_answers(
    speaker: ChatGenerator, params: SamplingParams, asked: Sequence[Prompt], texts: Sequence[str | None]
) -> list[str | None]:
    """The texts, with a second answer in place of each that is no verdict."""
    broken = {i: text for i, text in enumerate(texts) if text is not None and not read_verdict(text)}
    again = [
        replace(asked[i], messages=(*asked[i].messages, Message("assistant", text), Message("user", RETRY)))
        for i, text in broken.items()
    ]
    second = dict(zip(broken, _answers(speaker, params, again), strict=True))
    return [second.get(i, text) for i, text in enumerate(texts)]


def read_verdict(text: str) -> JsonVerdict | None:
    """Reads the JSON object between the first and the last brace of an answer; None if there is no valid one."""
    start, end = text.find("{"), text.rfind("}")
    try:
        return JsonVerdict.model_validate_json(text[start : end + 1]) if 0 <= start < end else None
    except ValidationError:
        return None


def value_of(settings: Curate, shard: Shard, more: dict[str, Any]) -> dict[str, Any]:
    """`found`: what the model of the `phase` says of the shard's drafts."""
    phase: Phase = more["phase"]

    def work(model: Any) -> list[Any]:
        return said(settings, shard.seed, phase, model, shard.records)

    return computed(model_of(settings, phase), shard, more, work)
