"""Values of rows: strict JSON parsing, names of types for messages, and conversion to JSON."""

import base64
import json
import math
import re
from collections.abc import Mapping
from datetime import date, datetime, time
from typing import Any

DEEPEST = 64  # maximum nesting of lists and objects; json itself fails at about 1,000, code that copies values earlier
HALF = re.compile("[\ud800-\udfff]")  # half a surrogate pair: not valid text, and not encodable in UTF-8

REASONS = (
    *("ambiguous_columns", "duplicate_key", "empty_conversation", "empty_text", "invalid_json", "invalid_utf8"),
    *("labelled_bad", "missing_column", "nested_too_deeply", "no_answer", "no_partner", "no_prompt", "not_an_object"),
    *("not_text", "number_too_long", "prompts_disagree", "unclear_flag", "unreadable_value", "wrong_cell_count"),
    *("wrong_shape", "wrong_type"),
)
"""Every reason for which a row is rejected or dropped."""


class BadRow(Exception):
    """A row that does not fit. `reason` is a short constant; the message states what was found and what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class LeftOut(Exception):
    """A valid row that a preset or `where` leaves out. `reason` is a short constant."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def kind_of(value: Any) -> str:
    """The type of a value, in words for a message."""
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def absent(value: Any) -> bool:
    """Whether a column holds nothing: null, or NaN, as pandas writes null."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def blank(value: Any) -> bool:
    """Whether a column is empty: it holds nothing, or blank text, such as an empty CSV cell."""
    return absent(value) or (isinstance(value, str) and not value.strip())


def number(value: Any, column: str) -> float | None:
    """A number, or text that holds one, as in CSV; None for an empty cell. Raises BadRow for anything else."""
    if absent(value) or value == "":
        return None
    wrong = BadRow("wrong_type", f"column {column!r}: found {value!r}, wanted a number; leave it empty or rename it")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wrong
    try:
        found = float(value)
    except (ValueError, OverflowError):
        raise wrong from None
    if not math.isfinite(found):
        raise wrong
    return found


def parse_json(text: str) -> Any:
    """Parses JSON text. Only this function turns errors of the JSON library into a BadRow.

    Also rejects an object with a repeated key (the library would silently keep the last), a number of over 4,300
    digits, more than 64 levels, and half a surrogate pair. NaN and Infinity are numbers, as in Python.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise BadRow("invalid_json", f"not JSON at character {error.pos + 1}: {error.msg}") from None
    except ValueError:
        raise _too_long() from None
    except RecursionError:
        raise _too_deep() from None
    check_value(value, text)
    return value


def parse_list(text: str) -> Any:
    """`parse_json` for a whole file, item by item: bad items become BadRow values.

    Raises json.JSONDecodeError if the text is not JSON, BadRow if it is nested too deeply to read.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_unique_or_bad, parse_int=_whole)
    try:
        value = decoder.decode(text)
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(value, list):
        return value
    halves = _may_be_half(text)
    return [judged(item, halves) for item in value]


def _too_long() -> BadRow:
    return BadRow("number_too_long", "holds a number of over 4,300 digits: write it as text, or shorten it")


def _too_deep() -> BadRow:
    return BadRow("nested_too_deeply", f"holds lists or objects nested more than {DEEPEST} levels deep")


def _half() -> BadRow:
    return BadRow("invalid_utf8", "holds half a surrogate pair, which is not valid text")


def check_value(value: Any, text: str) -> None:
    """Raises BadRow if a value, parsed from `text`, is nested too deeply or holds half a surrogate pair."""
    if text.count("[") + text.count("{") > DEEPEST and _deeper(value, DEEPEST):
        raise _too_deep()
    if _may_be_half(text) and HALF.search(json.dumps(value, ensure_ascii=False)):
        raise _half()


def _may_be_half(text: str) -> bool:
    return "\\u" in text or HALF.search(text) is not None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRow("duplicate_key", f"an object has the key {twice!r} twice: remove one of them")
    return found


def _unique_or_bad(pairs: list[tuple[str, Any]]) -> Any:
    try:
        return _unique(pairs)
    except BadRow as bad:
        return bad


def _whole(digits: str) -> Any:
    try:
        return int(digits)
    except ValueError:
        return _too_long()


def judged(item: Any, halves: bool = True) -> Any:
    """Returns the item, or a BadRow if no row can hold it; `halves` is False if it cannot contain half a surrogate
    pair."""
    if _deeper(item, DEEPEST):
        return _too_deep()
    bad = _bad_in(item)
    if bad is None and halves and HALF.search(json.dumps(item, ensure_ascii=False)):
        return _half()
    return item if bad is None else bad


def _bad_in(value: Any) -> BadRow | None:
    if isinstance(value, BadRow):
        return value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((bad for part in parts if (bad := _bad_in(part)) is not None), None)


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested more than `levels` deep."""
    if not isinstance(value, dict | list):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(part, levels - 1) for part in parts)


def without_nulls(value: Any) -> Any:
    """A value of Parquet or Arrow without null keys, because every struct there has the keys of all rows."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """A column that togi does not read, converted to JSON: times as ISO text, bytes as base64, the rest as text."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)
