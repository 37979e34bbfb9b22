"""Finds whether a server's chat template passes every turn of a conversation on to the model. It asks the server's
/tokenize (vLLM, togi serve): the prompt's tokens change with the text of a turn that the template writes."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from togi.client.endpoint import Endpoint, read_key, root_of
from togi.client.transport import NoReply, Transport
from togi.core.errors import InputError
from togi.core.records import Message

SECONDS = 30.0
MORE = " ?!"
"""What is put after a turn's text."""
REFUSED = (400, 422)
"""The statuses of servers that cannot read a body."""


class _Refused(Exception):
    """The server cannot read this conversation; the text is its message."""


def unread_roles(endpoint: Endpoint, messages: Sequence[Message]) -> list[str] | None:
    """The roles of the turns whose text does not reach the model, without the assistant's; None if the server does not
    tokenise conversations. Raises RecipeError if the environment lacks the key, InputError with the server's message if
    it refuses this conversation, for example because of a role."""
    return asyncio.run(_asked(endpoint, Transport(read_key(endpoint)), messages))


async def _asked(endpoint: Endpoint, transport: Transport, messages: Sequence[Message]) -> list[str] | None:
    try:
        return await _unread(endpoint, transport, messages)
    except _Refused as refused:
        questions = [message for message in messages if message.role == "user"]
        try:
            if await _tokens(endpoint, transport, questions) is None:
                return None
        except _Refused:  # it refuses any conversation: its /tokenize reads only texts
            return None
        raise InputError(f"{endpoint.urls[0]}: the server refuses the conversation: {refused}") from None
    finally:
        await transport.close()


async def _unread(endpoint: Endpoint, transport: Transport, messages: Sequence[Message]) -> list[str] | None:
    places = [place for place, message in enumerate(messages) if message.role != "assistant"]
    changed = [_changed(messages, place) for place in places]
    found = []
    for each in (messages, *changed):
        tokens = await _tokens(endpoint, transport, each)
        if tokens is None:
            return None
        found.append(tokens)
    whole, *others = found
    unread = [messages[place].role for place, other in zip(places, others, strict=True) if other == whole]
    return None if "user" in unread else unread  # no template leaves out questions: the server does not read messages


def _changed(messages: Sequence[Message], place: int) -> list[Message]:
    """The conversation with a longer turn at `place`."""
    turn = replace(messages[place], content=messages[place].content + MORE)
    return [*messages[:place], turn, *messages[place + 1 :]]


async def _tokens(endpoint: Endpoint, transport: Transport, messages: Sequence[Message]) -> list[Any] | None:
    """The prompt's token ids of a conversation, None if there is no such reply. Raises _Refused if the server cannot
    read the conversation."""
    turns = [{"role": message.role, "content": message.content} for message in messages]
    body = json.dumps({"model": endpoint.model, "messages": turns}, ensure_ascii=False)
    url = root_of(endpoint.bases[0]) + "/tokenize"
    try:
        reply = await transport.send("POST", url, body.encode("utf-8", "surrogatepass"), SECONDS)
        value = reply.json() if reply.status == 200 else None
    except (NoReply, ValueError, RecursionError):
        return None
    if reply.status in REFUSED:
        raise _Refused(reply.words())
    tokens = value.get("tokens") if isinstance(value, dict) else None
    return tokens if isinstance(tokens, list) and tokens else None
