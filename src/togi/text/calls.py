"""Arguments of tool calls for chat templates, which read them as an object or as JSON text."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def as_text(rows: Sequence[Row]) -> list[dict[str, Any]] | None:
    """The turns with the arguments of their tool calls as JSON text; None if no call has arguments as an object."""
    if next(_objects(rows), None) is None:
        return None
    return [{**row, **({"tool_calls": [_spelt(call) for call in _calls(row)]} if _calls(row) else {})} for row in rows]


def printed(rows: Sequence[Row], text: str) -> bool:
    """Whether a template wrote the arguments of a call as Python prints an object, which is not JSON."""
    return any(str(found) in text for found in _objects(rows) if str(found) != json.dumps(found, ensure_ascii=False))


def _calls(row: Row) -> list[Any]:
    found = row.get("tool_calls")
    return found if isinstance(found, list) else []


def _spelt(call: Any) -> Any:
    """The call with the arguments in it, or in its function, as text."""
    if not isinstance(call, Mapping):
        return call
    found = {**call, "function": _spelt(call["function"])} if "function" in call else dict(call)
    if isinstance(call.get("arguments"), Mapping):
        found["arguments"] = json.dumps(call["arguments"], ensure_ascii=False)
    return found


def _objects(rows: Sequence[Row]) -> Iterator[Mapping[str, Any]]:
    for call in (call for row in rows for call in _calls(row) if isinstance(call, Mapping)):
        for place in (call, call.get("function")):
            found = place.get("arguments") if isinstance(place, Mapping) else None
            if isinstance(found, Mapping):
                yield found
