"""Recipes against servers by others: vLLM, started by the run, and `transformers serve`."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tiny_run import QUESTIONS, togi
from vllm_here import ARGS, END, PYTHON, needs_vllm, run_beside_vllm, wide_llama

from togi.core.files import read_lines, read_object
from togi.text.template import get_template

pytestmark = pytest.mark.slow
STAGES = """\
data:
  questions: {path: questions.jsonl}
stages:
  scores:
    {type: evaluate, base: $here, policy: $there, prompts: $questions, samples: 2, max_tokens: 10, temperature: T,
     bootstrap: 100}
"""


def write(folder: Path, there: str, temperature: float) -> Path:
    """A recipe that uses a random Llama both locally and on the server `there`."""
    template = get_template("chatml-nobos").to_jinja()
    wide_llama(folder / "model", ends=END, template=template, initializer_range=0.3)  # vLLM ends an answer at `ends`
    (folder / "questions.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in QUESTIONS))
    path = folder / "real.yaml"
    models = f"name: real\nmodels:\n  here: {{path: model}}\n  there: {there}\n"
    path.write_text(models + STAGES.replace("temperature: T", f"temperature: {temperature}"))
    return path


def answers(home: Path) -> list[dict[str, str]]:
    return read_object(home / "runs" / "real" / "scores" / "summary.json")["answers"]


@needs_vllm
def test_vllm_that_the_run_starts_gives_the_greedy_answers_of_the_local_model(tmp_path: Path) -> None:
    serve = f"{{engine: vllm, python: {PYTHON}, args: {json.dumps(ARGS)}, ready_seconds: 500}}"
    path = write(tmp_path, f"{{path: model, serve: {serve}}}", 0.0)
    home = tmp_path / "home"
    run_beside_vllm(path, home, home / "runs" / "real" / "service-there.log")
    rows = answers(home)
    assert len(rows) == len(QUESTIONS) and all(row["base"] and row["base"] == row["policy"] for row in rows)


@contextmanager
def transformers_serve(model: Path, home: Path) -> Iterator[str]:
    """The URL of `transformers serve`, as soon as it answers."""
    (home / "hub").mkdir(parents=True)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(model), "--device", "cpu"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    around = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, env=around, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 300
            while time.monotonic() < end and process.poll() is None:
                with suppress(urllib.error.URLError, OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


def test_what_transformers_serve_drops_silently_is_emulated_or_told(tmp_path: Path) -> None:
    path = write(tmp_path, f"{{url: 'URL', model: '{tmp_path}/model', concurrency: 2}}", 0.7)
    with transformers_serve(tmp_path / "model", tmp_path / "hf") as url:
        path.write_text(path.read_text().replace("URL", url))
        ended = togi(tmp_path / "home", "run", str(path))
    assert ended.returncode == 0, ended.stderr
    rows = answers(tmp_path / "home")
    assert len(rows) == len(QUESTIONS) and all(row["policy"] for row in rows)
    alarms = [each["name"] for each in read_lines(tmp_path / "home" / "runs" / "real" / "scores" / "alarms.jsonl")]
    assert "endpoint_n" in alarms
