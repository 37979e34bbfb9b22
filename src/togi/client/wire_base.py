"""Shared by the `wire` modules: a call, the error for a broken reply, and small validators of JSON values."""

import math
from dataclasses import dataclass
from typing import Any


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


def fields(value: Any, what: str) -> dict[str, Any]:
    """`value` as an object. Raises Broken."""
    if not isinstance(value, dict):
        raise Broken(f"{what} is not an object: {str(value)[:60]!r}")
    return value


def items(value: Any, what: str, wanted: int | None = None) -> list[Any]:
    """`value` as a list, of `wanted` items unless None. Raises Broken."""
    if not isinstance(value, list):
        raise Broken(f"{what} is not a list: {str(value)[:60]!r}")
    if wanted is not None and len(value) != wanted:
        raise Broken(f"{what}: received {len(value)}, expected {wanted}")
    return value


def in_order(found: list[Any], what: str) -> list[dict[str, Any]]:
    """Objects sorted by their `index`, which must count from 0; in the given order if none has one. Raises Broken."""
    rows = [fields(each, what) for each in found]
    places = [row.get("index") for row in rows]
    if all(place is None for place in places):
        return rows
    if sorted(places, key=str) != sorted(range(len(rows)), key=str):
        raise Broken(f"{what}: the indices are {places}, not 0 to {len(rows) - 1}")
    return sorted(rows, key=lambda row: row["index"])


def number(value: Any, what: str) -> float:
    """`value` as a finite number. Raises Broken."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Broken(f"{what} is {value!r}, not a finite number")
    return float(value)


def text(value: Any, what: str) -> str:
    """`value` as text. Raises Broken."""
    if not isinstance(value, str):
        raise Broken(f"{what} is not text: {str(value)[:60]!r}")
    return value


def count(value: Any) -> int | None:
    """`value` as a number of tokens, or None if it is not one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
