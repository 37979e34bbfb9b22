"""The work of `split`: one pass over the records groups equal prompts, a second one writes each record to its part."""

from array import array
from contextlib import ExitStack

from togi.core.errors import InputError
from togi.core.records import Record
from togi.core.seeds import derive
from togi.data.split import deal, part_sizes, prompt_key
from togi.stages.base import UNKNOWN
from togi.stages.context import Context
from togi.stages.data.split import Split


def run(settings: Split, context: Context) -> None:
    total = context.records_count(settings.input)
    context.count_in(total)
    if wrong := settings.lacks(total):
        raise InputError(f"stage {context.name}: {wrong}")
    sizes = part_sizes(settings.parts, total)
    group_of_row, groups = _groups(settings, context)
    chosen = deal(groups, sizes, derive(context.seed, "split"))
    _write(settings, context, [chosen[group] for group in group_of_row])
    _look_at_sizes(context, sizes)


def _groups(settings: Split, context: Context) -> tuple["array[int]", list[int]]:
    """The group of each row, and the number of rows in each group; a group is all records with equal prompts."""
    numbers: dict[bytes, int] = {}
    group_of_row, groups = array("l"), []
    for batch in context.batches(settings.input):
        for record in batch:
            number = numbers.setdefault(prompt_key(record), len(groups))
            if number == len(groups):
                groups.append(0)
            groups[number] += 1
            group_of_row.append(number)
    return group_of_row, groups


def _write(settings: Split, context: Context, part_of_row: list[str | None]) -> None:
    """Writes each part in the order of the input."""
    with ExitStack() as files:
        writers = {name: files.enter_context(context.writer(settings.kind or UNKNOWN, name)) for name in settings.parts}
        parts = iter(part_of_row)
        for batch in context.batches(settings.input):
            found: dict[str, list[Record]] = {name: [] for name in writers}
            for record, name in zip(batch, parts, strict=False):
                if name is None:
                    context.drop(record, "left_over")
                else:
                    found[name].append(record)
            for name, records in found.items():
                writers[name].write(records)
    context.counts["out"] = sum(context.counts[name] for name in settings.parts)


def _look_at_sizes(context: Context, sizes: dict[str, int]) -> None:
    """Raises an alarm if equal prompts make a part larger or smaller than asked for, and InputError for an empty
    part."""
    for name, size in sizes.items():
        count = context.counts[name]
        if not count:
            raise InputError(
                f"stage {context.name}: part {name} would be empty; enlarge it, or make more records upstream"
            )
        if count != size:
            context.alarm(
                "uneven_part",
                f"part {name} has {count} records instead of {size}, because records with equal prompts stay together",
                value=count,
                threshold=size,
            )
