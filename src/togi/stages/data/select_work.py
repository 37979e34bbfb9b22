"""The work of `select`."""

import random
from dataclasses import replace

from togi.core.errors import InputError
from togi.core.records import Prompt, led_by_system
from togi.core.seeds import derive
from togi.stages.context import Context
from togi.stages.data.select import Select


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
    chosen: list[Prompt] = records[settings.skip : end]
    if settings.system is not None:
        chosen = [_with_system(prompt, settings.system) for prompt in chosen]
    context.write("prompts", chosen)


def _with_system(prompt: Prompt, text: str) -> Prompt:
    if prompt.messages[0].role == "system":
        return prompt
    return replace(prompt, messages=led_by_system(text, prompt.messages))
