"""The dialogue of a chat in the terminal: line editing, history, commands that begin with /, and Ctrl-C to stop an
answer."""

import importlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from togi.core.errors import InputError
from togi.core.files import append_line
from togi.core.records import Message, Prompt, SamplingParams
from togi.core.terminal import say

HELP = """\
/help           show this
/reset          begin a new conversation
/system [TEXT]  show the system prompt, or set it and start again; `/system none` removes it
/retry          answer the last question once more, with another seed
/save [FILE]    append the conversation to FILE (default chat.jsonl) as one row of messages
/quit           end the chat, as Ctrl-D does
Ctrl-C stops an answer, or drops the line that you are typing. To send a message that begins with /, type //."""
LEAVE = ("/quit", "/exit")
HISTORY = "chat_history"
LONGEST_HISTORY = 1000  # lines


@contextmanager
def line_editing(folder: Path) -> Iterator[None]:
    """Lets `input` edit lines and remember them in `folder`/chat_history; without the readline library, lines are
    plain."""
    try:
        readline: Any = importlib.import_module("readline")
    except ImportError:
        yield
        return
    path = folder / HISTORY
    with suppress(OSError):  # none yet, or not readable
        readline.read_history_file(path)
    readline.set_history_length(LONGEST_HISTORY)
    try:
        yield
    finally:
        with suppress(OSError):
            readline.write_history_file(path)


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether Ctrl-C was pressed in the block. A second Ctrl-C ends the program as
    usual."""
    pressed: list[int] = []
    previous = signal.getsignal(signal.SIGINT)

    def press(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, previous)


class Dropped(Exception):
    """Ctrl-C was pressed while a line was typed."""


@contextmanager
def droppable(allowed: bool) -> Iterator[None]:
    """Ctrl-C in the block raises Dropped, if that is allowed; otherwise it ends the program as usual."""

    def press(number: int, frame: Any) -> None:
        raise Dropped

    previous = signal.getsignal(signal.SIGINT)
    if allowed:
        signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def lines() -> Iterator[str]:
    """The lines of standard input, without blank ones, up to its end or a word of LEAVE. At a terminal, Ctrl-C drops
    the line that is being typed; a second one in a row ends the program as usual."""
    typed, dropped = sys.stdin.isatty(), False
    while True:
        if typed:
            say()
        try:
            with droppable(typed and not dropped):
                line = input("> " if typed else "").strip()
        except EOFError:
            return
        except Dropped:
            dropped = True
            say("\n/quit or Ctrl-D ends the chat, as another Ctrl-C does", err=True)
            continue
        dropped = False
        if line in LEAVE:
            return
        if line:
            yield line


class Answers(Protocol):
    """Streams an answer in pieces of text; closing the stream early cancels the answer."""

    def stream(self, prompt: Prompt, params: SamplingParams) -> Iterator[str]: ...


@dataclass(slots=True)
class Conversation:
    """The messages so far, and how the model is asked."""

    answers: Answers
    params: SamplingParams
    system: str | None
    said: list[Message] = field(default_factory=list)
    tries: int = 0  # number of answers to the last question; each gets its own seed

    def ask(self, question: str, show: bool) -> str:
        """Answers `question`, and remembers both. If Ctrl-C stops an answer, the text so far is kept.

        Raises InputError for a conversation that does not fit the model's template or context; nothing is remembered
        then.
        """
        asked = Message("user", question)
        before = [Message("system", self.system)] if self.system else []
        messages = (*before, *self.said, asked)
        params = replace(self.params, seed=self.params.seed + self.tries)
        pieces: list[str] = []
        with stoppable() as pressed:
            for piece in self.answers.stream(Prompt(id=f"turn-{len(messages) - 1}", messages=messages), params):
                pieces.append(piece)
                if show:
                    say(piece, nl=False)
                if pressed():
                    break
        if show:
            say(" [stopped]" if pressed() else "")
        answer = "".join(pieces).strip()
        self.said += [asked, Message("assistant", answer)]
        return answer

    def turn(self, line: str) -> None:
        """Executes a line: a command or a question. Errors are printed, and the conversation continues."""
        command = line.startswith("/") and not line.startswith("//")
        try:
            if command:
                self._command(*line[1:].partition(" ")[::2])
            else:
                self.tries = 0
                self.ask(line.removeprefix("/") if line.startswith("//") else line, show=True)
        except (InputError, OSError) as error:
            asked = self.said and (not command or line == "/retry")
            reset = "/reset begins a new conversation, " if asked else ""
            say(f"togi: {error}; {reset}/help shows all commands", err=True)

    def _command(self, name: str, rest: str) -> None:
        known = {"help": self._help, "reset": self._reset, "system": self._system}
        known |= {"save": self._save, "retry": self._retry}
        if name not in known:
            found = ", ".join(f"/{each}" for each in (*known, "quit"))
            raise InputError(f"there is no command /{name}; there are: {found}. To send it as a message, type //{name}")
        known[name](rest.strip())

    def _help(self, _: str) -> None:
        say(HELP, err=True)

    def _reset(self, _: str) -> None:
        self.said, self.tries = [], 0
        say("a new conversation", err=True)

    def _system(self, text: str) -> None:
        if text:
            self.system = None if text == "none" else text
            self._reset("")
        say(f"system prompt: {self.system or 'none'}", err=True)

    def _save(self, name: str) -> None:
        messages = [Message("system", self.system)] if self.system else []
        rows = [{"role": each.role, "content": each.content} for each in (*messages, *self.said)]
        if not self.said:
            raise InputError("the conversation is empty, so there is nothing to save")
        path = Path(name or "chat.jsonl").expanduser()
        try:
            append_line(path, {"messages": rows})
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}; name another file") from None
        say(f"saved to {path}", err=True)

    def _retry(self, _: str) -> None:
        if not self.said:
            raise InputError("no question was asked yet")
        before = self.said
        self.said, self.tries = before[:-2], self.tries + 1
        try:
            self.ask(before[-2].content, show=True)
        except InputError:
            self.said = before
            raise
