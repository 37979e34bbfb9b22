"""A judge on a server as a policy's reward: samples are graded, failures are not zeros, and a run can be resumed."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from judges import between
from tiny_run import results, togi, write_recipe

from togi.core.codec import read_records

RECIPE = """\
name: tiny
seed: 3
models:
  base: {path: model, template: chatml}
  judge: {url: "URL", model: vowels}
data:
  questions: {path: questions.jsonl}
stages:
  policy:
    type: train.grpo
    init: $base
    prompts: $questions
    steps: 2
    prompts_per_step: 2
    group_size: 4
    sampling: {max_tokens: 12}
    reward:
      terms: [{type: judge, judge: $judge, scale: [0, 12], retries: 0}]
      max_failed_share: 0.9
"""


class Vowels(BaseHTTPRequestHandler):
    """Grades an answer by its number of vowels, and refuses to grade one without vowels."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send({"object": "list", "data": [{"id": "vowels", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = between(body["messages"][-1]["content"], "Answer", "End of the answer")
        grade = sum(character in "aeiou" for character in answer)
        text = f"Rating: [[{grade}]]" if grade else "I cannot grade this."
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
        self.send({"id": "x", "object": "chat.completion", "model": "vowels", "choices": [choice], "usage": usage})

    def send(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


@pytest.fixture
def url() -> Iterator[str]:
    server = Server(("127.0.0.1", 0), Vowels)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_grades_are_rewards_and_what_gives_none_is_a_failure(tmp_path: Path, url: str) -> None:
    recipe = write_recipe(tmp_path, RECIPE.replace("URL", url))
    home = tmp_path / "home"
    ended = togi(home, "run", str(recipe), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    (folder,) = (home / "store").glob("train.grpo-*")
    samples = read_records(folder / "output" / "samples.parquet")[1]
    assert len(samples) == 16
    for sample in samples:
        vowels = sum(character in "aeiou" for character in sample.text.partition("<|im_end|>")[0])
        assert sample.scores.get("judge") == (float(vowels) if vowels else None)
    assert any(sample.scores.get("judge") for sample in samples)
    assert any(sample.scores.get("judge") is None for sample in samples)
    first = results(home)
    assert togi(home, "run", str(recipe), "--threads", "1", "--redo", "policy").returncode == 0
    assert results(home) == first


def test_plan_counts_what_the_judge_is_asked(tmp_path: Path, url: str) -> None:
    recipe = write_recipe(tmp_path, RECIPE.replace("URL", url))
    ended = togi(tmp_path / "home", "plan", str(recipe), "--json")
    (cost,) = [each["estimate"] for each in json.loads(ended.stdout) if each["stage"] == "policy"]
    assert cost["calls"] == 2 * 2 * 4, ended.stdout  # steps, prompts and samples
    assert cost["read"] > 16 * 12  # each request contains an answer of 12 tokens, its prompt and the judge's own prompt
