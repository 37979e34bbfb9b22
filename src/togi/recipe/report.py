"""Writes a run's report from the files on disk: after every stage, also on failure and interruption."""

from collections.abc import Callable
from pathlib import Path

from togi.core.files import write_text
from togi.report.collect import DAMAGED, collect
from togi.report.html import render_report


def render(run: Path, tell: Callable[[str], None] | None = None) -> Path:
    """Renders `run`/report.html and returns its path; reports damaged files of the run to `tell`."""
    target, view = run / "report.html", collect(run)
    write_text(target, render_report(view))
    for stage, alarm in view.alarms:
        if tell is not None and alarm.name == DAMAGED:
            tell(f"{stage.name}: {alarm.message}")
    return target
