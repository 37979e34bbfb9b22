"""A model that the run serves itself answers as the same model does in the stage's own process."""

import json
from pathlib import Path

from tiny_run import QUESTIONS, tiny_model, togi

from togi.core.files import read_object

RECIPE = """\
name: served
models:
  here: {path: model, template: chatml}
  there: {path: model, template: chatml, serve: {engine: togi}, concurrency: 3}
data:
  questions: {path: questions.jsonl}
stages:
  scores:
    {type: evaluate, base: $here, policy: $there, prompts: $questions, max_tokens: 10, temperature: 0, bootstrap: 100}
"""


def test_a_recipe_starts_the_server_of_a_model_asks_it_and_ends_it(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in QUESTIONS))
    (tmp_path / "served.yaml").write_text(RECIPE)
    ended = togi(tmp_path / "home", "run", str(tmp_path / "served.yaml"))
    assert ended.returncode == 0, ended.stderr
    assert "starting service there, which stage scores needs" in ended.stderr and "spent:  there: " in ended.stderr
    rows = read_object(tmp_path / "home" / "runs" / "served" / "scores" / "summary.json")["answers"]
    assert len(rows) == len(QUESTIONS) and all(row["base"] and row["base"] == row["policy"] for row in rows)
    log = tmp_path / "home" / "runs" / "served" / "service-there.log"
    assert "is served at http://127.0.0.1:" in log.read_text()
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _command(path)]
    assert left == []


def _command(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it has ended
