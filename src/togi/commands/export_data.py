"""Exports the records of a stage: Parquet with splits, and a data card."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.parquet as pq

from togi.commands.descent import Descent
from togi.commands.new_folder import refuse_place
from togi.commands.published import publish_lock
from togi.core.errors import InputError
from togi.core.files import write_text
from togi.core.record_streams import count_records
from togi.core.settings import MAIN
from togi.core.tables import say_table
from togi.core.terminal import json_text, say
from togi.model.folders import atomic_folder
from togi.report.collect import collect
from togi.report.data_card import HubSplit, data_card


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """A finished stage: the run's folder, the stage's name, and its files of records with their kinds, by output."""

    run: Path
    stage: str
    files: Mapping[str, tuple[str, Path]]


def export_data(records: Records, folder: Path, as_json: bool) -> None:
    """Writes the outputs of a stage as splits into a new folder.

    Outputs of one kind are splits of one configuration; the main one is `train`. Outputs without records are left out.
    Raises RecipeError for a folder that is not empty or cannot be made, InputError if there are no records at all.
    """
    refuse_place(folder)
    run, descent = collect(records.run), Descent(records.run, records.stage)
    full = {output: found for output, found in records.files.items() if count_records(found[1])}
    empty = [output for output in records.files if output not in full]
    if not full:
        raise InputError(f"stage {records.stage} has no records to export; see its drops with `togi show`")
    splits, sources = _splits(full), descent.of_records(path for _, path in full.values())
    with atomic_folder(folder.resolve()) as room:
        for split, (_, path) in zip(splits, full.values(), strict=True):
            (room / split.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, room / split.path)
        write_text(room / "README.md", data_card(run, records.stage, splits, sources, _named(empty)))
        publish_lock(descent.locked, None, room)
    if as_json:
        say(json_text({"folder": str(folder), "splits": [asdict(split) for split in splits]}, indent=1))
        return
    say_table(
        ["wrote", "configuration", "split", "records"],
        [[str(folder / split.path), split.config, split.name, f"{split.rows:,}"] for split in splits],
        right=(3,),
    )
    for name in _named(empty):
        say(f"the output {name} has no records, so it is not a split")
    say(f"its card is {folder / 'README.md'}")


def _named(outputs: Sequence[str]) -> list[str]:
    """Outputs by the names of their splits."""
    return ["train" if output == MAIN else re.sub(r"\W", "_", output) for output in outputs]


def _splits(files: Mapping[str, tuple[str, Path]]) -> list[HubSplit]:
    kinds = [*dict.fromkeys(kind for kind, _ in files.values())]
    found = []
    for name, (kind, path) in zip(_named([*files]), files.values(), strict=True):
        config = "default" if kind == kinds[0] else kind
        columns = {field.name: str(field.type) for field in pq.read_schema(path)}
        place = f"data/{name}.parquet" if config == "default" else f"{config}/{name}.parquet"
        rows = count_records(path)
        found.append(HubSplit(config=config, name=name, kind=kind, path=place, rows=rows, columns=columns))
    return found
