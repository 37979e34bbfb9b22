"""`togi serve` as a user runs it: a process that starts, answers and ends on a signal."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from served import ask
from tiny_models import loaded
from tiny_run import environment, tiny_model, togi

from togi.core.sampling import Recommended
from togi.model.save import About, recommend, save_model
from togi.text.safety import SAFETY

KEY = "sk-proj-Ab12Cd34Ef56"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("serve")
    tiny_model(found / "model")
    return found


@contextmanager
def served(
    folder: Path, *arguments: str, told: list[str] | None = None, **more: str
) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """The URL of a server as soon as it reports that it is ready, and its process. `told` gets its lines."""
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
                if told is not None:
                    told.append(line)
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


@pytest.mark.parametrize(
    ("more", "none"), [((), False), (("--updates",), True), (("--updates", "--prefix-mib", "9"), False)]
)
def test_an_engine_of_a_policy_gives_the_same_bits_when_it_is_asked_again(folder, more, none):
    body = {"model": "model", "prompt": [5, 6, 7, 8] * 20, "max_tokens": 1}
    with served(folder, str(folder / "model"), "--template", "chatml", "--threads", "1", *more) as (url, _):
        assert [ask(f"{url}/v1/completions", body)[0] for _ in range(2)] == [200, 200]
        with urllib.request.urlopen(f"{url}/metrics", timeout=60) as found:
            assert ('togi_prompt_tokens_reused{model="model"} 0' in found.read().decode()) == none


def score(folder: Path, *more: str) -> float:
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    with served(folder, f"{folder / 'tiny.yaml'}:reward", "--reward", *more) as (url, _):
        return ask(f"{url}/v1/scores", {"model": "reward", "items": [{"messages": turns}]})[1]["scores"][0]


def test_a_server_computes_in_the_type_that_runs_choose_on_this_machine(finished):
    wide, narrow = score(finished), score(finished, "--dtype", "bfloat16")
    assert wide != narrow
    found = score(finished, "--dtype", "auto")
    (chosen,) = (finished / "home" / "store").glob("arithmetic-*.json")
    assert found == {"float32": wide, "bfloat16": narrow}[json.loads(chosen.read_text())["compute_dtype"]]


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
        (("{model}", "--api-key-env", "NO_SUCH_KEY"), "the environment variable NO_SUCH_KEY is not set, or empty"),
        (("{model}", "--api-key-env", KEY), "(not shown, because it may be a key) is not set, or empty"),
        (("{model}", "--reward", "--system", "Rhyme."), "--system is for language models; a reward model"),
        (("{model}", "--safety-prompt", "en", "--system", "Rhyme."), "--safety-prompt: --system is given"),
        (("{model}", "--system", "training"), "no system prompt of training is stored with model"),
        (("{model}", "--template", "chatml", "--host", "203.0.113.1"), "cannot listen on"),
        (("{model}", "--reward", "--sampling", "vikhr-nemo"), "--sampling is for language models; a reward model"),
        (("{model}", "--reward", "--safety-prompt", "en"), "--safety-prompt is for language models; a reward model"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(folder, arguments, says):
    ended = togi(folder / "home", "serve", *(each.format(model=folder / "model") for each in arguments))
    assert ended.returncode == 2 and says in ended.stderr and "Traceback" not in ended.stderr
    assert KEY not in ended.stderr


def test_recommended_sampling_is_used_and_a_warning_said_once(folder):
    save_model(loaded(max_position_embeddings=1000), folder / "exported")
    recommend(folder / "exported", Recommended.of("vikhr-nemo"))
    with served(folder, str(folder / "exported"), "--safety-prompt", "en") as (url, process):
        assert ask(f"{url}/v1/models")[1]["data"][0]["sampling"]["preset"] == "vikhr-nemo"
        talk = {"model": "exported", "messages": [{"role": "user", "content": "Why?"}]}
        own = {**talk, "messages": [{"role": "system", "content": SAFETY["en"]}, *talk["messages"]]}
        assert ask(f"{url}/tokenize", talk) == ask(f"{url}/tokenize", own)
        body = {**talk, "temperature": 1.2, "max_tokens": 2}
        assert [ask(f"{url}/v1/chat/completions", body)[0] for _ in range(2)] == [200, 200]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0 and process.stderr is not None
        assert process.stderr.read().count("exported: temperature 1.2: the card of vikhr-nemo warns") == 1
    with served(folder, str(folder / "exported"), "--sampling", "none") as (url, _):
        assert "sampling" not in ask(f"{url}/v1/models")[1]["data"][0]


def test_the_system_prompt_of_training_is_told_and_can_be_added(folder):
    save_model(loaded(), folder / "pirate", About(spoken={"system": "Talk like a pirate."}))
    talk = {"model": "pirate", "messages": [{"role": "user", "content": "Why?"}]}

    def started(*more: str) -> tuple[dict[str, str], str, list[int]]:
        lines: list[str] = []
        with served(folder, str(folder / "pirate"), *more, told=lines) as (url, _):
            (about,) = ask(f"{url}/v1/models")[1]["data"]
            known = {name: about[name] for name in ("system", "default_system") if name in about}
            return known, "".join(lines), ask(f"{url}/tokenize", talk)[1]["tokens"]

    known, told, without = started()
    assert known == {"system": "Talk like a pirate."}
    assert "pirate: trained with the system prompt 'Talk like a pirate.'; a conversation without" in told
    known, told, added = started("--system", "training", "--safety-prompt", "en")
    both = f"Talk like a pirate.\n\n{SAFETY['en']}"
    assert known == {"system": both, "default_system": both} and len(added) > len(without)
    assert "pirate: the system prompt of conversations without one: 'Talk like a pirate." in told
