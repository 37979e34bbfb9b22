"""Reads a run's folder into the data that its report shows (`view`).

Missing files are skipped, because a report is written after every stage and every failure. Damaged files are skipped
too, with an alarm that names the file; so is the missing summary of a finished stage. A damaged state.json is an error.

Files read from a stage's folder: settings.json, metrics.jsonl, alarms.jsonl, summary.json, numerics.json, memory.json,
DONE. An incomplete last line of a .jsonl file is ignored.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from togi.core.errors import InputError
from togi.core.files import read_json, read_lines
from togi.report.view import (
    AlarmView,
    AnswerView,
    BenchmarkView,
    ExampleView,
    RowView,
    RunState,
    RunView,
    SourceView,
    StageState,
    StageView,
)

Value = TypeVar("Value")
DAMAGED = "damaged file"
SKIPPED = "; skipped in this report"


class _Stage(BaseModel):
    name: str
    type: str
    folder: Path
    state: StageState
    seconds: float | None = None
    cached: bool = False
    fingerprint: str = ""
    inputs: list[str] = []
    error: str | None = None
    chat: str | None = None


class _Run(BaseModel):
    name: str
    state: RunState
    stages: list[_Stage]
    started: float | None = None
    seconds: float | None = None
    error: str | None = None
    versions: dict[str, Any] = {}
    spent: list[str] = []
    id: str = ""
    overrides: list[str] = []


class _Summary(BaseModel):
    model_config = ConfigDict(extra="allow")

    counts: dict[str, int] = {}
    drops: dict[str, int] = {}
    table: list[RowView] = []
    benchmarks: list[BenchmarkView] = []
    answers: list[AnswerView] = []
    answers_note: str = ""
    examples: list[ExampleView] = []
    adds_up: bool = False
    sources: list[SourceView] = []


class _Done(BaseModel):
    seconds: float | None = None
    fingerprint: str = ""
    files: dict[str, str] = {}


RUN = TypeAdapter(_Run)
SUMMARY = TypeAdapter(_Summary)
DONE = TypeAdapter(_Done)
OBJECT = TypeAdapter(dict[str, Any])
ALARM = TypeAdapter(AlarmView)
METRICS = TypeAdapter(dict[str, float | str | None])


def collect(run: Path) -> RunView:
    """The run whose state.json is in `run`. Raises InputError for a folder without a run or a damaged state.json."""
    path = run / "state.json"
    if not path.exists():
        raise InputError(f"{path}: no such file; name a run's folder, as made by `togi run`")
    state = _read(path, RUN)
    return RunView(
        name=state.name,
        state=state.state,
        # Found by name, because the runs and the store may have been moved together.
        stages=[_stage(stage, _Folder(run.parent.parent / "store" / stage.folder.name)) for stage in state.stages],
        started=state.started,
        seconds=state.seconds,
        error=state.error,
        versions=state.versions,
        spent=state.spent,
        id=state.id,
        overrides=state.overrides,
    )


class _Folder:
    """A stage's folder, and the damage found in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wrong: list[str] = []

    def value(self, name: str, kind: TypeAdapter[Value]) -> Value | None:
        """A file's value; None if the file is missing or damaged."""
        try:
            return _read(self.path / name, kind) if (self.path / name).exists() else None
        except InputError as error:
            self.wrong.append(str(error))
            return None

    def lines(self, name: str, kind: TypeAdapter[Value]) -> list[Value]:
        """The lines of a file, without damaged ones."""
        found = []
        for number, line in enumerate(read_lines(self.path / name, self.wrong.append), 1):
            try:
                found.append(kind.validate_python(line))
            except ValidationError as error:
                self.wrong.append(_explain(f"{self.path / name}, JSON line {number}", error))
        return found

    def alarms(self) -> list[AlarmView]:
        """The damage, as alarms."""
        return [AlarmView(name=DAMAGED, message=f"{wrong}{SKIPPED}") for wrong in self.wrong]


def _stage(stage: _Stage, folder: _Folder) -> StageView:
    summary = folder.value("summary.json", SUMMARY) or _Summary()
    if stage.state == "done" and not (folder.path / "summary.json").exists():
        folder.wrong.append(f"{folder.path / 'summary.json'}: is gone, although the stage is done")
    done = folder.value("DONE", DONE) or _Done()
    metrics, alarms, memory = _metrics(folder), folder.lines("alarms.jsonl", ALARM), _memory(folder)
    settings, numerics = folder.value("settings.json", OBJECT) or {}, folder.value("numerics.json", OBJECT) or {}
    return StageView(
        name=stage.name,
        type=stage.type,
        state=stage.state,
        seconds=done.seconds if stage.seconds is None else stage.seconds,
        cached=stage.cached,
        fingerprint=stage.fingerprint or done.fingerprint,
        inputs=tuple(stage.inputs),
        counts_in=summary.counts.get("in"),
        counts_out=summary.counts.get("out"),
        held_out=summary.counts.get("held_out", 0),
        drops=summary.drops,
        adds_up=summary.adds_up,
        sources=summary.sources,
        metrics=metrics,
        alarms=[*alarms, *folder.alarms()],
        rows=summary.table,
        benchmarks=summary.benchmarks,
        answers=summary.answers,
        answers_note=summary.answers_note,
        examples=summary.examples,
        summary={**_rest(summary), **memory},
        settings=settings,
        numerics=numerics,
        files=done.files,
        error=stage.error,
        chat=stage.chat,
    )


def _rest(summary: _Summary) -> Mapping[str, Any]:
    """The fields of a summary without their own section in the report, and further counts."""
    counts = {f"count of {name}": count for name, count in summary.counts.items() if name not in ("in", "out")}
    return {**counts, **(summary.model_extra or {})}


def _memory(folder: _Folder) -> dict[str, Any]:
    """A training stage's measured and predicted memory, in GB."""
    found = folder.value("memory.json", OBJECT) or {}
    known = {key: found[key] for key in ("predicted", "measured") if isinstance(found.get(key), int | float)}
    sizes = {f"{key} peak memory (GB)": round(size / 1e9, 3) for key, size in known.items()}
    tokens = {key: found[key] for key in ("micro_batch_tokens", "largest_micro_batch") if key in found}
    return {**sizes, **tokens} if sizes else {}


def _metrics(folder: _Folder) -> list[dict[str, Any]]:
    lines = folder.lines("metrics.jsonl", METRICS)
    good = [line for line in lines if isinstance(line.get("step"), (int, float))]
    if count := len(lines) - len(good):
        folder.wrong.append(f"{folder.path / 'metrics.jsonl'}: {count} lines have no numeric step")
    return good


def _read(path: Path, kind: TypeAdapter[Value]) -> Value:
    try:
        return kind.validate_python(read_json(path))
    except ValidationError as error:
        raise InputError(_explain(str(path), error)) from error


def _explain(place: str, error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"{place}: {key or 'the whole file'}: {first['msg']}; found {str(first['input'])[:80]!r}"
