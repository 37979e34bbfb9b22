"""Errors about a record that a model's chat template refuses: they name the stage, the record, the model, and the file
and line of the record's row if these are known.
"""

import importlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from togi.core.errors import InputError, RecordError, TogiError
from togi.core.files import read_object
from togi.stages.base import StageSettings
from togi.stages.held_against import lineage
from togi.stages.table import STAGES


def refused(stage: str, kind: str, record: str, model: str, error: InputError) -> RecordError:
    """The error for a record (`kind` chat, pair or prompt, and its id) that `model` cannot read because of `error`."""
    return RecordError(f"stage {stage}: {kind} {record}: model {model}: {error}", record)


def with_row(error: TogiError, stages: Iterable[StageSettings]) -> TogiError:
    """The error; if it is about a record whose row one of these stages imported, with the row's file and line first."""
    if isinstance(error, RecordError):
        for settings in stages:
            if row := _row(settings, error.record):
                return InputError(f"{row}: {error}")
    return error


def _row(settings: StageSettings, record: str) -> str:
    """The file and line of the row that a stage imported as this record; empty if it imported none."""
    kind = STAGES[settings.type]
    if not kind.imports:
        return ""
    with suppress(InputError):  # the file has changed or is gone: the error is about the record
        return str(importlib.import_module(kind.work).row_of(settings, record))
    return ""


def imports_behind(folder: Path) -> Iterator[StageSettings]:
    """The settings of the imports among the stages that the stage of this folder reads from, at any distance."""
    for each in lineage(folder):
        with suppress(InputError):
            settings = read_object(each / "settings.json")
            kind = STAGES.get(str(settings.get("type")))
            if kind is not None and kind.imports:
                yield kind.settings.model_validate(settings)
