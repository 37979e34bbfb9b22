"""`togi compare` of runs without a common benchmark: what is missing and what to write."""

from pathlib import Path

import pytest

from togi.commands.compare import compare_runs
from togi.core.codec import write_records
from togi.core.errors import InputError
from togi.core.files import write_json
from togi.core.records import Figure
from togi.recipe.runs import KnownRun


def run(folder: Path, name: str, benchmarks: tuple[str, ...]) -> KnownRun:
    """A run with one evaluate stage that measured two models."""
    stage = folder / name
    figures = [
        Figure(id=f"{b}{s}", benchmark=b, metric="m", subject=s, value=1.0, parents=("q",))
        for b in benchmarks
        for s in ("one", f"two{name}")
    ]
    write_records(stage / "output" / "items.parquet", "tables", figures)
    views = [{"benchmark": each, "columns": [], "cells": {}, "rows": 1, "mark": "m"} for each in benchmarks]
    write_json(stage / "summary.json", {"table": [], "benchmarks": views})
    state = {"stages": [{"name": "scores", "type": "evaluate", "folder": str(stage)}]}
    return KnownRun(id=name, folder=folder, state=state, last=True)


@pytest.mark.parametrize(("b", "told"), [((), "a and b measured no benchmark"), (("x",), "a measured no benchmark")])
def test_runs_without_benchmarks_are_told_what_to_write(tmp_path, b, told):
    with pytest.raises(InputError) as wrong:
        compare_runs(run(tmp_path, "a", ()), run(tmp_path, "b", b), force=False)
    words = str(wrong.value)
    assert told in words and "evaluate stage with only base and policy has none" in words
    assert "{type: evaluate, models: [$policy], benchmarks: [{type: answers, prompts: $tests}]}" in words


def test_runs_with_other_benchmarks_are_told_what_each_has(tmp_path):
    with pytest.raises(InputError, match=r"a has x \(of one, twoa\) and b has y \(of one, twob\)"):
        compare_runs(run(tmp_path, "a", ("x",)), run(tmp_path, "b", ("y",)), force=False)
