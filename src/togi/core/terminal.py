"""Output to the terminal, which text from data, models and recipes must not be able to control.

togi prints everything through `say`, or through `printable` if another library prints. JSON stays JSON: control
characters become JSON escapes.
"""

import io
import json
import logging
import os
import re
import sys
from typing import Any

import click

from togi.core.errors import OutputClosed, StageError, TogiError

# C0 without tab and line feed, DEL, C1, characters that change the direction of text, separators that break lines, and
# halves of surrogate pairs, which no encoding can write
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_lost: dict[int, TogiError] = {}
"""Why standard output (1) or standard error (2) can no longer be written."""


def printable(text: str) -> str:
    """`text` with control characters escaped (ESC as \\x1b); plain text is unchanged."""
    return _UNPRINTABLE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return {"\r": "\\r"}.get(found[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON with control characters escaped; other characters stay as they are."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return re.sub(_UNPRINTABLE, lambda found: f"\\u{ord(found[0]):04x}", text)


def say(text: object = "", *, nl: bool = True, err: bool = False, escaped: bool = False) -> None:
    """Prints `text` on standard output, or on standard error with `err`. `escaped` text contains only togi's own
    colours and no other control characters.

    Raises OutputClosed if the reader has closed the stream, StageError if it cannot be written (disk full), and again
    on every later call.
    """
    number = 2 if err else 1
    if number in _lost:
        raise _lost[number]
    try:
        click.echo(text if escaped else printable(str(text)), nl=nl, err=err)
    except BrokenPipeError:
        raise _given_up(number, OutputClosed("the reader of the output has closed it")) from None
    except OSError as error:
        stream = "standard error" if err else "standard output"
        raise _given_up(number, StageError(f"{stream} cannot be written: {error.strerror}")) from None


def _given_up(number: int, why: TogiError) -> TogiError:
    """Discards the pending output of this stream, which would fail again at the end of the process."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
    _lost[number] = why
    return why


def open_streams() -> None:
    """Opens the standard streams that this process was started without, so that no file gets their descriptors.

    Characters that a terminal's encoding lacks are written as escapes; invalid bytes are read as U+FFFD."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free descriptor: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if stream is sys.stdin else "backslashreplace")


class PrintableFormatter(logging.Formatter):
    """Formats log records for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
