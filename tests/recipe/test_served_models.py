"""A model served by the run answers exactly as the same model does in the stage's own process."""

import json
from pathlib import Path

import pytest
from tiny_encoders import write_embedder, write_encoder
from tiny_run import QUESTIONS, tiny_model, togi

from togi.core.codec import read_records
from togi.core.files import read_object
from togi.stages.base import RECORDS_FILE

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

NUMBERS = """\
name: served
models:
  e5: {path: e5, kind: embedder, prefix: "query: "}
  e5_served: {path: e5, kind: embedder, prefix: "query: ", serve: {engine: togi}}
  rm: {path: rm, kind: reward}
  rm_served: {path: rm, kind: reward, serve: {engine: togi}}
data:
  answers: {path: answers.jsonl}
stages:
  few: {type: dedup, input: $answers, kind: samples, method: embeddings, threshold: 0.5, embedder: $e5}
  few_served: {type: dedup, input: $answers, kind: samples, method: embeddings, threshold: 0.5, embedder: $e5_served}
  graded: {type: score, samples: $answers, scorer: $rm}
  again: {type: score, samples: $answers, scorer: $rm_served, as: rm}
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


def test_an_embedder_and_an_encoder_that_a_run_serves_give_what_they_give_here(tmp_path: Path) -> None:
    write_embedder(tmp_path / "e5")
    write_encoder(tmp_path / "rm")
    rows = [{"prompt": q, "completion": f"So {i}.", "model": "m"} for i, q in enumerate(QUESTIONS)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "served.yaml").write_text(NUMBERS)
    ended = togi(tmp_path / "home", "run", str(tmp_path / "served.yaml"))
    assert ended.returncode == 0, ended.stderr
    stages = tmp_path / "home" / "runs" / "served"
    here, there = (read_records(stages / name / RECORDS_FILE)[1] for name in ("few", "few_served"))
    assert 0 < len(here) < len(QUESTIONS) and [each.text for each in here] == [each.text for each in there]
    scores = [[each.scores["rm"] for each in read_records(stages / n / RECORDS_FILE)[1]] for n in ("graded", "again")]
    assert len(scores[0]) == len(QUESTIONS) and scores[0] == pytest.approx(scores[1], abs=1e-5)


def _command(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # the process has ended
