"""What reaches the terminal: text from data, models and recipes must not be able to steer it.

Everything that togi prints goes through `say`, or through `printable` where another library does the printing. JSON
stays JSON: the same characters are written as its own escapes.
"""

import json
import logging
import re
from typing import Any

import click

# C0 without tab and line feed, DEL, C1, the marks that turn the direction of text, separators that break lines, and
# halves of surrogate pairs, which no encoding can write
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with control characters shown as escapes (ESC as \\x1b); plain text comes back unchanged."""
    return _UNPRINTABLE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return {"\r": "\\r"}.get(found[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON in which control characters are escapes and other letters are themselves."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return re.sub(_UNPRINTABLE, lambda found: f"\\u{ord(found[0]):04x}", text)


def say(text: object = "", *, nl: bool = True, err: bool = False) -> None:
    """Prints `text` on standard output, or on standard error with `err`."""
    click.echo(printable(str(text)), nl=nl, err=err)


class PrintableFormatter(logging.Formatter):
    """Formats log records that a terminal shows."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
