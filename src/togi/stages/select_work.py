"""The work of `select`."""

import random

from togi.core.errors import InputError
from togi.core.seeds import derive
from togi.stages.base import Context
from togi.stages.select import Select


def run(settings: Select, context: Context) -> None:
    records = context.records(settings.input)
    if settings.shuffle:
        random.Random(derive(context.seed, "select")).shuffle(records)
    end = len(records) if settings.count is None else settings.skip + settings.count
    if end > len(records) or settings.skip >= len(records):
        raise InputError(
            f"stage {context.name}: records {settings.skip} to {end} are asked for, but {settings.input} holds "
            f"{len(records)}; lower skip or count, or make more records upstream"
        )
    context.write("prompts", records[settings.skip : end])
