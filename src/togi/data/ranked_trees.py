"""Conversation trees whose answers people ranked, as OpenAssistant publishes them: one tree a row, a message with its
`replies`, whose `rank` is 0 for the best."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from togi.data.values import BadRow, kind_of

Row = Mapping[str, Any]
ROLES = {"prompter": "user", "assistant": "assistant"}


def tree_rows(row: Row, kind: str) -> list[dict[str, Any]]:
    """What one tree gives. As pairs: any two answers to one message with different ranks, the better one chosen, with
    the distance of their ranks as margin. As prompts: its first message. As chats: the talk along the best answers.

    Raises BadRow for a row that is no tree.
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


def _check(message: Any) -> None:
    """Raises BadRow for what is no message with a text, a known role and a list of replies."""
    if not isinstance(message, Mapping) or not isinstance(message.get("replies"), list):
        raise BadRow("wrong_type", f"found {kind_of(message)} without a list of replies; a row is a tree of messages")
    if message.get("role") not in ROLES or not isinstance(message.get("text"), str):
        raise BadRow(
            "wrong_type", f"message {message.get('message_id')}: wanted text, and the role prompter or assistant"
        )
    for reply in message["replies"]:
        _check(reply)


def _turn(message: Row) -> dict[str, str]:
    return {"role": ROLES[message["role"]], "content": message["text"]}


def _ranked(message: Row) -> list[Row]:
    """The answers to a message that people ranked, the best first."""
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
    """The messages from here on along the best answers, up to the last one of the assistant."""
    found = [message]
    while True:
        answers = _ranked(found[-1]) or [each for each in found[-1]["replies"] if not each.get("deleted")]
        if not answers:
            return found[:-1] if len(found) > 1 and found[-1]["role"] == "prompter" else found
        found.append(answers[0])
