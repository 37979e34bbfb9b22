"""Parses conversation turns in the formats of common data sets: role and content, from and value, transcripts.

Other keys of a turn than role, content and loss flag go to `Message.extra`, where chat templates read them. A row is
bad if one of its keys would change training and cannot be kept.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from togi.core.records import CALLS, Message
from togi.data.values import BadRow, kind_of, parse_json, plain

ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    **{role: role for role in ("system", "developer", "user", "assistant", "tool", "function", "ipython")},
}
CALLERS = ("function_call", "tool_call")  # roles of sharegpt data: the assistant calls a tool
FLAGS = ("train", "trainable", "training", "loss", "weight", "loss_mask")
PRINTED = re.compile(r"\s*\[\s*\{\s*'(role|content|from|value)'\s*:")  # a list of turns as Python prints it
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"  # transcripts as in the Anthropic HH data


def role_of(name: str) -> str:
    """togi's name of a role. Unknown roles stay as they are, for templates with free roles."""
    return ROLES.get(name.strip().lower(), name.strip())


def said(value: Any, column: str, role: str) -> tuple[Message, ...]:
    """The turns of a value: plain text is one turn of `role`, a transcript is cut into turns, a list is read item by
    item. Text counts as a list of turns only if it parses as one.
    """
    if isinstance(value, str):
        listed = _listed(value, column)
        if listed is not None:
            return turns(listed, column)
        transcript = f"\n\n{value.lstrip()}"
        if value.startswith(HUMAN) or (transcript.startswith(HUMAN) and ASSISTANT in value):
            return _transcript(transcript, column)
        return (Message(role, text_of(value, column)),)
    if not isinstance(value, list):
        raise BadRow("wrong_type", f"column {column!r}: found {kind_of(value)}, wanted text or a list of turns")
    return turns(value, column)


def _listed(text: str, column: str) -> list[Any] | None:
    """The list of turns in a text, as CSV stores them; None for any other text."""
    if not text.lstrip().startswith("["):
        return None
    if PRINTED.match(text):
        raise BadRow(
            "wrong_type",
            f"column {column!r}: found turns as Python prints them, wanted JSON: write them with json.dumps",
        )
    try:
        found = parse_json(text)
    except BadRow:
        return None
    return found if isinstance(found, list) and found and all(_is_turn(item) for item in found) else None


def _is_turn(item: Any) -> bool:
    if not isinstance(item, dict):
        return False
    return (
        {"role", "content"} <= item.keys() or {"from", "value"} <= item.keys() or {"role", "tool_calls"} <= item.keys()
    )


def _transcript(text: str, column: str) -> tuple[Message, ...]:
    found: list[Message] = []
    for part in text.split(HUMAN)[1:]:
        asked, *replies = part.split(ASSISTANT)
        found.append(Message("user", asked.strip()))
        found += [Message("assistant", reply.strip()) for reply in replies]
    spoken = tuple(turn for turn in found if turn.content)
    if not spoken:
        raise BadRow("empty_text", f"column {column!r} is a transcript without any text")
    return spoken


def turns(value: Any, column: str) -> tuple[Message, ...]:
    """The turns of a list of objects, or of JSON text with such a list. Raises BadRow with the position of the
    error."""
    if isinstance(value, str):  # CSV has no lists
        try:
            value = parse_json(value)
        except BadRow as bad:
            found = f"column {column!r}: found text, wanted a list of turns ({bad})"
            raise BadRow("wrong_type", found) from None
    if not isinstance(value, list):
        raise BadRow("wrong_type", f"column {column!r}: found {kind_of(value)}, wanted a list of turns")
    if not value:
        raise BadRow("empty_conversation", f"column {column!r}: the list of turns is empty")
    return tuple(_turn(item, f"{column}[{number}]") for number, item in enumerate(value))


def _turn(item: Any, column: str) -> Message:
    if not isinstance(item, Mapping):
        raise BadRow("wrong_type", f"column {column!r}: found {kind_of(item)}, wanted an object with role and content")
    left = {key: value for key, value in item.items() if value is not None}
    keys = ", ".join(item)
    role_key = next((key for key in ("role", "from") if key in left), "from" if "value" in left else "role")
    text_key = next((key for key in ("content", "value") if key in left), "value" if role_key == "from" else "content")
    if role_key not in left:
        raise BadRow("missing_column", f"column {column!r} has no {role_key!r}; it has {keys}")
    role = left.pop(role_key)
    if not isinstance(role, str):
        raise BadRow("wrong_type", f"column '{column}.{role_key}': found {kind_of(role)}, wanted text")
    train = _trained(left, column)
    extra = _extra({key: value for key, value in left.items() if key not in (text_key, *FLAGS, "masked")}, column)
    if role.strip().lower() in CALLERS:
        return _call(left.get(text_key), f"{column}.{text_key}", train, extra)
    role = role_of(role)
    calls = role == "assistant" and any(extra.get(key) for key in CALLS)
    if text_key not in left and text_key in item and not calls:
        raise BadRow("empty_text", f"column '{column}.{text_key}' is null, and the turn makes no tool call")
    if text_key not in left and not calls:
        raise BadRow("missing_column", f"column {column!r} has no {text_key!r}; it has {keys}")
    return Message(role, _content(left.get(text_key, ""), f"{column}.{text_key}", role, calls), train, extra)


# --- the text of a turn -----------------------------------------------------------------------------------------------


def text_of(value: Any, column: str) -> str:
    """Returns text that is not blank. Raises BadRow for other values and for blank text."""
    if not isinstance(value, str):
        raise BadRow("wrong_type", f"column {column!r}: found {kind_of(value)}, wanted text")
    if not value.strip():
        raise BadRow("empty_text", f"column {column!r} is empty")
    return value


def _content(value: Any, column: str, role: str, calls: bool) -> str:
    """A turn's text. Only user and assistant turns must have text; a tool's result may be any value."""
    if role in ("tool", "function", "ipython") and not isinstance(value, str) and not _parts(value):
        return json.dumps(plain(value), ensure_ascii=False)
    if isinstance(value, list):
        value = "\n".join(_part(part, f"{column}[{number}]") for number, part in enumerate(value))
    silent = calls or role not in ("user", "assistant")
    return value if silent and isinstance(value, str) else text_of(value, column)


def _parts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, Mapping) and "type" in part for part in value)


def _part(part: Any, column: str) -> str:
    """The text of one part of a content in parts."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise BadRow("wrong_type", f"column {column!r}: found {kind_of(part)}, wanted a part with type and text")
    kind = part.get("type", "text")
    if kind not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
        raise BadRow("not_text", f"column {column!r}: found a part of type {kind!r}; togi reads text parts only")
    return part["text"]


# --- the other keys of a turn -----------------------------------------------------------------------------------------


def _trained(left: Mapping[str, Any], column: str) -> bool:
    """Whether a turn carries loss, under any of the flag's names."""
    if "mask" in left:
        raise BadRow("unclear_flag", f"column '{column}.mask' may mean either: write train: true or train: false")
    found = {key: flag(left[key], f"{column}.{key}") for key in FLAGS if key in left}
    if "masked" in left:
        found["masked"] = not flag(left["masked"], f"{column}.masked")
    if len(set(found.values())) > 1:
        raise BadRow(
            "unclear_flag", f"column {column!r}: {' and '.join(found)} disagree on whether the turn is trained"
        )
    return all(found.values())


def flag(value: Any, column: str) -> bool:
    """True or false, also from 1 and 0 and from text, because CSV has no booleans."""
    known = {"none": True, "true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    found = known.get(str(value).strip().lower())
    if found is None:
        raise BadRow("wrong_type", f"column {column!r}: found {value!r}, wanted true or false")
    return found


def _extra(left: Mapping[str, Any], column: str) -> dict[str, Any]:
    """The keys of a turn that togi does not read, with tool calls in the form that templates expect."""
    kept = {str(key): plain(value) for key, value in left.items() if value not in ("", [], {})}
    if "tool_calls" in kept:
        kept["tool_calls"] = _calls(kept["tool_calls"], f"{column}.tool_calls")
    return kept


def _calls(value: Any, column: str) -> list[dict[str, Any]]:
    calls = objects(value, column)
    if calls is None:
        raise BadRow("wrong_type", f"column {column!r}: found {kind_of(value)}, wanted a list of calls")
    return [{**call, **_opened(call)} for call in calls]


def _opened(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call with its arguments as an object; the OpenAI API writes them as JSON text."""
    inner = call.get("function")
    if isinstance(inner, Mapping):
        return {"function": {**inner, **_opened(inner)}}
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return {}
    try:
        parsed = parse_json(arguments)
    except BadRow:
        return {}
    return {"arguments": parsed} if isinstance(parsed, dict) else {}


def _call(value: Any, column: str, train: bool, extra: Mapping[str, Any]) -> Message:
    """A sharegpt turn whose text is a tool call, {"name": ..., "arguments": ...}, or several."""
    found = parse_or_none(value) if isinstance(value, str) else value
    calls = objects([found] if isinstance(found, Mapping) else found, column)
    if not calls or not all(isinstance(call.get("name"), str) for call in calls):
        raise BadRow("wrong_type", f"column {column!r}: found no tool call, wanted an object with name and arguments")
    wrapped = [{"type": "function", "function": call} for call in calls]
    return Message("assistant", "", train, {**extra, "tool_calls": _calls(wrapped, column)})


def objects(value: Any, column: str) -> list[dict[str, Any]] | None:
    """A list of objects, also from JSON text; None for anything else."""
    found = parse_json_list(value, column) if isinstance(value, str) else plain(value)
    good = isinstance(found, Sequence) and not isinstance(found, str) and all(isinstance(f, dict) for f in found)
    return list(found) if good else None


def parse_json_list(text: str, column: str) -> Any:
    """The value of text that begins like a JSON list. Raises BadRow if it is not JSON."""
    if not text.lstrip().startswith("["):
        return None
    try:
        return parse_json(text)
    except BadRow as bad:
        raise BadRow("invalid_json", f"column {column!r}: {bad}") from None


def parse_or_none(text: str) -> Any:
    """The value of JSON text; None for any other text."""
    try:
        return parse_json(text)
    except BadRow:
        return None
