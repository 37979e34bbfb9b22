"""The row-wise part of `curate`: its rules."""

import importlib

from togi.core.extras import missing
from togi.core.records import Chat, Drop, Prompt
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
from togi.stages.shards import Shard


def rules(settings: Curate) -> list[Filter]:
    """Returns the rules that a draft must pass before a model is asked."""
    by_detector = settings.language_by == "detector"
    return [
        too_short(settings.min_chars),
        too_long(settings.max_chars),
        repeated_ngrams(settings.max_repeated_ngrams),
        wrong_script(settings.language),
        *([_by_detector(settings.language)] if by_detector else []),
        contains(("http://", "https://", "<|", "_____"), "not_plain_text"),
        not_a_question(settings.language),
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
