"""Reads files of model folders from outside, which may be truncated, empty or of another kind.

Needs no torch. Each error names the file, what is wrong with it, and what to do.
"""

import json
from pathlib import Path
from typing import Any

from togi.core.errors import InputError

POINTER = b"version https://git-lfs.github.com/spec/"
LARGEST = 2**28  # bytes of a JSON file; the largest tokenizers have 2**25


def refuse_pointer(path: Path) -> None:
    """Raises InputError if a file is a git-lfs pointer instead of the content, or cannot be read."""
    try:
        with path.open("rb") as handle:
            first = handle.read(len(POINTER))
    except OSError as error:
        raise InputError(f"{path}: it cannot be read: {error.strerror or error}") from error
    if first == POINTER:
        raise InputError(
            f"{path}: it is a git-lfs pointer, not the file itself; run `git lfs pull` in {path.parent}, or "
            "download the file"
        )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError if the file does not contain one."""
    refuse_pointer(path)
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path}: {path.stat().st_size} bytes are too many for a JSON file of a model")
        text = path.read_text(encoding="utf-8-sig")
        value = json.loads(text)
    except OSError as error:
        raise InputError(f"{path}: it cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: it is not valid UTF-8 ({error.reason}); download it again") from error
    except RecursionError as error:
        raise InputError(f"{path}: its JSON is nested too deeply; download it again") from error
    except ValueError as error:
        what = f"its JSON is damaged ({error})" if text.strip() else "it is empty"
        raise InputError(f"{path}: {what}; download it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: it contains {_kind(value)} instead of a JSON object; download it again")
    return value


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
