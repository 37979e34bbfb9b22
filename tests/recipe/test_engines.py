"""Models on servers that sample for a training: which stages may name them, and how the run starts them."""

import json
from pathlib import Path

import pytest
from engine_recipes import engine_recipe
from tiny_run import QUESTIONS, REWARD, tiny_model, togi

from togi.cli.planned import costs
from togi.core.errors import RecipeError
from togi.core.files import read_lines
from togi.recipe.graph import Graph, build
from togi.recipe.model_services import services_of
from togi.recipe.schema import validate
from togi.recipe.source import read_tree

SETTINGS = (
    "engine: {model: $there, tolerance: 0.001}",
    "steps: 2",
    "learning_rate: 1e-3",
    "sampling: {max_tokens: 12}",
    "reward: {terms: [{type: function, file: reward.py, name: vowels}]}",
)
ASKS = "  more: {type: synthesize, model: $there, examples: $questions, count: 4}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model(tmp_path / "model")
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in QUESTIONS))
    (tmp_path / "reward.py").write_text(REWARD)
    return tmp_path


def write(folder: Path, there: str, more: str = "") -> Path:
    path = folder / "r.yaml"
    models = ("base: {path: model, template: chatml}", f"there: {{{there}}}")
    path.write_text(engine_recipe("engines", models, *SETTINGS) + more)
    return path


def graph(folder: Path, there: str, more: str = "") -> Graph:
    return build(validate(read_tree(write(folder, there, more), ())))


@pytest.mark.parametrize(
    ("there", "more", "message"),
    [
        ("path: model, template: chatml", "", r"stages.policy.engine.model: \$there is not on a server"),
        ("url: 'http://127.0.0.1:1/v1', model: m", ASKS, r"stages.more.model: \$there samples for stage policy, which"),
    ],
)
def test_an_engine_is_on_a_server_and_nobody_else_asks_it(folder: Path, there: str, more: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        graph(folder, there, more)


def test_plan_counts_what_the_server_is_asked(folder: Path) -> None:
    there = "url: 'http://127.0.0.1:9/v1', model: base, protocol: vllm, price: {output: 1000000}"
    found = costs(graph(folder, there), folder / "store")["policy"]
    assert found.calls == 2 * 2 and found.money == 2 * 2 * 4 * 12  # one request per group; answers of maximum length


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("vllm, python: /opt/python", ["VLLM_SERVER_DEV_MODE=1", "--logprobs-mode", "processed_logprobs"]),
        ("sglang, python: /opt/python", ["sglang.launch_server"]),
        ("togi", ["--updates"]),
    ],
)
def test_a_server_that_the_run_starts_takes_weights(folder: Path, engine: str, words: list[str]) -> None:
    template = ", template: chatml" if engine == "togi" else ""
    (found,) = services_of(graph(folder, f"path: model{template}, serve: {{engine: {engine}}}"), folder / "store")
    assert found.stages == ("policy",) and [word for word in words if word not in found.command] == []


@pytest.mark.parametrize(
    ("engine", "setting", "words"),
    [
        ("vllm", "publish: transfer", ["--weight-transfer-config", '{"backend": "nccl"}']),
        ("vllm", "sleep: true", ["--enable-sleep-mode"]),
        ("sglang", "sleep: true", ["--enable-memory-saver"]),
    ],
)
def test_a_server_that_the_run_starts_receives_or_sleeps(
    folder: Path, engine: str, setting: str, words: list[str]
) -> None:
    path = write(folder, f"path: model, serve: {{engine: {engine}, python: /opt/python}}")
    path.write_text(path.read_text().replace("tolerance: 0.001", setting))
    (found,) = services_of(build(validate(read_tree(path, ()))), folder / "store")
    assert [word for word in words if word not in found.command] == []


@pytest.mark.parametrize(
    ("there", "engine", "message"),
    [
        ("url: ['http://a/v1', 'http://b/v1'], model: m", "publish: transfer", r"2 urls, but engine.publish: trans"),
        ("url: ['http://a/v1', 'http://b/v1'], model: m", "sleep: true", r"2 urls, but engine.sleep works with one"),
        (
            "path: model, serve: {engine: togi}",
            "sleep: true",
            r"engine.sleep works with vLLM and SGLang, but \$there is",
        ),
    ],
)
def test_servers_that_cannot_do_it_are_refused(folder: Path, there: str, engine: str, message: str) -> None:
    path = write(folder, there)
    path.write_text(path.read_text().replace("tolerance: 0.001", engine))
    with pytest.raises(RecipeError, match=message):
        build(validate(read_tree(path, ())))


def test_sleep_does_not_count(folder: Path) -> None:
    path = write(folder, "url: 'http://127.0.0.1:1/v1', model: m, protocol: vllm")
    awake = build(validate(read_tree(path, ()))).nodes["policy"].fingerprint
    path.write_text(path.read_text().replace("tolerance: 0.001", "sleep: true"))
    assert build(validate(read_tree(path, ()))).nodes["policy"].fingerprint == awake


def test_where_the_server_is_does_not_count_and_that_there_is_one_does(folder: Path) -> None:
    marks = [
        graph(folder, f"url: 'http://127.0.0.1:{port}/v1', model: m, protocol: togi").nodes["policy"].fingerprint
        for port in (1, 2)
    ]
    path = write(folder, "path: model, template: chatml")
    path.write_text(path.read_text().replace("    engine: {model: $there, tolerance: 0.001}\n", ""))
    assert marks[0] == marks[1] != build(validate(read_tree(path, ()))).nodes["policy"].fingerprint


@pytest.mark.slow
def test_a_run_starts_the_server_of_its_policy_and_ends_it(folder: Path) -> None:
    path = write(folder, "path: model, template: chatml, serve: {engine: togi}")
    ended = togi(folder / "home", "run", str(path), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    assert "starting service there, which stage policy needs" in ended.stderr
    rows = read_lines(folder / "home" / "runs" / "engines" / "policy" / "metrics.jsonl")
    assert len(rows) == 2 and all(row["engine/probe"] < 1e-4 for row in rows)
