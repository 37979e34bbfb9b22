"""The work of `select`: counts off, or draws, a part of the records."""

import random

from togi.core.errors import InputError
from togi.core.records import Prompt, with_system
from togi.core.seeds import derive
from togi.stages.context import Context
from togi.stages.data.select import Select


def run(settings: Select, context: Context) -> None:
    total = context.records_count(settings.input)
    context.count_in(total)
    order = list(range(total))
    if settings.shuffle:
        random.Random(derive(context.seed, "select")).shuffle(order)
    if wrong := settings.lacks(total):
        raise InputError(f"stage {context.name}: {wrong}")
    end = total if settings.count is None else settings.skip + settings.count
    chosen = _chosen(settings, context, order[settings.skip : end])
    with context.writer("prompts") as writer:
        writer.write([chosen[row] for row in order[settings.skip : end]])


def _chosen(settings: Select, context: Context, rows: list[int]) -> dict[int, Prompt]:
    """The prompts at `rows`; no others are kept in memory."""
    wanted = dict.fromkeys(rows)
    chosen: dict[int, Prompt] = {}
    first = 0
    for batch in context.batches(settings.input):
        chosen |= {row: prompt for row, prompt in enumerate(batch, first) if row in wanted}
        first += len(batch)
    if settings.system is None:
        return chosen
    return {row: with_system(prompt, settings.system) for row, prompt in chosen.items()}
