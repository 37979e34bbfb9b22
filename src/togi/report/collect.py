"""Reads a run's folder. What is missing is left out, since a report is written after every stage and every accident;
what is there but wrong is an error that names the file, never a silent blank.

Of a stage's folder: settings.json, metrics.jsonl, alarms.jsonl, summary.json, numerics.json, DONE. A torn last line of
a .jsonl file, which a kill leaves, is not yet written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from togi.core.errors import InputError
from togi.core.files import read_json, read_lines
from togi.report.view import AlarmView, AnswerView, RowView, RunState, RunView, StageState, StageView

Value = TypeVar("Value")


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


class _Summary(BaseModel):
    model_config = ConfigDict(extra="allow")

    counts: dict[str, int] = {}
    drops: dict[str, int] = {}
    table: list[RowView] = []
    answers: list[AnswerView] = []
    answers_note: str = ""


class _Done(BaseModel):
    seconds: float | None = None
    fingerprint: str = ""
    files: dict[str, str] = {}


RUN = TypeAdapter(_Run)
SUMMARY = TypeAdapter(_Summary)
DONE = TypeAdapter(_Done)
OBJECT = TypeAdapter(dict[str, Any])
ALARMS = TypeAdapter(list[AlarmView])
METRICS = TypeAdapter(list[dict[str, float | str | None]])


def collect(run: Path) -> RunView:
    """The run whose state.json lies in `run`. Raises InputError for a folder without a run or a file that is wrong."""
    path = run / "state.json"
    if not path.exists():
        raise InputError(f"{path}: there is no run here; a folder that `togi run` made is needed")
    state = _read(path, RUN)
    return RunView(
        name=state.name,
        state=state.state,
        stages=[_stage(stage, run / stage.folder) for stage in state.stages],
        started=state.started,
        seconds=state.seconds,
        error=state.error,
        versions=state.versions,
    )


def _stage(stage: _Stage, folder: Path) -> StageView:
    summary = _optional(folder / "summary.json", SUMMARY) or _Summary()
    done = _optional(folder / "DONE", DONE) or _Done()
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
        held_out=summary.counts.get("held_out", summary.counts.get("validation", 0)),
        drops=summary.drops,
        metrics=_metrics(folder / "metrics.jsonl"),
        alarms=_lines(folder / "alarms.jsonl", ALARMS),
        rows=summary.table,
        answers=summary.answers,
        answers_note=summary.answers_note,
        summary={**_rest(summary), **_memory(folder)},
        settings=_optional(folder / "settings.json", OBJECT) or {},
        numerics=_optional(folder / "numerics.json", OBJECT) or {},
        files=done.files,
        error=stage.error,
        chat=stage.chat,
    )


def _rest(summary: _Summary) -> Mapping[str, Any]:
    """What a stage says beyond the fields that have their own place; further counts are part of it."""
    counts = {f"count of {name}": count for name, count in summary.counts.items() if name not in ("in", "out")}
    return {**counts, **(summary.model_extra or {})}


def _memory(folder: Path) -> dict[str, Any]:
    """What a training stage needed against what was predicted, in GB."""
    found = _optional(folder / "memory.json", OBJECT) or {}
    sizes = {f"{key} peak memory (GB)": round(found[key] / 1e9, 3) for key in ("predicted", "measured") if key in found}
    tokens = {key: found[key] for key in ("micro_batch_tokens", "largest_micro_batch") if key in found}
    return {**sizes, **tokens} if sizes else {}


def _metrics(path: Path) -> list[dict[str, Any]]:
    lines = _lines(path, METRICS)
    for number, line in enumerate(lines, 1):
        if not isinstance(line.get("step"), (int, float)):
            raise InputError(
                f"{path}:{number}: a line of metrics needs a number as its step; found {line.get('step')!r}"
            )
    return lines


def _optional(path: Path, kind: TypeAdapter[Value]) -> Value | None:
    return _read(path, kind) if path.exists() else None


def _read(path: Path, kind: TypeAdapter[Value]) -> Value:
    try:
        return kind.validate_python(read_json(path))
    except ValidationError as error:
        raise InputError(_explain(path, error)) from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error


def _lines(path: Path, kind: TypeAdapter[list[Value]]) -> list[Value]:
    try:
        return kind.validate_python(read_lines(path))
    except ValidationError as error:
        raise InputError(_explain(path, error)) from error
    except ValueError as error:
        raise InputError(f"{path}: a finished line is not JSON ({error})") from error


def _explain(path: Path, error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{path}: {place or 'the whole file'}: {first['msg']}; found {str(first['input'])[:80]!r}"
