"""Shared by the `wire` modules: a call, the error for a broken reply, and small validators of JSON values."""

import math
import reprlib
from dataclasses import dataclass
from typing import Any

MOST = 2**31
"""No token id, and no number of tokens in one reply, is as large as this."""
SHOWN = 60
"""The most characters of a wrong value in a message."""


@dataclass(frozen=True, slots=True)
class Call:
    """A POST to `path` under the base URL, or under the server root with `at_root`. With `may_fail`, the server may
    refuse it without an error."""

    path: str
    body: dict[str, Any]
    at_root: bool = False
    may_fail: bool = False


class Broken(Exception):
    """The reply is not the answer asked for. `filtered`: the provider's filter withheld the answer."""

    def __init__(self, message: str, *, filtered: bool = False) -> None:
        super().__init__(message)
        self.filtered = filtered


def shown(value: Any) -> str:
    """The beginning of a server's value, for a message. The value may be long and deeply nested."""
    return reprlib.repr(value)[:SHOWN]


def printable(said: str) -> str:
    """Words of a server, with half surrogates escaped, since no file can hold them."""
    return said.encode("utf-8", "backslashreplace").decode()


def reason_of(value: Any) -> str:
    """The reason that a server gives in a reply with an error, or an empty text."""
    for key in ("error", "detail", "message"):
        if isinstance(value, dict) and value.get(key):
            value = value[key]
    return " ".join(printable(value).split())[:300] if isinstance(value, str) else ""


def fields(value: Any, what: str) -> dict[str, Any]:
    """`value` as an object. Raises Broken."""
    if not isinstance(value, dict):
        raise Broken(f"{what} is not an object: {shown(value)}")
    return value


def items(value: Any, what: str, wanted: int | None = None) -> list[Any]:
    """`value` as a list, of `wanted` items unless None. Raises Broken."""
    if not isinstance(value, list):
        raise Broken(f"{what} is not a list: {shown(value)}")
    if wanted is not None and len(value) != wanted:
        raise Broken(f"{what}: received {len(value)}, expected {wanted}")
    return value


def check_error(value: Any, key: str = "") -> None:
    """Raises Broken with the server's reason, if a reply with status 200 has an error instead of `key`."""
    if isinstance(value, dict) and value.get(key) is None and (why := reason_of(value)):
        raise Broken(f"the server answers 200 with an error: {why}")


def listed(value: Any, key: str, wanted: int) -> list[Any]:
    """The list of `wanted` items under `key` of a reply. Raises Broken."""
    check_error(value, key)
    return items(fields(value, "the reply").get(key), key, wanted)


def token_ids(value: Any, wanted: int | None = None) -> tuple[int, ...]:
    """`value` as token ids, `wanted` of them unless None. Raises Broken."""
    found = items(value, "token ids", wanted)
    if any(count(each) is None for each in found):
        raise Broken(f"token ids: {shown(found)} are not all token ids")
    return tuple(found)


def in_order(found: list[Any], what: str) -> list[dict[str, Any]]:
    """Objects sorted by their `index`, which must count from 0; in the given order if none has one. Raises Broken."""
    rows = [fields(each, what) for each in found]
    places: list[Any] = [row.get("index") for row in rows]
    if all(place is None for place in places):
        return rows
    if any(count(place) is None for place in places) or sorted(places) != list(range(len(rows))):
        raise Broken(f"{what}: the indices are {shown(places)}, not 0 to {len(rows) - 1}")
    return sorted(rows, key=lambda row: row["index"])


def number(value: Any, what: str) -> float:
    """`value` as a finite number. Raises Broken."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise Broken(f"{what} is {shown(value)}, not a finite number")
    return float(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number above every float
        return False


def text(value: Any, what: str) -> str:
    """`value` as text. Raises Broken, also for half of a surrogate pair, which JSON allows but no file can hold."""
    if not isinstance(value, str):
        raise Broken(f"{what} is not text: {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Broken(f"{what} contains half of a surrogate pair, which is not valid Unicode") from None
    return value


def count(value: Any) -> int | None:
    """`value` as a whole number from 0, or None if it is not one, or is too large to be a number of tokens."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST else None
