"""`togi clean`."""

import shutil
from pathlib import Path

import click

from togi.cli.common import json_option, print_json
from togi.core.files import read_json
from togi.core.terminal import say
from togi.recipe.store import home, locked, store_folder


@click.command()
@click.option("--yes", is_flag=True, help="Remove what is shown.")
@json_option
def command(yes: bool, as_json: bool) -> None:
    """Remove stored work that no recipe refers to.

    Shows it and its size; removes it only with --yes. A recipe refers to the stages of its last run.
    """
    unused = [(folder, _size(folder)) for folder in _unused()]
    if as_json:
        print_json({"removed": yes, "folders": [{"folder": str(f), "bytes": size} for f, size in unused]})
    for folder, size in unused:
        if not as_json:
            say(f"{size / 1e6:10.1f} MB  {folder.name}")
        if yes:
            with locked(folder):
                shutil.rmtree(folder)
    if not as_json:
        total = sum(size for _, size in unused) / 1e6
        say(f"{len(unused)} folders, {total:.1f} MB" + ("" if yes else "; remove them with --yes" if unused else ""))


def _unused() -> list[Path]:
    used = []
    for state in sorted((home() / "runs").glob("*/state.json")):
        used += [Path(stage["folder"]).name for stage in read_json(state)["stages"]]
    folders = sorted(store_folder().glob("*-*")) if store_folder().is_dir() else []
    return [f for f in folders if f.is_dir() and (f / "lock").exists() and f.name not in used]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
