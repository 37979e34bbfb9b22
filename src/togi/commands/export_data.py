"""Exports the records of a stage: Parquet with splits, and a data card."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.parquet as pq

from togi.commands.new_folder import refuse_place
from togi.core.files import write_text
from togi.core.record_streams import count_records, file_sources
from togi.core.records import Provenance
from togi.core.settings import MAIN
from togi.core.tables import say_table
from togi.core.terminal import json_text, say
from togi.model.folders import atomic_folder
from togi.report.collect import collect
from togi.report.data_card import HubSplit, data_card
from togi.report.view import SourceView

LOCK = "recipe.lock.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """A finished stage: the run's folder, the stage's name, and its files of records with their kinds, by output."""

    run: Path
    stage: str
    files: Mapping[str, tuple[str, Path]]


def export_data(records: Records, folder: Path, as_json: bool) -> None:
    """Writes the outputs of a stage as splits into a new folder.

    Outputs of one kind are splits of one configuration; the main one is `train`. Raises RecipeError for a folder that
    is not empty or cannot be made.
    """
    refuse_place(folder)
    run = collect(records.run)
    splits = _splits(records)
    with atomic_folder(folder.resolve()) as room:
        for split, (_, path) in zip(splits, records.files.values(), strict=True):
            (room / split.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, room / split.path)
        write_text(room / "README.md", data_card(run, records.stage, splits, _sources(records)))
        if (records.run / LOCK).is_file():
            shutil.copyfile(records.run / LOCK, room / LOCK)
    if as_json:
        say(json_text({"folder": str(folder), "splits": [asdict(split) for split in splits]}, indent=1))
        return
    say_table(
        ["wrote", "configuration", "split", "records"],
        [[str(folder / split.path), split.config, split.name, f"{split.rows:,}"] for split in splits],
        right=(3,),
    )
    say(f"its card is {folder / 'README.md'}")


def _splits(records: Records) -> list[HubSplit]:
    kinds = [*dict.fromkeys(kind for kind, _ in records.files.values())]
    found = []
    for output, (kind, path) in records.files.items():
        config = "default" if kind == kinds[0] else kind
        name = "train" if output == MAIN else re.sub(r"\W", "_", output)
        columns = {field.name: str(field.type) for field in pq.read_schema(path)}
        place = f"data/{name}.parquet" if config == "default" else f"{config}/{name}.parquet"
        rows = count_records(path)
        found.append(HubSplit(config=config, name=name, kind=kind, path=place, rows=rows, columns=columns))
    return found


def _sources(records: Records) -> list[SourceView]:
    """Everything that the records were made from, by name."""
    said: dict[Provenance, None] = {}
    for _, path in records.files.values():
        said |= dict.fromkeys(source for each in file_sources(path) for source in each)
    return [SourceView(**asdict(source)) for source in _in_order([*said])]


def _in_order(sources: Sequence[Provenance]) -> list[Provenance]:
    return sorted(sources, key=lambda source: (source.kind, source.dataset, source.revision))
