"""Turns exceptions in a worker into messages: problems that a user can fix become togi's errors, others are faults.

Libraries report a full disk or memory in different ways, not always as OSError or MemoryError.
"""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from togi.core.errors import RecordError, StageError, TogiError
from togi.core.extras import missing
from togi.stages.refused import imports_behind, with_row

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SURROUNDINGS = (  # errors caused by the machine, not by the program
    *FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE,
    errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
NUMBERED = re.compile(r"\((?:os error) (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)  # of Rust; of Arrow and Python
NO_MEMORY = re.compile(
    r"out of memory|(?:can'?t|cannot) allocate memory|not enough memory|alloc_failed|bad_alloc", re.I
)
LOWER = ("micro_batch_tokens", "batch_prompts", "prompts_per_step", "group_size", "batch_size", "max_tokens")
TOLD = (TogiError, ModuleNotFoundError, OSError, MemoryError, RuntimeError, SystemExit)  # that `told` may recognise
SAVED = "everything finished is saved"


def told(error: BaseException, command: Mapping[str, Any]) -> TogiError | None:
    """The error that is shown to the user for the exception that ended the stage of `command`; None for a bug in
    togi."""
    where = f"stage {command['name']}"
    full = next((each for each in _chain(error) if _number(each) in FULL), None)
    if full is not None and not isinstance(error, StageError):
        return StageError(
            f"{where}: the disk is full ({_file(full) or 'while writing'}); finished work is saved: free some space "
            "and run the same command again"
        )
    if isinstance(error, RecordError) and "folder" in command:
        named = error if where in str(error) else RecordError(f"{where}: {error}", error.record)
        return with_row(named, imports_behind(Path(command["folder"])))
    if isinstance(error, TogiError):
        return error
    if isinstance(error, ModuleNotFoundError) and (found := missing(error)) is not None:
        return type(found)(f"{where}: {found}")
    if isinstance(error, SystemExit):
        return StageError(
            f"{where}: code that it called asked the process to exit (SystemExit: {error.code}), which only togi may; "
            f"{SAVED}"
        )
    if _lacks_memory(error):
        return StageError(f"{where}: there is not enough memory ({_first_line(error)}). {_advice(command)}; {SAVED}")
    number = _number(error)
    if number in SURROUNDINGS:
        place = f": {_file(error)}" if _file(error) else f" ({_first_line(error)})"
        return StageError(f"{where}: {os.strerror(number)}{place}; fix that and run the same command again: {SAVED}")
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and its causes and contexts."""
    seen: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in seen:
        seen.append(each)
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def _number(error: BaseException) -> int:
    """The errno of an error, 0 if it has none."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = NUMBERED.search(str(error)) if isinstance(error, Exception) else None
    return int(found[1] or found[2]) if found else 0


def _file(error: BaseException) -> str:
    return str(getattr(error, "filename", None) or "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _lacks_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError) and bool(NO_MEMORY.search(str(error)))
    )


def _advice(command: Mapping[str, Any]) -> str:
    """Advice on the stage's settings that reduce its memory."""
    settings = command["settings"]
    found = [f"stages.{command['name']}.{key}" for key in LOWER if key in settings]
    if "max_tokens" in (settings.get("sampling") or {}):
        found.append(f"stages.{command['name']}.sampling.max_tokens")
    lower = f"Lower {' or '.join(found)}, or use" if found else "Use"
    lora = ", or train with lora" if "lora" in settings and settings["lora"] is None else ""
    return f"{lower} a smaller model or shorter data{lora}"
