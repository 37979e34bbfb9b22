"""Exports the records of a stage: Parquet with splits, and a data card."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.parquet as pq

from togi.commands.descent import Descent
from togi.commands.new_folder import beside, place, refuse_place
from togi.commands.published import publish_lock
from togi.core.errors import InputError
from togi.core.files import write_text
from togi.core.record_streams import count_records
from togi.core.settings import MAIN
from togi.core.tables import say_table
from togi.core.terminal import json_text, say
from togi.report.collect import collect
from togi.report.data_card import HubSplit, data_card


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """A finished stage: the run's folder, the stage's name, and its files of records with their kinds, by output;
    `recipe` is the folder of the recipe, to which the published paths are relative (None: only names are left)."""

    run: Path
    stage: str
    files: Mapping[str, tuple[str, Path]]
    recipe: Path | None = None


ALL = "all"
"""What `datasets` calls all splits together."""


def export_data(records: Records, folder: Path, as_json: bool) -> None:
    """Writes the outputs of a stage as splits into a new folder.

    Outputs of one kind are splits of one configuration; the main one is `train`. Outputs without records are left out.
    Raises RecipeError for a folder that is not empty or cannot be made, InputError if there are no records at all.
    """
    refuse_place(folder)
    run, descent = collect(records.run), Descent(records.run, records.stage)
    full = {output: found for output, found in records.files.items() if count_records(found[1])}
    names = _named([*records.files])
    without = [names[output] for output in records.files if output not in full]
    if not full:
        raise InputError(
            f"stage {records.stage} has no records to export; see its drops with `togi show RECIPE {records.stage}`"
        )
    splits, sources = _splits(full, names), descent.of_records(path for _, path in full.values())
    with beside(folder) as room:
        out = room / "out"
        for split, (_, path) in zip(splits, full.values(), strict=True):
            (out / split.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / split.path)
        write_text(out / "README.md", data_card(run, records.stage, splits, sources, without))
        publish_lock(descent.locked, records.recipe, out)
        place(out, folder)
    if as_json:
        say(json_text({"folder": str(folder), "splits": [asdict(split) for split in splits]}, indent=1))
        return
    say_table(
        ["wrote", "configuration", "split", "records"],
        [[str(folder / split.path), split.config, split.name, f"{split.rows:,}"] for split in splits],
        right=(3,),
    )
    for name in without:
        say(f"the output {name} has no records, so it is not a split")
    say(f"its card is {folder / 'README.md'}")


def _named(outputs: Sequence[str]) -> dict[str, str]:
    """The name of the split of each output. Names of splits have no hyphens, are not ALL, and differ also where upper
    and lower case are the same."""
    taken, found = {ALL}, {}
    for output in sorted(outputs, key=lambda each: not re.fullmatch(r"\w+", each)):  # exact names first
        name = base = "train" if output == MAIN else re.sub(r"\W", "_", output)
        number = 2
        while name.lower() in taken:
            name, number = f"{base}_{number}", number + 1
        taken.add(name.lower())
        found[output] = name
    return found


def _splits(files: Mapping[str, tuple[str, Path]], names: Mapping[str, str]) -> list[HubSplit]:
    kinds = [*dict.fromkeys(kind for kind, _ in files.values())]
    found = []
    for output, (kind, path) in files.items():
        name, config = names[output], "default" if kind == kinds[0] else kind
        columns = {field.name: str(field.type) for field in pq.read_schema(path)}
        target = f"data/{name}.parquet" if config == "default" else f"{config}/{name}.parquet"
        rows = count_records(path)
        found.append(HubSplit(config=config, name=name, kind=kind, path=target, rows=rows, columns=columns))
    return found
