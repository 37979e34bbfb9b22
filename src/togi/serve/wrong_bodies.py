"""Describes errors in the body of a request in the terms of the API: where, what was found and what is allowed."""

from collections.abc import Mapping, Sequence
from typing import Any

from togi.data.values import kind_of

TEXTS = "a text, or a list of texts"
ALLOWED: Mapping[str, str] = {
    "prompt": "a text, a list of texts, a list of token ids, or a list of such lists",
    "input_ids": "a list of token ids, or a list of such lists",
    "content": 'a text, or a list of parts {"type": "text", "text": ...}',
    "stop": TEXTS, "text": TEXTS, "input": TEXTS,
}  # fmt: skip
"""The parameters that may be of several types, with these types."""
OWN = ("value_error", "extra_forbidden")
"""The most informative kinds of errors: of several errors, the message describes one of these."""
NO_OBJECT = ("model_type", "model_attributes_type", "dict_type")
EMPTY = {"too_short": "the list is empty; give at least one item", "string_too_short": "the text is empty"}
"""Errors of lists and texts, all of which may have a length of 1."""

Error = Mapping[str, Any]


def wrong_body(errors: Sequence[Error], body: Any, content_type: str) -> tuple[str, str | None]:
    """The message of one of the errors that validation found in a body, and the parameter that is wrong."""
    first = next((each for each in errors if each["type"] in OWN), errors[0])
    if first["type"] == "json_invalid":
        return f"the body is not valid JSON: {first['ctx']['error']} (at character {first['loc'][-1]})", None
    path, several = _path(first, body)
    if not path:
        return _whole(first, body, content_type), None
    name = ".".join(map(str, path))
    if first["type"] == "extra_forbidden":
        return f"{name}: this server does not support it, and ignores nothing silently; leave it out", name
    found = _kind(first["input"])
    if several and first["type"] not in OWN:
        return f"{name}: found {found}; allowed is {ALLOWED[str(path[-1])]}", name
    if first["type"] in NO_OBJECT:
        return f"{name}: found {found}; allowed is an object", name
    if first["type"] in EMPTY:
        return f"{name}: {EMPTY[first['type']]}", name
    return f"{name}: {_words(first)}", name


def _path(error: Error, body: Any) -> tuple[list[str | int], bool]:
    """The parts of an error's place that are names and positions in the body, without the library's names of types.
    Also whether the place is a parameter that may be of several types, none of which fits; its name is then the last
    part."""
    path: list[str | int] = []
    inner = body
    parts = error["loc"][1:]
    for number, part in enumerate(parts):
        if isinstance(inner, dict) and isinstance(part, str) and part in inner:
            inner = inner[part]
        elif not (isinstance(inner, list) and isinstance(part, int) and part < len(inner)):
            if error["type"] == "missing" and number == len(parts) - 1:
                path.append(part)
            elif path and path[-1] in ALLOWED and error["type"] not in OWN:
                return path, True
            continue
        else:
            inner = inner[part]
        path.append(part)
    return path, False


def _whole(error: Error, body: Any, content_type: str) -> str:
    """The message about a body as a whole."""
    if error["type"] not in (*NO_OBJECT, "missing"):
        return _words(error)
    if isinstance(body, bytes | str) and "json" not in content_type:
        sent = f"was {content_type!r}" if content_type else "is missing"
        return f"the body must be JSON: the header Content-Type {sent}; send Content-Type: application/json"
    found = "no body" if body is None or body == b"" else kind_of(body)
    return f"the body must be a JSON object; found {found}"


def _kind(value: Any) -> str:
    """The type of a value; of a list, also the types of its items."""
    if not isinstance(value, list) or not value:
        return kind_of(value)
    return f"a list of {' and '.join(dict.fromkeys(map(kind_of, value)))}"


def _words(error: Error) -> str:
    return str(error["msg"]).removeprefix("Value error, ")
