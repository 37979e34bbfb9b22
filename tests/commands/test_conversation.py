"""A conversation at a terminal: commands, an answer stopped by Ctrl-C, and the history of lines."""

import importlib
import io
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from togi.commands.conversation import HELP, HISTORY, Conversation, line_editing, lines
from togi.core.errors import InputError
from togi.core.records import Prompt, SamplingParams


@dataclass
class Parrot:
    """Answers with the last question, word by word; presses Ctrl-C after `stop` words."""

    stop: int = 0
    heard: list[tuple[list[str], int]] = field(default_factory=list)
    left: int = 0

    def stream(self, prompt: Prompt, params: SamplingParams) -> Iterator[str]:
        self.heard.append(([f"{m.role}: {m.content}" for m in prompt.messages], params.seed))
        try:
            for number, word in enumerate(prompt.messages[-1].content.split(), 1):
                if number == self.stop:
                    os.kill(os.getpid(), signal.SIGINT)
                if word == "long":
                    raise InputError("the conversation has more tokens than the context")
                yield f"{word} "
        finally:
            self.left += 1


def talk(parrot: Parrot, system: str | None = None) -> Conversation:
    return Conversation(parrot, SamplingParams(max_tokens=8, seed=5), system)


def test_history_grows_and_commands_change_it(capsys):
    parrot = Parrot()
    chat = talk(parrot, "Be brief.")
    for line in ("one", "two", "/reset", "three", "/system Rhyme.", "four", "/system none", "//five"):
        chat.turn(line)
    assert [heard for heard, _ in parrot.heard] == [
        ["system: Be brief.", "user: one"],
        ["system: Be brief.", "user: one", "assistant: one", "user: two"],
        ["system: Be brief.", "user: three"],
        ["system: Rhyme.", "user: four"],
        ["user: /five"],
    ]
    chat.turn("/system")
    assert capsys.readouterr().err.endswith("system prompt: none\n")


def test_retry_asks_the_same_with_another_seed(capsys):
    parrot = Parrot()
    chat = talk(parrot)
    for line in ("one", "/retry", "/retry", "two"):
        chat.turn(line)
    assert parrot.heard[:3] == [(["user: one"], 5), (["user: one"], 6), (["user: one"], 7)]
    assert parrot.heard[3] == (["user: one", "assistant: one", "user: two"], 5)


def test_a_conversation_is_saved_as_a_row_that_can_be_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chat = talk(Parrot(), "Be brief.")
    for line in ("one", "/save", "/save other.jsonl", "two", "/save"):
        chat.turn(line)
    rows = [json.loads(line)["messages"] for line in Path("chat.jsonl").read_text().splitlines()]
    assert [[m["role"] for m in row] for row in rows] == [
        ["system", "user", "assistant"],
        ["system"] + ["user", "assistant"] * 2,
    ]
    assert Path("other.jsonl").exists()


def test_ctrl_c_stops_the_answer_alone(capsys):
    before = signal.getsignal(signal.SIGINT)
    parrot = Parrot(stop=2)
    chat = talk(parrot)
    chat.turn("one two three four")
    assert capsys.readouterr().out == "one two  [stopped]\n" and parrot.left == 1
    assert chat.said[-1].content == "one two" and signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/nope", "there is no command /nope; there are: /help"),
        ("/retry", "no question"),
        ("/save", "the conversation is empty, so there is nothing to save; /help shows all commands\n"),
    ],
)
def test_what_cannot_be_done_is_told_and_the_conversation_goes_on(capsys, line, told):
    chat = talk(Parrot())
    chat.turn(line)
    assert told in capsys.readouterr().err
    chat.turn("one")
    chat.turn("a long one")
    assert "more tokens than the context" in capsys.readouterr().err and len(chat.said) == 2


def test_a_file_that_cannot_be_written_is_told_in_plain_words(tmp_path, capsys):
    chat = talk(Parrot())
    chat.turn("one")
    chat.turn(f"/save {tmp_path / 'none' / 'x.jsonl'}")
    said = capsys.readouterr().err
    assert "x.jsonl cannot be written: No such file or directory; name another file; /help" in said
    assert "/reset" not in said and "Errno" not in said


def test_blank_lines_of_a_file_end_no_conversation(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\n  \ntwo\n/quit\nthree\n"))
    assert list(lines()) == ["one", "two"]


class Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_ctrl_c_drops_a_line_and_a_second_one_ends_the_program(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Keyboard())
    typed = iter(["^C", "", "one", "^C", "^C"])

    def key(_: str) -> str:
        if (line := next(typed)) == "^C":
            os.kill(os.getpid(), signal.SIGINT)
        return line

    monkeypatch.setattr("builtins.input", key)
    before, spoken = signal.signal(signal.SIGINT, signal.default_int_handler), lines()  # as in a terminal
    try:
        assert next(spoken) == "one" and "/quit or Ctrl-D ends the chat" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            next(spoken)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_help_names_every_command(capsys):
    talk(Parrot()).turn("/help")
    assert capsys.readouterr().err == f"{HELP}\n"


def test_lines_are_remembered(tmp_path):
    readline = importlib.import_module("readline")
    readline.clear_history()
    with line_editing(tmp_path):
        readline.add_history("Why is the sky blue?")
    readline.clear_history()
    assert "sky" in (tmp_path / HISTORY).read_text()
    with line_editing(tmp_path):
        assert readline.get_current_history_length() == 1
    readline.clear_history()
