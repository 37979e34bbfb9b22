"""Writes a run's report from what lies on disk: after every stage, on failure and interruption too."""

from pathlib import Path

from togi.core.files import write_text
from togi.report.collect import collect
from togi.report.html import render_report


def render(run: Path) -> Path:
    """Renders `run`/report.html and returns its path."""
    target = run / "report.html"
    write_text(target, render_report(collect(run)))
    return target
