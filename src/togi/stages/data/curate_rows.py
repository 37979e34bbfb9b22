"""The row-wise part of `curate`: its rules."""

from togi.core.records import Drop, Prompt
from togi.data.filters import (
    Filter,
    contains,
    not_a_question,
    repeated_ngrams,
    run_filters,
    too_long,
    too_short,
    wrong_script,
)
from togi.stages.data.curate import Curate
from togi.stages.shards import Shard


def rules(settings: Curate) -> list[Filter]:
    """What a draft must pass before a model is asked."""
    return [
        too_short(settings.min_chars),
        too_long(settings.max_chars),
        repeated_ngrams(settings.max_repeated_ngrams),
        wrong_script(settings.language),
        contains(("http://", "https://", "<|", "_____"), "not_plain_text"),
        not_a_question(settings.language),
    ]


def map_rows(settings: Curate, shard: Shard) -> tuple[list[Prompt], list[Drop]]:
    """The drafts that pass all rules, and the others with the rule that they broke first."""
    return run_filters(shard.records, rules(settings), stage=shard.stage)
