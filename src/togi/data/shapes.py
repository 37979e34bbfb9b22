"""The shapes in which the ecosystem keeps conversations, and what each can become.

messages | conversations (sharegpt) | prompt + completion | prompt + chosen + rejected, also with the prompt inside both
sides | instruction + input + output (alpaca) | question or prompt alone | text.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from togi.core.records import Message
from togi.data.rows import BadRow, kind_of

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
CONVERSATIONS = ("messages", "conversations", "conversation")
QUESTIONS = ("prompt", "question", "instruction", "query")
ANSWERS = ("completion", "answer", "output", "response")
SPOKEN = (*CONVERSATIONS, *QUESTIONS, *ANSWERS, "chosen", "rejected", "text")
NEEDS = {
    "prompts": "messages, or prompt, question or instruction",
    "chats": "messages that end with the assistant, or prompt and completion, or instruction and output",
    "pairs": "chosen and rejected, with or without prompt",
    "documents": "text",
}
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"  # transcripts as in the Anthropic HH data


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A row understood: what it says and which columns that took. Absent parts are None."""

    prompt: tuple[Message, ...] = ()
    answer: tuple[Message, ...] | None = None
    chosen: tuple[Message, ...] | None = None
    rejected: tuple[Message, ...] | None = None
    margin: float | None = None
    text: str | None = None
    columns: tuple[str, ...] = ()

    def kinds(self) -> list[str]:
        """The kinds of records that the row could become."""
        asked = any(m.role == "user" for m in self.prompt)
        fits = {
            "prompts": asked,
            "chats": self.answer is not None,
            "pairs": self.chosen is not None,
            "documents": self.text is not None,
        }
        return [kind for kind, fit in fits.items() if fit]


def understand(row: Mapping[str, Any]) -> Shape:
    """What a row says. Raises BadRow where a column holds something else than its name promises."""
    present = [name for name, value in row.items() if value is not None]
    talk = _first(CONVERSATIONS, present)
    question, answer = _first(QUESTIONS, present), _first(ANSWERS, present)
    if "chosen" in present and "rejected" in present:
        return _pair(row, question)
    if talk is not None:
        system = _system(row)
        return _conversation(_with_system(system, _turns(row[talk], talk)), (talk, *(("system",) if system else ())))
    if question is not None:
        return _question(row, question, answer)
    if "text" in present:
        return Shape(text=_text(row["text"], "text"), columns=("text",))
    return Shape()


def _first(names: Sequence[str], present: Sequence[str]) -> str | None:
    return next((name for name in names if name in present), None)


def _conversation(messages: tuple[Message, ...], columns: tuple[str, ...]) -> Shape:
    """The assistant's last turns are the answer; everything before them is the prompt."""
    end = len(messages)
    while end and messages[end - 1].role == "assistant":
        end -= 1
    if end == len(messages):
        return Shape(prompt=messages, columns=columns)
    return Shape(prompt=messages[:end], answer=messages[end:], columns=columns)


def _question(row: Mapping[str, Any], question: str, answer: str | None) -> Shape:
    system = _system(row)
    columns = [question] + (["system"] if system else [])
    prompt = _said(row[question], question, "user")
    if question == "instruction" and isinstance(row.get("input"), str):
        columns.append("input")
        if row["input"].strip():
            prompt = (Message("user", f"{prompt[0].content}\n\n{row['input']}"),)
    prompt = _with_system(system, prompt)
    if answer is None:
        return Shape(prompt=prompt, columns=tuple(columns))
    reply = _without_prompt(_said(row[answer], answer, "assistant"), prompt)
    return Shape(prompt=prompt, answer=_ended(reply, answer), columns=(*columns, answer))


def _pair(row: Mapping[str, Any], question: str | None) -> Shape:
    sides = {name: _said(row[name], name, "assistant") for name in ("chosen", "rejected")}
    columns = ["chosen", "rejected"]
    if question is not None:
        columns.append(question)
        prompt = _said(row[question], question, "user")
    else:
        prompt = _common(sides["chosen"], sides["rejected"])
    system = _system(row)
    if system:
        columns.append("system")
        prompt = _with_system(system, prompt)
    chosen, rejected = (_ended(_without_prompt(side, prompt), name) for name, side in sides.items())
    margin = _margin(row.get("margin"))
    if margin is not None:
        columns.append("margin")
    return Shape(prompt=prompt, chosen=chosen, rejected=rejected, margin=margin, columns=tuple(columns))


def _common(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> tuple[Message, ...]:
    """The prompt that both sides begin with, each keeping at least its last turn."""
    longest = min(len(chosen), len(rejected)) - 1
    same = 0
    while same < longest and chosen[same] == rejected[same]:
        same += 1
    if same == 0:
        raise BadRow("no_prompt", "chosen and rejected share no first turn, and there is no column prompt: add one")
    return chosen[:same]


def _without_prompt(side: tuple[Message, ...], prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The side without the turns of the prompt, which some data sets repeat there."""
    for start in (prompt, tuple(m for m in prompt if m.role != "system")):
        if start and side[: len(start)] == start:
            return side[len(start) :]
    return side


def _ended(side: tuple[Message, ...], column: str) -> tuple[Message, ...]:
    if not side or side[-1].role != "assistant":
        found = f"ends with a turn of {side[-1].role!r}" if side else "has no turn after the prompt"
        raise BadRow("no_answer", f"column {column!r} {found}; it must end with the assistant's answer")
    return side


def _said(value: Any, column: str, role: str) -> tuple[Message, ...]:
    """Plain text is one turn of `role`, a transcript is cut into its turns, a list is read turn by turn."""
    if isinstance(value, str) and not value.lstrip().startswith("[{"):
        if value.startswith(HUMAN):
            return _transcript(value, column)
        return (Message(role, _text(value, column)),)
    if not isinstance(value, str | list):
        raise BadRow("wrong_type", f"column {column!r}: found {kind_of(value)}, wanted text or a list of turns")
    return _turns(value, column)


def _transcript(text: str, column: str) -> tuple[Message, ...]:
    turns: list[Message] = []
    for part in text.split(HUMAN)[1:]:
        asked, *replies = part.split(ASSISTANT)
        turns.append(Message("user", asked.strip()))
        turns += [Message("assistant", reply.strip()) for reply in replies]
    said = tuple(turn for turn in turns if turn.content)
    if not said:
        raise BadRow("empty_text", f"column {column!r} is a transcript in which nobody says anything")
    return said


def _turns(value: Any, column: str) -> tuple[Message, ...]:
    if isinstance(value, str):  # CSV has no lists
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise BadRow("wrong_type", f"column {column!r}: found text, wanted a list of turns ({error.msg})") from None
    if not isinstance(value, list):
        raise BadRow("wrong_type", f"column {column!r}: found {kind_of(value)}, wanted a list of turns")
    if not value:
        raise BadRow("empty_conversation", f"column {column!r}: the list of turns is empty")
    return tuple(_turn(item, f"{column}[{number}]") for number, item in enumerate(value))


def _turn(item: Any, column: str) -> Message:
    if not isinstance(item, dict):
        raise BadRow("wrong_type", f"column {column!r}: found {kind_of(item)}, wanted an object with role and content")
    role_key, text_key = ("from", "value") if "from" in item else ("role", "content")
    missing = [key for key in (role_key, text_key) if item.get(key) is None]
    if missing:
        keys = ", ".join(item)
        raise BadRow("missing_column", f"column {column!r} has no {missing[0]!r}; it has {keys}")
    role = item[role_key]
    if not isinstance(role, str):
        raise BadRow("wrong_type", f"column '{column}.{role_key}': found {kind_of(role)}, wanted text")
    train = _flag(item.get("train", True), f"{column}.train")
    role = ROLES.get(role.lower(), role)
    return Message(role, _text(item[text_key], f"{column}.{text_key}"), train)


def _flag(value: Any, column: str) -> bool:
    """Whether a turn is trained on: unless it says no, it is. CSV has no booleans, so text will do."""
    known = {"none": True, "true": True, "1": True, "false": False, "0": False}
    found = known.get(str(value).lower())
    if found is None:
        raise BadRow("wrong_type", f"column {column!r}: found {value!r}, wanted true or false")
    return found


def _margin(value: Any) -> float | None:
    """A number, or text that is one, as in CSV; an empty cell is none."""
    if value is None or value == "":
        return None
    wrong = BadRow("wrong_type", f"column 'margin': found {value!r}, wanted a number; leave it empty or rename it")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wrong
    try:
        found = float(value)
    except (ValueError, OverflowError):
        raise wrong from None
    if not math.isfinite(found):
        raise wrong
    return found


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise BadRow("wrong_type", f"column {column!r}: found {kind_of(value)}, wanted text")
    if not value.strip():
        raise BadRow("empty_text", f"column {column!r} is empty")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise BadRow("invalid_utf8", f"column {column!r} holds half a surrogate pair, which is no text")
    return value


def _system(row: Mapping[str, Any]) -> str:
    value = row.get("system")
    return value if isinstance(value, str) and value.strip() else ""


def _with_system(system: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if not system or messages[0].role == "system":
        return messages
    return (Message("system", system), *messages)
