"""Writes a template's table of strings as Jinja, for other programs."""

import json
from typing import Any

from togi.core.records import Message


def jinja_source(t: Any) -> str:
    """The Jinja source of a table `Template`. Literals are JSON strings, which Jinja reads the same way."""
    content = "(message['content'] | trim)" if t.strip else "message['content']"
    parts = [_say(_quoted(t.bos))]
    if t.default_system is not None:
        system = "".join(s.text for s in t.segments([Message("system", t.default_system)])).removeprefix(t.bos)
        parts += [_do("if messages[0]['role'] != 'system'"), _say(_quoted(system)), _do("endif")]
    parts.append(_do("for message in messages"))
    word = "if"
    for role, (prefix, suffix) in t.roles.items():
        fixed = t.fixed_system if role == "system" else None
        said = content if fixed is None else _quoted(fixed)
        parts += [_do(f"{word} message['role'] == {_quoted(role)}"), _say(_quoted(prefix), said, _quoted(suffix))]
        word = "elif"
    parts.append(_do("else"))
    if t.free_role is not None:
        before, after = t.free_role[0].split("{role}")
        parts.append(_say(_quoted(before), "message['role']", _quoted(after), content, _quoted(t.free_role[1])))
    else:
        parts.append(_say("raise_exception('unknown role ' + message['role'])"))
    parts += [_do("endif"), _do("endfor")]
    return "".join([*parts, _do("if add_generation_prompt"), _say(_quoted(t.generation)), _do("endif")])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _say(*expressions: str) -> str:
    return "{{- " + " + ".join(expressions) + " }}"


def _do(statement: str) -> str:
    return "{%- " + statement + " %}"
