"""`togi clean`."""

import click

from togi.cli.common import json_option, print_json
from togi.core.errors import InputError
from togi.core.terminal import say
from togi.recipe.sweep import size, survey, sweep, take_away


@click.command()
@click.option("--yes", is_flag=True, help="Remove what is shown.")
@json_option
def command(yes: bool, as_json: bool) -> None:
    """Remove stored work that no recipe refers to.

    Shows it and its size; removes it only with --yes. A recipe refers to the stages of its last run. What a run works
    on meanwhile is left alone.
    """
    if yes:
        sweep()
    found = survey()
    sizes = {entry.folder: size(entry.folder) for entry in found.unused}
    busy, stuck = take_away(found.unused) if yes else ([], [])
    if as_json:
        rows = [{"folder": str(e.folder), "bytes": sizes[e.folder], "why": e.why} for e in found.unused]
        print_json({"removed": yes, "folders": rows, "in_use": [str(f) for f in busy], "notes": found.notes})
    else:
        for entry in found.unused:
            note = "in use now, left alone" if entry.folder in busy else entry.why
            name = entry.folder.name
            say(f"{sizes[entry.folder] / 1e6:10.1f} MB  {name}" + (f"  ({note})" if note else ""))
        for note in found.notes:
            say(f"note: {note}")
        total = sum(sizes[entry.folder] for entry in found.unused if entry.folder not in busy)
        count = len(found.unused) - len(busy)
        how = "" if yes else "; remove them with --yes" if found.unused else ""
        say(f"{count} folders, {total / 1e6:.1f} MB" + how)
    if stuck:
        names = ", ".join(str(path) for path in stuck)
        raise InputError(f"these could not be removed whole: {names}; see who owns the files in them, and try again")
