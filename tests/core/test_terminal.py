"""Output to the terminal: nothing from data, models or recipes can control it."""

import io
import json
import logging
from pathlib import Path

import pytest
from rich.console import Console

import togi
from togi.core.terminal import PrintableFormatter, json_text, printable, say
from togi.recipe.display import Human

WILD = "\x1b[31mred\x07 \x9b2J \x7f a\u202eb \u2066c \u2028d \ud800 e\r\nf\t\x00"
SHOWN = "\\x1b[31mred\\x07 \\x9b2J \\x7f a\\u202eb \\u2066c \\u2028d \\ud800 e\\r\nf\t\\x00"


def test_control_characters_are_shown_as_escapes():
    assert printable(WILD) == SHOWN


@pytest.mark.parametrize("text", ["", "plain\n\ttext", "研ぎ, Привет, naïve", "👩‍👩‍👧 \u00a0 \u200f\u200b \ufeff"])
def test_plain_text_is_unchanged(text):
    assert printable(text) == text


def test_json_stays_json_with_the_same_value():
    text = json_text({WILD: [WILD, "研ぎ"]})
    assert json.loads(text) == {WILD: [WILD, "研ぎ"]} and "研ぎ" in text
    assert printable(text) == text


def test_what_is_said_is_printable(capsys):
    say(WILD)
    say(Path("a\x1bb"), err=True)
    out, err = capsys.readouterr()
    assert (out, err) == (f"{SHOWN}\n", "a\\x1bb\n")


def test_the_log_is_printable():
    record = logging.LogRecord("togi", logging.INFO, "", 1, "converting %s", ("a\x1bb",), None)
    assert PrintableFormatter().format(record) == "converting a\\x1bb"


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_and_notes_are_printable_and_no_markup(terminal):
    human = Human()
    shown = io.StringIO()
    human.console = Console(file=shown, force_terminal=terminal, soft_wrap=True, color_system=None)
    human.EVERY_SECONDS = 0.0
    human.start("[red]s[/]", "a\x9bb")
    human.event({"event": "log", "message": "[bold]l[/bold] \x1b]0;title\x07"})
    human.event({"event": "alarm", "name": "n\x1b", "message": "[/] \u202e"})
    human.event({"event": "progress", "done": 1, "total": 2, "what": "w\x1b]", "note": "[link]"})
    human.note("[i]\x1bc")
    human.cached("[u]", "k")
    text = shown.getvalue()
    assert "\x1b]" not in text and "\x1bc" not in text and "\x07" not in text and "\x9b" not in text
    for whole in ("[red]s[/] (a\\x9bb)", "[bold]l[/bold] \\x1b]0;title\\x07", "ALARM n\\x1b: [/] \\u202e", "w\\x1b]"):
        assert whole in text
    assert "[i]\\x1bc" in text and "[u] (k) finished earlier" in text and "[link]" in text


def test_nothing_is_printed_another_way():
    root = Path(togi.__file__).parent
    printing = ("click.echo(", " print(", "click.secho(", "markup=True")
    found = [
        f"{path.relative_to(root)}: {call}"
        for path in sorted(root.rglob("*.py"))
        for call in printing
        if call in path.read_text(encoding="utf-8") and path.name != "terminal.py"
    ]
    assert found == []
