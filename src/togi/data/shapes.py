"""The common row formats. The record kind that a stage needs decides which columns of a row are read.

messages | conversations (sharegpt) | prompt + completion, also with a label | prompt + chosen + rejected, also with the
prompt inside both sides | instruction + input + output (alpaca) | question or prompt alone | turns | text.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from togi.core.records import TOOLS, led_by_system
from togi.data.question_files import CHOICES, NAME, TURNS, answer_turns, first_turn
from togi.data.sides import Turns, after_prompt, common_prompt, ended, occurs, same, split_answer
from togi.data.turns import flag, objects, role_of, said, text_of, turns
from togi.data.values import BadRow, absent, blank, kind_of, number, plain

CONVERSATIONS = ("messages", "conversations", "conversation")
QUESTIONS = ("prompt", "question", "instruction", "query")
ANSWERS = ("completion", "answer", "output", "response")
SYSTEMS = ("system", "system_prompt")
LABELS = ("label", "kto_tag")
SPOKEN = (*CONVERSATIONS, *QUESTIONS, *ANSWERS, "chosen", "rejected", "text")
NEEDS = {
    "prompts": "messages, or prompt, question or instruction, or turns",
    "chats": "messages that end with the assistant, or prompt and completion, or instruction and output",
    "pairs": "chosen and rejected, with or without prompt, or prompt, completion and label",
    "documents": "text, or question_id and choices (reference answers)",
    "samples": "prompt and completion (also model, reference, scores), or messages that end with the assistant",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A row, parsed as one kind of record, and the columns that were read. Absent parts are None.

    `label` marks a row of a labelled set, whose answer is good or bad; two such rows make a pair. `model` and `scores`
    are those of a sample.
    """

    prompt: Turns = ()
    answer: Turns | None = None
    reference: str | None = None
    chosen: Turns | None = None
    rejected: Turns | None = None
    margin: float | None = None
    label: bool | None = None
    text: str | None = None
    model: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    columns: tuple[str, ...] = ()


@dataclass(slots=True)
class Columns:
    """A row during parsing: `named` are the columns under `columns` in the recipe, `used` those already read."""

    row: Mapping[str, Any]
    named: Sequence[str] = ()
    used: list[str] = field(default_factory=list)

    def has(self, *names: str) -> bool:
        return not any(absent(self.row.get(name)) for name in names)

    def pick(self, names: Sequence[str], what: str) -> str | None:
        """The column among `names` that the row has; a column that the recipe names takes precedence.

        Raises BadRow if two of them differ, because either could be meant.
        """
        found = [name for name in names if self.has(name)]
        found = [name for name in found if name in self.named] or found
        found = [name for name in found if not blank(self.row[name])] or found
        differ = [name for name in found if _bare(self.row[name]) != _bare(self.row[found[0]])]
        if differ:
            raise ambiguous(found[0], differ[0], what)
        return found[0] if found else None

    def prefers(self, some: Sequence[str], others: Sequence[str]) -> bool:
        """Whether the recipe names one of `some` and none of `others`."""
        return any(name in self.named for name in some) and not any(name in self.named for name in others)

    def take(self, *names: str) -> Any:
        """Marks columns as read, and returns the value of the first."""
        self.used += [name for name in names if name not in self.used]
        return self.row[names[0]]


def ambiguous(one: str, other: str, what: str) -> BadRow:
    """The error for two columns that could both be `what` and differ."""
    return BadRow(
        "ambiguous_columns",
        f"columns {one!r} and {other!r} could both be {what}, and differ: choose one with "
        f"`columns: {{{one}: {one}}}` or `columns: {{{other}: {other}}}`",
    )


def parse_row(row: Mapping[str, Any], kind: str, named: Sequence[str] = ()) -> Shape | None:
    """Parses a row as a record of `kind`; None if it lacks the columns.

    Raises BadRow if a column's value does not fit its name, or if two columns could be meant.
    """
    return _READERS[kind](Columns(row, named))


def fitting(row: Mapping[str, Any], named: Sequence[str] = ()) -> list[str]:
    """The kinds of records that a row could become."""

    def fits(kind: str) -> bool:
        try:
            return parse_row(row, kind, named) is not None
        except BadRow:
            return False

    return [kind for kind in NEEDS if fits(kind)]


# --- one reader for each kind -----------------------------------------------------------------------------------------


def _document(cols: Columns) -> Shape | None:
    if cols.has("text"):
        return Shape(text=text_of(cols.take("text"), "text"), columns=("text",))
    answers = answer_turns(cols.row[CHOICES]) if cols.has(NAME, CHOICES) else None
    return Shape(text="\n\n".join(answers)) if answers else None


def _chat(cols: Columns) -> Shape | None:
    """A chat. Raises BadRow for an answer with a false label, which must not be trained on."""
    shape = _spoken(cols)
    if shape is None or shape.answer is None:
        return None
    label = _label(cols)
    if label is False:
        raise BadRow(
            "labelled_bad",
            "its label is false, so its answer must not be trained on: use the data set as pairs, or ignore the label "
            "with `columns: {my_label: label}`",
        )
    prompt, answer = shape.prompt, shape.answer
    if not any(m.role != "assistant" for m in (*prompt, *answer)):
        raise BadRow("no_prompt", "only the assistant has turns: there is no question")
    return _masked(cols, _equipped(cols, replace(shape, columns=tuple(cols.used))))


def _prompt(cols: Columns) -> Shape | None:
    talk, asks = _talk(cols), cols.pick(QUESTIONS, "the question")
    own: Turns = ()
    if talk is not None and not cols.prefers(QUESTIONS, CONVERSATIONS):
        prompt, own = _conversation(cols, talk)
        if asks is not None and talk not in cols.named:
            _check_known(cols, asks, talk, prompt)
    elif cols.has("chosen", "rejected"):
        prompt = _sides(cols, asks)[0]
    elif asks is not None:
        prompt, own = split_answer(_question(cols, asks))
    elif cols.has(TURNS):
        prompt = _with_system(cols, first_turn(cols.row[TURNS], cols.take))
    else:
        return None
    if not any(m.role == "user" for m in prompt):
        return None
    reference = _reference(cols, own, talk)
    return _equipped(cols, Shape(prompt=prompt, reference=reference, columns=tuple(cols.used)))


def _pair(cols: Columns) -> Shape | None:
    if cols.has("chosen", "rejected"):
        asks = cols.pick(QUESTIONS, "the question")
        prompt, chosen, rejected = _sides(cols, asks)
        margin = number(cols.row.get("margin"), "margin")
        if margin is not None:
            cols.take("margin")
        return _equipped(
            cols,
            Shape(prompt=prompt, chosen=chosen, rejected=rejected, margin=margin, columns=tuple(cols.used)),
        )
    shape, label = _spoken(cols), _label(cols)
    if shape is None or shape.answer is None or label is None:
        return None
    return _equipped(cols, replace(shape, label=label, columns=tuple(cols.used)))


def _sample(cols: Columns) -> Shape | None:
    """An answer to a prompt; optionally with the name of its model, scores by name and a reference answer."""
    shape = _spoken(cols)
    if shape is None or not shape.answer:
        return None
    if len(shape.answer) > 1:
        raise BadRow("wrong_shape", "the assistant has several turns in a row at the end: a sample is one answer")
    if not any(m.role == "user" for m in shape.prompt):
        raise BadRow("no_prompt", "there is no user turn, so there is no question")
    model = text_of(cols.take("model"), "model") if cols.has("model") else None
    reference = text_of(cols.take("reference"), "reference") if cols.has("reference") else None
    scores = _scores(cols.take("scores")) if cols.has("scores") else {}
    found = replace(shape, model=model, reference=reference, scores=scores, columns=tuple(cols.used))
    return _equipped(cols, found)


def _scores(value: Any) -> dict[str, float]:
    """Scores by name. Raises BadRow for anything but an object of numbers."""
    if not isinstance(value, dict):
        raise BadRow("wrong_type", f"column 'scores': found {kind_of(value)}, wanted an object of numbers by name")
    found = {str(name): number(score, "scores") for name, score in value.items()}
    return {name: score for name, score in found.items() if score is not None}


_READERS: dict[str, Callable[[Columns], Shape | None]] = {
    "prompts": _prompt,
    "chats": _chat,
    "pairs": _pair,
    "documents": _document,
    "samples": _sample,
}


# --- conversations ----------------------------------------------------------------------------------------------------


def _spoken(cols: Columns) -> Shape | None:
    """A prompt and its answer: from a conversation, or from a question and an answer. If a row has both, they must
    agree."""
    talk = _talk(cols)
    if talk is None or cols.prefers((*QUESTIONS, *ANSWERS), CONVERSATIONS):
        return _asked(cols)
    prompt, answer = _conversation(cols, talk)
    alone = talk in cols.named
    if answer and not alone:
        _check_same(cols, talk, (*prompt, *answer))
    if answer or alone:
        return Shape(prompt=prompt, answer=answer or None)
    asks, reply = cols.pick(QUESTIONS, "the question"), cols.pick(ANSWERS, "the answer")
    if asks is not None:
        _check_known(cols, asks, talk, prompt)
    if reply is None:
        return Shape(prompt=prompt)
    prompt, answer = after_prompt(prompt, said(cols.take(reply), reply, "assistant"), reply, talk)
    return Shape(prompt=prompt, answer=ended(answer, reply))


def _asked(cols: Columns) -> Shape | None:
    asks, reply = cols.pick(QUESTIONS, "the question"), cols.pick(ANSWERS, "the answer")
    if asks is None:
        return None
    prompt = _question(cols, asks)
    if reply is None:
        return Shape(prompt=prompt)
    prompt, answer = after_prompt(prompt, said(cols.take(reply), reply, "assistant"), reply, asks)
    return Shape(prompt=prompt, answer=ended(answer, reply))


def _conversation(cols: Columns, column: str) -> tuple[Turns, Turns]:
    return split_answer(_with_system(cols, turns(cols.take(column), column)))


def _question(cols: Columns, column: str) -> Turns:
    return _with_system(cols, _question_alone(cols, column))


def _question_alone(cols: Columns, column: str) -> Turns:
    """What the user asks, without a system turn; alpaca's `input` is a part of it."""
    prompt = said(cols.take(column), column, "user")
    given = cols.row.get("input")
    if column == "instruction" and isinstance(given, str):
        cols.take("input")
        if given.strip():
            return (*prompt[:-1], replace(prompt[-1], content=f"{prompt[-1].content}\n\n{given}"))
    return prompt


def _talk(cols: Columns) -> str | None:
    """The column of the conversation. A row may have two, if they agree."""
    found = [name for name in CONVERSATIONS if cols.has(name) and cols.row[name]]
    found = [name for name in found if name in cols.named] or found
    for other in found[1:]:
        one, two = turns(cols.row[found[0]], found[0]), turns(cols.row[other], other)
        if not same(one, two):
            raise ambiguous(found[0], other, "the conversation")
        cols.take(other)
    return found[0] if found else cols.pick(CONVERSATIONS, "the conversation")


def _with_system(cols: Columns, messages: Turns) -> Turns:
    column = cols.pick([name for name in SYSTEMS if isinstance(cols.row.get(name), str)], "the system prompt")
    if column is None or blank(cols.row[column]):
        return messages
    if messages[0].role != "system":
        return led_by_system(cols.take(column), messages)
    if messages[0].content.strip() != cols.row[column].strip():
        raise BadRow("ambiguous_columns", f"column {column!r} and the conversation's own system turn differ: keep one")
    cols.take(column)
    return messages


def _check_known(cols: Columns, asks: str, talk: str, messages: Turns) -> None:
    """Raises BadRow if the question's column has text that the conversation lacks."""
    if not occurs(_question_alone(cols, asks), messages):
        raise ambiguous(talk, asks, "the prompt")


def _check_same(cols: Columns, talk: str, messages: Turns) -> None:
    """Raises BadRow if the row has a question and an answer that its conversation lacks."""
    asks, reply = cols.pick(QUESTIONS, "the question"), cols.pick(ANSWERS, "the answer")
    if asks is None or reply is None or not isinstance(cols.row[reply], str | list) or blank(cols.row[reply]):
        return
    answer = said(cols.take(reply), reply, "assistant")
    if not occurs(_question_alone(cols, asks), messages) or not occurs(answer, messages):
        raise ambiguous(talk, reply, "the answer")


# --- pairs ------------------------------------------------------------------------------------------------------------


def _sides(cols: Columns, asks: str | None) -> tuple[Turns, Turns, Turns]:
    sides = {name: ended(said(cols.take(name), name, "assistant"), name) for name in ("chosen", "rejected")}
    prompt = () if asks is None else _question(cols, asks)
    if asks is None:
        sides = {
            name: side if side[0].role == "assistant" else _with_system(cols, side) for name, side in sides.items()
        }
    cut = {name: after_prompt(prompt, side, name, asks or "") for name, side in sides.items()}
    known = {name: found for name, (found, _) in cut.items()}
    fuller = max(known.values(), key=len)  # a side with the answer alone has the prompt of the column
    for name, side in sides.items():
        if side[0].role == "assistant" and occurs(known[name], fuller):
            cut[name] = (fuller, cut[name][1])
    prompt, chosen, rejected = common_prompt(cut["chosen"], cut["rejected"])
    return prompt, ended(chosen, "chosen"), ended(rejected, "rejected")


def _label(cols: Columns) -> bool | None:
    """Whether the answer is good, in a labelled set. None for a label that is neither true nor false, since it has
    another meaning."""
    column = cols.pick(LABELS, "the label")
    if column is None or str(cols.row[column]).strip().lower() not in ("true", "false", "1", "0", "1.0", "0.0"):
        return None
    return flag(cols.take(column), column)


# --- additions to a conversation --------------------------------------------------------------------------------------


def _reference(cols: Columns, own: Turns, talk: str | None) -> str | None:
    """The reference answer of a prompt, as text; the column may be of any type. None if a label marks the answer as
    bad."""
    said_last = "\n\n".join(m.content for m in own) or None
    reply = cols.pick(ANSWERS, "the answer")
    if reply is None or blank(cols.row[reply]) or (talk in cols.named and reply not in cols.named):
        return said_last if _label(cols) is not False else None
    if _label(cols) is False:
        return None
    given = _as_text(cols.take(reply), reply)
    if said_last is not None and given.strip() != said_last.strip() and reply not in cols.named:
        raise ambiguous(talk or "prompt", reply, "the answer")
    return given


def _as_text(value: Any, column: str) -> str:
    """A value as text: turns without their roles, other values as JSON."""
    if isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(v, dict) for v in value)):
        try:
            return "\n\n".join(m.content for m in split_answer(said(value, column, "assistant"))[1]) or str(value)
        except BadRow:
            pass
    return value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)


def _equipped(cols: Columns, shape: Shape) -> Shape:
    """Adds the available tools to the first message. Ignores a `tools` column that is not a list of objects."""
    tools = objects(cols.row.get(TOOLS), TOOLS)
    if not tools:
        return shape
    cols.take(TOOLS)
    whole = (*shape.prompt, *(shape.answer or ()))
    first = replace(whole[0], extra={**whole[0].extra, TOOLS: tools})
    columns = tuple(cols.used)
    if shape.prompt:
        return replace(shape, prompt=(first, *shape.prompt[1:]), columns=columns)
    return replace(shape, answer=(first, *whole[1:]), columns=columns)


def _masked(cols: Columns, shape: Shape) -> Shape:
    """Excludes the turns of the role in column `mask` from the loss, as Daring-Anteater does."""
    if not cols.has("mask"):
        return shape
    role = cols.take("mask")
    if not isinstance(role, str) or role_of(role) not in ("user", "assistant", "system", "tool"):
        raise BadRow(
            "wrong_type",
            f"column 'mask': found {kind_of(role) if not isinstance(role, str) else repr(role)}, wanted the role whose "
            "turns carry no loss; ignore any other mask with `columns: {my_mask: mask}`",
        )

    def out(messages: Turns) -> Turns:
        return tuple(replace(m, train=m.train and m.role != role_of(role)) for m in messages)

    return replace(shape, prompt=out(shape.prompt), answer=out(shape.answer or ()), columns=tuple(cols.used))


def _bare(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value
