"""A finished stage in a store, written by hand because that is fast."""

from collections.abc import Sequence
from pathlib import Path

from togi.core.codec import write_records
from togi.core.files import write_json, write_text
from togi.core.records import Prompt
from togi.recipe.store import begin, mark_done

NAME = "select-0123456789abcdef"


def finished_stage(
    store: Path,
    name: str = NAME,
    made_from: dict[str, str] | None = None,
    prompts: Sequence[Prompt] | None = None,
) -> Path:
    """The folder of a stage that made one file, with the files that others read next to it."""
    folder = store / name
    begun_stage(store, name, made_from)
    if prompts is None:
        write_text(folder / "output" / "records.parquet", f"made by {name}")
    else:
        write_records(folder / "output" / "records.parquet", "prompts", prompts)
    write_json(folder / "summary.json", {"counts": {"out": 1}})
    mark_done(folder, name[-16:] * 4, 1.5, made_from or {})
    return folder


def begun_stage(store: Path, name: str = NAME, made_from: dict[str, str] | None = None) -> Path:
    """The folder of an unfinished stage."""
    folder = store / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lock").touch()
    write_json(folder / "settings.json", {"type": "select"})
    write_json(folder / "numerics.json", {"threads": 1})
    begin(folder, made_from or {})
    write_json(folder / "units" / "batch-000000.json", [1])
    return folder
