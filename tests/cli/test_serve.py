"""`togi serve` as a user runs it: a process that starts, answers and ends on a signal."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from served import ask
from tiny_run import environment, tiny_model, togi


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("serve")
    tiny_model(found / "model")
    return found


@contextmanager
def served(folder: Path, *arguments: str, **more: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """The URL of a server as soon as it reports that it is ready, and its process."""
    command = [sys.executable, "-m", "togi", "serve", *arguments, "--port", "0"]
    with subprocess.Popen(
        command, env=environment(folder / "home", **more), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            line = ""
            while not (found := re.search(r"served at (http://[0-9.:]+)", line)):
                line = process.stderr.readline()
                assert line, "it ended before it was ready"
            yield found[1], process
        finally:
            process.kill()


def test_it_starts_answers_and_ends_by_sigterm(folder):
    given = ("--template", "chatml", "--api-key-env", "SERVE_KEY")
    with served(folder, str(folder / "model"), *given, SERVE_KEY="abc") as (url, process):
        assert ask(f"{url}/health")[1]["status"] == "ok"
        body = {"model": "model", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 5, "seed": 1}
        first = ask(f"{url}/v1/chat/completions", body, authorization="Bearer abc")
        again = ask(f"{url}/v1/chat/completions", body, authorization="Bearer abc")
        assert first[0] == 200 and first[1]["choices"] == again[1]["choices"]
        assert ask(f"{url}/v1/chat/completions", body)[0] == 401
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr is not None and "Traceback" not in process.stderr.read()


def test_a_recipes_reward_model_is_served_by_the_name_of_its_stage(finished):
    recipe = f"{finished / 'tiny.yaml'}:reward"
    with served(finished, recipe, "--reward") as (url, _):
        turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
        found = ask(f"{url}/v1/scores", {"model": "reward", "items": [{"messages": turns}]})[1]
        assert isinstance(found["scores"][0], float)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nothing/at/all",), "is not a model; give a model folder, RECIPE:STAGE, package:NAME"),
        (("{model}", "--api-key-env", "NO_SUCH_KEY"), "--api-key-env NO_SUCH_KEY: there is no such variable"),
        (("{model}", "--template", "chatml", "--host", "203.0.113.1"), "cannot listen on"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(folder, arguments, says):
    ended = togi(folder / "home", "serve", *(each.format(model=folder / "model") for each in arguments))
    assert ended.returncode == 2 and says in ended.stderr and "Traceback" not in ended.stderr
