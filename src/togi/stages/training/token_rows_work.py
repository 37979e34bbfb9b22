"""Tokenises a shard of records in a process of the pool, into a separate folder that the stage then joins."""

import importlib
from contextlib import closing
from pathlib import Path
from typing import Any

from togi.core.sources import ModelSource
from togi.stages.context import Context, Control
from togi.stages.rehearsal_work import read_weightless
from togi.stages.shards import Shard
from togi.stages.table import STAGES
from togi.stages.training.optimisation import TokenisedTraining
from togi.stages.training.token_writer_work import TokenWriter
from togi.stages.training.tokenising_work import AT_ONCE, DROPS, Tally, part_folder, tokenise, words_of


def value_of(settings: TokenisedTraining, shard: Shard, more: dict[str, Any]) -> dict[str, Any]:
    """Writes the tokens of a shard. Returns the number of records, the counts, and the tokenizer's hash. Raises
    InputError if a record does not fit and the settings ask for an error."""
    source = ModelSource.from_json(more["model"])
    cache, folder = Path(more["cache"]), part_folder(Path(more["folder"]), shard.number)
    folder.mkdir(exist_ok=True)
    model = read_weightless(source, cache)
    context = Context(shard.stage, folder, cache, shard.seed, {}, Control(lambda event: None))
    border = importlib.import_module(STAGES[settings.type].work).border(settings, context, model)
    tally = Tally()
    with closing(TokenWriter(folder, len(model.tokenizer))) as writer:
        with (folder / DROPS).open("w", encoding="utf-8") as drops:
            for first in range(0, len(shard.records), AT_ONCE):
                tally.add(tokenise(border, shard.records[first : first + AT_ONCE], writer, drops))
        writer.finish({})
    return {
        "words": words_of(model),
        "records": len(shard.records),
        "counts": dict(tally.counts),
        "unrendered": [tally.unrendered, tally.first],
    }
