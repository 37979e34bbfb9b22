"""The columns of the rows that a reward grades, and what a function with TRL's signature asks of them."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from togi.core.errors import InputError
from togi.core.records import Prompt

ANSWER = "answer"
ALWAYS = ("prompts", "completions", "completion_ids")
"""The arguments that such a function always gets, even if the rows have no other columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns that at least one of `count` rows has; `answer` is among them if a row has a reference answer.
    `rows` is their name in messages."""

    names: tuple[str, ...]
    count: int
    rows: str = "rows"


def columns_of(prompts: Iterable[Prompt], rows: str = "rows") -> Columns:
    """The columns that a function is given for these prompts."""
    names: dict[str, None] = {}
    count = 0
    for prompt in prompts:
        count += 1
        names.update(dict.fromkeys(prompt.extra))
        if (prompt.answer or "").strip():
            names[ANSWER] = None
    return Columns(names=tuple(names), count=count, rows=rows)


def parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function by name; empty if its signature is unknown."""
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return {}


def needed(function: Callable[..., Any]) -> list[str]:
    """The columns without which a function cannot be called: its parameters without a default."""
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        name
        for name, found in parameters(function).items()
        if found.kind in by_name and found.default is found.empty and name not in ALWAYS
    ]


def refuse_missing(file: Path, name: str, function: Callable[..., Any], columns: Sequence[Columns]) -> None:
    """Raises InputError if the function needs a column that no row has. Without `columns` the rows are unknown."""
    for rows in columns:
        missing = [each for each in needed(function) if each not in rows.names]
        if missing and rows.count:
            raise InputError(f"reward function: {file}: {_told(name, missing[0], rows)}")


def _told(name: str, missing: str, rows: Columns) -> str:
    there = f"the other columns are {', '.join(rows.names)}" if rows.names else "they have no other columns"
    if missing == ANSWER:
        return (
            f"{name} asks for `answer`, and none of the {rows.count} {rows.rows} has one ({there}). Give the rows a "
            "column `answer`, map one with `columns: {answer: NAME}`, or give the parameter a default"
        )
    return (
        f"{name} asks for `{missing}`, and none of the {rows.count} {rows.rows} has a column of that name ({there}). "
        "Rename the parameter or the column, or give the parameter a default"
    )
