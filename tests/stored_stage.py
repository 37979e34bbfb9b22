"""A finished stage in a store, made by hand in a moment."""

from pathlib import Path

from togi.core.files import write_json, write_text
from togi.recipe.store import begin, mark_done

NAME = "select-0123456789abcdef"


def finished_stage(store: Path, name: str = NAME, made_from: dict[str, str] | None = None) -> Path:
    """The folder of a stage that made one file, and what others read beside it."""
    folder = store / name
    begun_stage(store, name, made_from)
    write_text(folder / "output" / "records.parquet", f"made by {name}")
    write_json(folder / "summary.json", {"counts": {"out": 1}})
    mark_done(folder, name[-16:] * 4, 1.5, made_from or {})
    return folder


def begun_stage(store: Path, name: str = NAME, made_from: dict[str, str] | None = None) -> Path:
    """The folder of a stage that was begun."""
    folder = store / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lock").touch()
    write_json(folder / "settings.json", {"type": "select"})
    write_json(folder / "numerics.json", {"threads": 1})
    begin(folder, made_from or {})
    write_json(folder / "units" / "batch-000000.json", [1])
    return folder
