"""A run as tables for the terminal. Everything that comes from a run is text, never markup."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from togi.report.view import AnswerView, IntervalView, RowView, RunView
from togi.report.words import bounds, duration, findings, number, outcome, percent

STYLES = {
    "done": "green",
    "cached": "green dim",
    "running": "cyan",
    "waiting": "dim",
    "interrupted": "yellow",
    "failed": "bold red",
    "better": "green",
    "worse": "red",
    "changed": "cyan",
    "unclear": "dim",
}


def run_summary(run: RunView) -> RenderableType:
    """What `togi status` shows: the stages, the alarms, how the run stands and what it found."""
    parts: list[RenderableType] = [stage_table(run)]
    parts += [
        Text(f"ALARM {alarm.name} in {stage.name}: {alarm.message}", style="bold yellow") for stage, alarm in run.alarms
    ]
    parts.append(Text(outcome(run)))
    if run.error:
        parts.append(Text(run.error, style="red"))
    if run.rows:
        parts += [result_table(run.rows), Text(findings(run))]
    return Group(*parts)


def stage_table(run: RunView) -> Table:
    """One row a stage: state, records, time."""
    table = _table("stage", "type", "state", ">in", ">out", ">time")
    for stage in run.stages:
        state = "cached" if stage.cached and stage.state == "done" else stage.state
        table.add_row(
            Text(stage.name, style="bold"),
            Text(stage.type, style="dim"),
            Text(state, style=STYLES[state]),
            _count(stage.counts_in),
            _count(stage.counts_out),
            Text(duration(stage.seconds) if stage.seconds is not None else ""),
        )
    return table


def result_table(rows: Sequence[RowView]) -> Table:
    """The before/after table with its intervals."""
    table = _table("metric", ">base", ">policy", ">difference", "interval", "verdict")
    for row in rows:
        table.add_row(
            Text(row.metric),
            _mean(row.base),
            _mean(row.policy),
            _mean(row.difference, signed=True),
            Text(_interval(row)),
            Text(row.verdict or "", style=STYLES.get(row.verdict or "", "")),
        )
    return table


def answer_table(answers: Sequence[AnswerView]) -> Table:
    """Answers of base and policy side by side."""
    table = Table("question", "base", "policy", show_lines=True, expand=True)
    for answer in answers:
        table.add_row(
            Text(answer.question), _said(answer.base, answer.base_score), _said(answer.policy, answer.policy_score)
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", header_style="dim")
    return table


def _count(count: int | None) -> Text:
    return Text("" if count is None else f"{count:,}")


def _mean(interval: IntervalView | None, *, signed: bool = False) -> Text:
    return Text("" if interval is None else number(interval.mean, signed=signed))


def _interval(row: RowView) -> str:
    shown = row.difference or row.policy
    return f"{bounds(shown, signed=row.difference is not None)} ({percent(shown.level)})"


def _said(text: str, score: float | None) -> Text:
    said = Text(text.strip() or "(empty)")
    if score is not None:
        said.append(f"\nscore {number(score)}", style="dim")
    return said
