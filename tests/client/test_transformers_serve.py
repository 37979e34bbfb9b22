"""The client against a real server that silently ignores many parameters: `transformers serve`."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_asks import client, endpoint, texts
from tiny import BYTES, tiny_model, tiny_tokenizer

from togi.client.requests import ChatRequest
from togi.core.errors import InputError
from togi.core.records import Message, SamplingParams

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URL of a server, and the name of its model."""
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    (folder / "hub").mkdir()
    model = folder / "model"
    net, tokenizer = tiny_model("llama", vocab_size=BYTES), tiny_tokenizer()
    net.generation_config.do_sample = True
    tokenizer.chat_template = TEMPLATE
    net.save_pretrained(model)
    tokenizer.save_pretrained(model)
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    env = {**os.environ, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 180
        while not is_ready(port):
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()[-2000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", str(model)
    finally:
        process.kill()
        process.wait()


def is_ready(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
    except (urllib.error.URLError, OSError):
        return False
    return True


def ask(text: str, seed: int | None = None, schema: dict | None = None, **params) -> ChatRequest:
    settings = SamplingParams(**{"max_tokens": 8, "temperature": 1.0, **params})
    return ChatRequest(messages=(Message("user", text),), params=settings, seed=seed, schema=schema)


@pytest.mark.slow
def test_what_it_drops_is_emulated_or_told(tmp_path: Path, server: tuple[str, str]) -> None:
    url, model = server
    requests = [ask(f"q{i}", n=3, seed=i, schema={"type": "object"}, stop=("a",)) for i in range(3)]
    with client(tmp_path, endpoint(url, model=model), alarms := []) as asked:
        found = list(asked.ask(requests))
        assert [len(each.choices) for each in found] == [3, 3, 3]
        assert not any("a" in choice.text for each in found for choice in each.choices)
        assert {"endpoint_n", "endpoint_schema"} <= set(alarms)
        assert asked.facts()["protocol"] == "openai"
        again = texts(list(asked.ask(requests)))
    assert again == texts(found)


@pytest.mark.slow
def test_log_probabilities_are_refused(tmp_path: Path, server: tuple[str, str]) -> None:
    url, model = server
    with (
        client(tmp_path, endpoint(url, model=model)) as asked,
        pytest.raises(InputError, match="returns no log-probabilities"),
    ):
        list(asked.ask([ask("q", logprobs=1)]))


@pytest.mark.slow
def test_a_model_that_it_does_not_have(tmp_path: Path, server: tuple[str, str]) -> None:
    url, _ = server
    with client(tmp_path, endpoint(url, model="no/such-model")) as asked, pytest.raises(InputError) as error:
        list(asked.ask([ask("q")]))
    assert "does not serve 'no/such-model'" in str(error.value)
