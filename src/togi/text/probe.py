"""Finds the pieces of a Jinja template: the end of an answer, the end of its prompt, the beginning of a turn.

It renders short conversations whose contents are unique words; a piece is the text between two of these words.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from togi.core.errors import InputError, RecipeError
from togi.text.jinja import render_jinja

ASK, ANSWER, MORE, LAST = "8041337", "8041447", "8041557", "8041667"  # digits have no case
PROBES = (  # contents, and whether the generation prompt follows; only the first two are required
    ((ASK,), True),
    ((ASK, ANSWER), False),
    ((ASK,), False),
    ((ASK, ANSWER, MORE), False),
    ((ASK, ANSWER, MORE, LAST), False),
)
NEEDED = 2  # number of required probes
SECONDS = 2  # CPU time limit of the process that renders a template for the first time
PATIENCE = 30  # its wall-clock limit, in seconds, for busy machines
MEMORY = 2**31  # its memory limit, in bytes


class _Stopped(InputError):
    """The process that rendered a template did not finish."""


class Pieces(NamedTuple):
    """The pieces of a Jinja template for `togi.text.template.Template`. `parts`: it reads contents as lists of
    parts."""

    terminator: str
    generation: str
    prefill: str
    closing: str
    missing: str
    turn_starts: tuple[str, ...]
    parts: bool


def find_pieces(
    source: str, specials: Mapping[str, str], known: Sequence[str], date: str, terminator: str | None = None
) -> Pieces:
    """The pieces of a template. `known` are the tokenizer's special tokens; `terminator` is the recipe's, if any.

    Raises InputError if the template fails or takes too long, and RecipeError if it does not end turns.
    """
    refused: list[InputError] = []
    for parts in (False, True):
        try:
            texts = _apart(source, specials, date, parts)
        except _Stopped:
            raise
        except InputError as error:
            refused.append(error)
            continue
        if ASK in texts[1] and ANSWER in texts[1].partition(ASK)[2]:
            return _pieces(texts, _marks(known), terminator, parts)
    if refused:
        raise refused[0]
    raise RecipeError("the chat template does not write the contents of turns: choose another with `template:`")


def _pieces(texts: Sequence[str], marks: re.Pattern[str], terminator: str | None, parts: bool) -> Pieces:
    asked, closed, plain, longer, longest = texts
    history = longest or longer
    closing = closed[closed.rfind(ANSWER) + len(ANSWER) :]
    between = history[history.rfind(ANSWER) + len(ANSWER) : history.rfind(MORE)]
    opening = closed[closed.rfind(ASK) + len(ASK) : closed.rfind(ANSWER)]
    after = asked[asked.rfind(ASK) + len(ASK) :]
    end = terminator or _terminator(closing, between, marks)
    generation = _generation(after, plain[plain.rfind(ASK) + len(ASK) :], marks)
    prefill = after[len(opening) :] if after.startswith(opening) else ""
    starts = (between.partition(end)[2] if end else between, generation.removesuffix(prefill))
    found = (_start(text, marks) for text in starts)
    missing = _missing(closing, between, end)
    return Pieces(end, generation, prefill, closing, missing, tuple(dict.fromkeys(s for s in found if s)), parts)


def _marks(known: Sequence[str]) -> re.Pattern[str]:
    """A pattern that splits a text at special tokens, and at text that looks like one."""
    longest = sorted((token for token in known if len(token.strip()) > 1), key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, longest), r"<[^<>\s]{1,60}>"]))


def _split(text: str, marks: re.Pattern[str]) -> list[str]:
    """The text as special tokens ("marks") and the pieces between them."""
    found, done = [], 0
    for mark in marks.finditer(text):
        found += [text[done : mark.start()], mark[0]]
        done = mark.end()
    return [piece for piece in (*found, text[done:]) if piece]


def _shared(text: str, other: str, marks: re.Pattern[str]) -> str:
    """The whole pieces at the beginning of `text` that `other` begins with too."""
    shared = ""
    for piece in _split(text, marks):
        if not other.startswith(shared + piece):
            break
        shared += piece
    return shared


def _terminator(closing: str, between: str, marks: re.Pattern[str]) -> str:
    """The text that ends every answer; if the last answer ends differently, the text that ends the last one. If the
    template leaves the last answer open, the special token that follows an answer in the history."""
    for text in (_shared(closing, between, marks), closing):
        mark = marks.search(text)
        found = (text[: mark.end()] if mark else text).strip()
        if found:
            return found
    mark = None if closing.strip() else marks.match(between.strip())
    return mark[0] if mark else ""


def _missing(closing: str, between: str, end: str) -> str:
    """What ends the last answer if the template leaves it open: the same as in the history, up to the terminator."""
    if not end or closing.strip():
        return ""
    before, found, _ = between.partition(end)
    return before + end if found and not before.strip() else end


def _generation(after: str, plain: str, marks: re.Pattern[str]) -> str:
    """The text that the generation prompt adds after a question."""
    if after.startswith(plain):
        return after[len(plain) :]
    return after[len(_shared(after, plain, marks)) :]


def _start(text: str, marks: re.Pattern[str]) -> str:
    """The mark at the beginning of a turn, or the whole text, trimmed."""
    text = text.strip()
    mark = marks.match(text)
    return mark[0] if mark else text


# --- rendering for the first time, in a process that may die ----------------------------------------------------------


def _apart(source: str, specials: Mapping[str, str], date: str, parts: bool) -> list[str]:
    """The texts of PROBES, rendered in another process; "" for optional ones that the template rejects."""
    order = json.dumps({"source": source, "specials": dict(specials), "date": date, "parts": parts})
    command = [sys.executable, "-c", "from togi.text.probe import main; main()"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(
            command, input=order.encode(), capture_output=True, timeout=PATIENCE, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        raise _Stopped(f"the chat template takes more than {PATIENCE} s to write a short conversation") from None
    if done.returncode == -signal.SIGXCPU:
        raise _Stopped(f"the chat template takes more than {SECONDS} s of CPU time to write a short conversation")
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise _Stopped(f"the chat template ended the process that rendered it: {''.join(told) or done.returncode}")
    found = json.loads(done.stdout)
    if found[-1][0] is None and len(found) < len(PROBES):
        raise InputError(found[-1][1])
    return [text or "" for text, _ in found]


def main() -> None:
    """Renders PROBES for a request on standard input, within SECONDS of CPU time and MEMORY."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    order = json.loads(sys.stdin.buffer.read())
    found = []
    for place, (contents, generation) in enumerate(PROBES):
        found.append(_tried(order, contents, generation))
        if place < NEEDED and found[-1][0] is None:
            break
    sys.stdout.write(json.dumps(found))


def _tried(order: Mapping[str, Any], contents: Sequence[str], generation: bool) -> tuple[str | None, str]:
    turns = [
        {"role": ("user", "assistant")[k % 2], "content": [{"type": "text", "text": c}] if order["parts"] else c}
        for k, c in enumerate(contents)
    ]
    try:
        return render_jinja(order["source"], turns, order["specials"], generation, date=order["date"]), ""
    except InputError as error:
        return None, str(error)
