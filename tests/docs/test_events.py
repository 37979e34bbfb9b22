"""The events of `togi run --json`: each one, with all its keys, is in the table of the guide."""

import ast
import json
import re
from pathlib import Path
from typing import Any

from places import ROOT

from togi.recipe.display import Closing, JsonLines
from togi.stages.context import Context, Control

INTERNAL = {"crashed"}
"""Events between processes that never reach the output."""


def table() -> dict[str, set[str]]:
    """The keys of each event, by the guide."""
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", guide.partition("| event | keys |")[2].partition("\n\n")[0], re.M)
    return {event: set(re.findall(r"`(\w+)`", keys)) for event, keys in rows}


def literals() -> dict[str, set[str]]:
    """The events that the code makes, as {"event": "...", ...} or event="...", with the keys that stand with them."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "src" / "togi").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            pairs: dict[str, Any] = {}
            if isinstance(node, ast.Dict):
                keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
                pairs = dict(zip(keys, node.values, strict=True))
            elif isinstance(node, ast.Call):
                pairs = {word.arg: word.value for word in node.keywords}
            if isinstance(event := pairs.pop("event", None), ast.Constant):
                found.setdefault(event.value, set()).update(filter(None, pairs))
    return found


def test_every_event_in_the_code_is_in_the_table():
    found = {event: keys for event, keys in literals().items() if event not in INTERNAL}
    found["done"].discard("found")  # of a worker to its parent
    assert found.keys() == table().keys()
    assert {event: keys - table()[event] for event, keys in found.items() if keys - table()[event]} == {}


def test_every_line_has_the_keys_of_the_table(tmp_path: Path, capsys):
    lines = JsonLines()
    context = Context("a", tmp_path, tmp_path, 0, {}, Control(send=lines.event))
    lines.start("a", "select")
    lines.cached("a", "select")
    context.log("one")
    context.progress(1, 2, "rows")
    context.alarm("odd", "it is odd", step=1, value=2.0, threshold=3.0)
    lines.done("a", 1.0)
    lines.note("one")
    lines.closing(Closing(run="r", report="r.html"))
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = {each.pop("event"): each.keys() for each in printed}
    assert told == {event: keys for event, keys in table().items() if event != "failed"}
