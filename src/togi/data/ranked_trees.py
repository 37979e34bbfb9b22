"""Conversation trees with answers ranked by people, as published by OpenAssistant: one tree per row, a message with its
`replies`, whose `rank` is 0 for the best; or one message per row (`trees_of`)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from togi.data.values import BadRow, kind_of

Row = Mapping[str, Any]
ROLES = {"prompter": "user", "assistant": "assistant"}
MOST_TURNS = 500  # maximum length of a conversation in a tree; Python's recursion ends at about 1,000


def tree_rows(row: Row, kind: str) -> list[dict[str, Any]]:
    """The rows of one tree. As pairs: any two answers to one message with different ranks; the better one is chosen,
    and the margin is the difference of their ranks. As prompts: its first message. As chats: the conversation along the
    best answers.

    Raises BadRow for a row that is not a tree.
    """
    told = row.get("prompt")
    root: Row = told if isinstance(told, Mapping) else row
    _check(root)
    shared = {"message_tree_id": row.get("message_tree_id", root.get("message_id")), "lang": root.get("lang")}
    if kind == "pairs":
        return [{**shared, **pair} for pair in _pairs(root, [])]
    if kind == "prompts":
        return [{**shared, "prompt": root["text"]}]
    return [{**shared, "messages": [_turn(each) for each in _best(root)]}]


def trees_of(rows: Iterable[Any]) -> Iterator[Any]:
    """The trees of a file. Rows that are trees stay as they are; in the flat layout (one message per row) adjacent rows
    of one tree are joined. A tree without a first message, with a missing parent message, or with rows that are not
    adjacent becomes a BadRow in its place."""
    known: dict[str, None] = {}
    held: list[Any] = []
    for row in rows:
        tree = _tree_of(row)
        if held and tree != _tree_of(held[0]):
            yield _joined(held, known)
            held = []
        if tree is None:
            yield row
        else:
            held.append(row)
    if held:
        yield _joined(held, known)


def _tree_of(row: Any) -> str | None:
    """The name of the tree that a row of the flat layout belongs to; None for any other row."""
    values = row.values
    if isinstance(values, BadRow) or "replies" in values or isinstance(values.get("prompt"), Mapping):
        return None
    name = values.get("message_tree_id")
    return name if isinstance(name, str) and "message_id" in values and "parent_id" in values else None


def _joined(held: Sequence[Any], known: dict[str, None]) -> Any:
    """The tree of some messages; `known` are the names of earlier trees."""
    name = str(_tree_of(held[0]))
    values: dict[str, Any] | BadRow
    try:
        if name in known:
            raise BadRow("wrong_type", f"tree {name}: its rows are not adjacent; sort them by message_tree_id")
        values = {"message_tree_id": name, "prompt": _grown(name, [row.values for row in held])}
    except BadRow as bad:
        values = bad
    known[name] = None
    return replace(held[0], values=values)


def _grown(name: str, rows: Sequence[Any]) -> dict[str, Any]:
    """The first message, with the others attached as replies to their parents."""
    messages = {row["message_id"]: {**row, "rank": _whole(row.get("rank")), "replies": []} for row in rows}
    roots = [message for message in messages.values() if message["parent_id"] is None]
    if len(roots) != 1:
        raise BadRow("wrong_type", f"tree {name}: found {len(roots)} messages without parent_id; a tree has one")
    for message in messages.values():
        parent = message["parent_id"]
        if parent is not None and parent not in messages:
            raise BadRow(
                "wrong_type", f"tree {name}: message {parent}, which {message['message_id']} answers, is missing"
            )
        if parent is not None:
            messages[parent]["replies"].append(message)
    return roots[0]


def _whole(rank: Any) -> Any:
    """Converts a rank that a tool wrote as a float to an integer."""
    return int(rank) if isinstance(rank, float) and rank.is_integer() else rank


def _check(message: Any, turns: int = 1) -> None:
    """Raises BadRow for anything but a message with a text, a known role and a list of replies, and for a conversation
    that is too long. `turns` counts the messages from the first one to this one."""
    if turns > MOST_TURNS:
        raise BadRow(
            "nested_too_deeply", f"a conversation of the tree has more than {MOST_TURNS} messages; leave it out"
        )
    if not isinstance(message, Mapping) or not isinstance(message.get("replies"), list):
        raise BadRow("wrong_type", f"found {kind_of(message)} without a list of replies; a row is a tree of messages")
    if message.get("role") not in ROLES or not isinstance(message.get("text"), str):
        raise BadRow(
            "wrong_type", f"message {message.get('message_id')}: wanted text, and the role prompter or assistant"
        )
    for reply in message["replies"]:
        _check(reply, turns + 1)


def _turn(message: Row) -> dict[str, str]:
    return {"role": ROLES[message["role"]], "content": message["text"]}


def _ranked(message: Row) -> list[Row]:
    """The ranked answers to a message, best first."""
    replies = [each for each in message["replies"] if each["role"] == "assistant" and not each.get("deleted")]
    return sorted((each for each in replies if isinstance(each.get("rank"), int)), key=lambda each: each["rank"])


def _pairs(message: Row, before: Sequence[dict[str, str]]) -> Iterator[dict[str, Any]]:
    talk = [*before, _turn(message)]
    for good, bad in combinations(_ranked(message), 2):
        if good["rank"] != bad["rank"]:
            margin = bad["rank"] - good["rank"]
            yield {"prompt": talk, "chosen": good["text"], "rejected": bad["text"], "margin": margin}
    for reply in message["replies"]:
        yield from _pairs(reply, talk)


def _best(message: Row) -> list[Row]:
    """The messages from here along the best answers, ending with the assistant."""
    found = [message]
    while True:
        answers = _ranked(found[-1]) or [each for each in found[-1]["replies"] if not each.get("deleted")]
        if not answers:
            return found[:-1] if len(found) > 1 and found[-1]["role"] == "prompter" else found
        found.append(answers[0])
