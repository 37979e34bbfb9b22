"""`togi clean`: removes stored work that no run refers to."""

import click

from togi.cli.common import json_option, print_json
from togi.core.errors import InputError
from togi.core.terminal import say
from togi.recipe.runs import forget as forget_runs
from togi.recipe.runs import forgettable
from togi.recipe.samples import forget, stored
from togi.recipe.store import store_folder
from togi.recipe.sweep import registering, runs_at_work, size, survey, sweep, take_away
from togi.stages.spent import forget_answers, stored_answers


@click.command()
@click.option("--yes", is_flag=True, help="Remove what is shown.")
@click.option("--samples", is_flag=True, help="Only samples of finished training stages that no other stage used.")
@click.option("--answers", is_flag=True, help="Only stored answers of servers; a run requests them again.")
@click.option(
    "--forget",
    "run",
    metavar="ID",
    help="Forget an earlier run first; `all`: every run that is not the last one of its recipe.",
)
@json_option
def command(yes: bool, samples: bool, answers: bool, run: str | None, as_json: bool) -> None:
    """Remove stored work that no run refers to.

    Lists the work with its size; removes it only with --yes. Work of the runs that `togi list --runs` shows is kept:
    that of a recipe's last run, and that of earlier runs until you forget them with --forget. Work that a run is using
    is kept too. Tokenised data is removed unless a run is active; the next training makes it again.
    """
    old = forgettable(run) if run is not None else []
    if yes:
        forget_runs(old)
    if samples or answers:
        (_samples if samples else _answers)(yes, as_json)
        return
    if yes:
        sweep()
    found = survey([each.folder for each in old])
    sizes = {entry.folder: size(entry.folder) for entry in found.unused}
    busy, stuck = take_away(found.unused) if yes else ([], [])
    if as_json:
        rows = [{"folder": str(e.folder), "bytes": sizes[e.folder], "why": e.why} for e in found.unused]
        print_json(
            {
                "removed": yes,
                "folders": rows,
                "in_use": [str(f) for f in busy],
                "notes": found.notes,
                "forgotten": [each.id for each in old],
            }
        )
    else:
        for each in old:
            say(f"forgotten: run {each.id}" if yes else f"run {each.id} would be forgotten, with its report")
        for entry in found.unused:
            kept = "in use now, kept" if entry.folder in busy else "not removed" if entry.folder in stuck else ""
            note = kept or entry.why
            name = entry.folder.name
            say(f"{sizes[entry.folder] / 1e6:10.1f} MB  {name}" + (f"  ({note})" if note else ""))
        for note in found.notes:
            say(f"note: {note}")
        went = [entry.folder for entry in found.unused if entry.folder not in (*busy, *stuck)]
        count, total = len(went), sum(sizes[folder] for folder in went)
        how = "" if yes or not (old or found.unused) else "; --yes does it" if old else "; remove them with --yes"
        say(f"{count} folder{'s' * (count != 1)}, {total / 1e6:.1f} MB" + how)
    if stuck:
        names = ", ".join(str(path) for path in stuck)
        raise InputError(f"these could not be removed completely: {names}; check who owns their files, and try again")


def _answers(yes: bool, as_json: bool) -> None:
    """Lists the stored answers by model, or removes them; the spending of runs stays recorded."""
    found = stored_answers(store_folder())
    if yes and found:
        _forget_answers()
    if as_json:
        rows = [{"model": name, "answers": count, "bytes": total} for name, (count, total) in found.items()]
        print_json({"removed": yes, "answers": rows})
        return
    for name, (count, total) in found.items():
        say(f"{total / 1e6:10.1f} MB  {name}: {count:,} answers")
    count, total = (sum(numbers) for numbers in zip(*found.values(), strict=True)) if found else (0, 0)
    how = "" if yes or not found else "; remove them with --yes: runs then request and pay for them again"
    say(f"{count:,} answers, {total / 1e6:.1f} MB" + how)


def _forget_answers() -> None:
    """Removes the stored answers. Raises InputError while a run is at work, which may be paying for some of them."""
    with registering():
        if names := runs_at_work():
            raise InputError(
                f"--answers: a run of {names[0]} is at work, and may be requesting answers; wait for it, or stop it"
            )
        forget_answers(store_folder())


def _samples(yes: bool, as_json: bool) -> None:
    """Lists the stored samples of finished stages, or removes those that nothing depends on; models and metrics
    stay."""
    found = stored()
    kept = forget(found) if yes else [entry for entry in found if entry.kept]
    if as_json:
        rows = [{"folder": str(e.folder), "bytes": e.bytes, "kept": e.kept} for e in found]
        print_json({"removed": yes, "samples": rows})
        return
    for entry in found:
        say(f"{entry.bytes / 1e6:10.1f} MB  {entry.folder.name}" + (f"  (kept: {entry.kept})" if entry.kept else ""))
    total = sum(entry.bytes for entry in found) - sum(entry.bytes for entry in kept)
    how = "" if yes or not total else "; remove them with --yes"
    say(f"samples of {len(found) - len(kept)} stages, {total / 1e6:.1f} MB" + how)
