"""Finds roles of turns that were probably misspelt."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from togi.core.records import Message
from togi.data.turns import ROLES, turns
from togi.data.values import BadRow


def meant(role: str) -> str:
    """A hint for an unknown role that resembles a known one; empty for others, which templates may have."""
    close = [] if role in ROLES else get_close_matches(role.lower(), list(ROLES), 1, cutoff=0.75)
    return f" (did you mean {ROLES[close[0]]!r}?)" if close else ""


def wrong_roles(row: Mapping[str, Any], columns: Sequence[str], kind: str) -> str:
    """Why the roles of a row's conversation do not make a record of `kind`, after a colon; empty if they are not the
    reason."""
    column = next((name for name in columns if row.get(name)), "")
    try:
        found = turns(row[column], column) if column else ()
    except BadRow:
        return ""
    roles = [message.role for message in found]
    if not roles:
        return ""
    if kind in ("chats", "samples") and roles[-1] != "assistant":
        return f": the last turn of {column!r} has the role {roles[-1]!r}{meant(roles[-1])}"
    if kind == "prompts" and "user" not in roles:
        odd = next((role for role in roles if meant(role)), roles[-1])
        return f": no turn of {column!r} has the role 'user', one has {odd!r}{meant(odd)}"
    return ""


def misspelt(messages: Sequence[Message]) -> list[str]:
    """The roles of turns that resemble a known one."""
    return [message.role for message in messages if message.role not in ROLES and meant(message.role)]
