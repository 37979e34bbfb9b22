"""A recipe whose models are on a server is run, planned, checked and run again."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from stub_server import KEY, Stub, stub_server
from tiny_run import QUESTIONS, results, tiny_model, togi

from togi.cli import main
from togi.core.files import read_object

RECIPE = """\
name: remote
models:
  a: {url: 'URL', model: small, key_env: STUB_KEY, price: {input: 1000, output: 2000}, MORE}
  b: {url: 'URL', model: large, key_env: STUB_KEY}
data:
  questions: {path: questions.jsonl}
stages:
  some: {type: select, input: $questions, count: 6}
  scores: {type: evaluate, base: $a, policy: $b, prompts: $some, samples: 2, max_tokens: 12, bootstrap: 100}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Stub]:
    with stub_server() as found:
        yield found


def recipe(folder: Path, url: str, more: str = "concurrency: 3", **replaced: str) -> Path:
    (folder / "questions.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in QUESTIONS))
    text = RECIPE.replace("URL", url).replace("MORE", more)
    for old, new in replaced.items():
        text = text.replace(old, new)
    path = folder / "remote.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command in this process; returns its exit code and all its output."""
    monkeypatch.setenv("TOGI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STUB_KEY", KEY)

    def tell(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main.main(list(words), "togi")
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    return tell


def test_a_run_asks_once_and_says_what_it_spent(server: Stub, tmp_path: Path, told) -> None:
    path = recipe(tmp_path, server.url)
    code, planned = told("plan", str(path))
    assert code == 0 and "12 calls" in planned and "requests to servers: 12, for at most" in planned
    first = togi(tmp_path / "home", "run", str(path), STUB_KEY=KEY)
    assert first.returncode == 0, first.stderr
    real = [body for body in server.asked if body["messages"][0]["content"] in QUESTIONS]
    assert len(real) == 12 and all(body["n"] == 2 for body in real)
    assert "spent:  a: " in first.stderr and "spent:  b: " in first.stderr and KEY not in first.stderr
    assert "length (characters)" in first.stderr  # a server does not report the tokens of each answer
    made, count = results(tmp_path / "home"), len(server.asked)
    again = togi(tmp_path / "home", "run", str(path), "--redo", "scores", STUB_KEY="wrong")
    assert again.returncode == 0, again.stderr
    assert results(tmp_path / "home") == made and len(server.asked) == count
    status = told("status", str(path))[1]
    assert "answers of servers in the store: 12" in status and "spent: a: " in status
    assert "Spent on servers: a: " in (tmp_path / "home" / "runs" / "remote" / "report.html").read_text()
    assert "12 answers" in told("clean", "--answers")[1] and "12 answers" in told("clean", "--answers", "--yes")[1]
    assert "0 answers" in told("clean", "--answers")[1]


def test_a_failed_request_costs_an_evaluation_its_prompt_and_is_asked_again(server: Stub, tmp_path: Path) -> None:
    path, home = recipe(tmp_path, server.url), tmp_path / "home"
    words = ("run", str(path), "stages.some.shuffle=false", "stages.some.skip=2")
    server.failing = "Why do we dream?"
    try:
        stopped = togi(home, *words, "stages.scores.max_failed_share=0", STUB_KEY=KEY)
        assert stopped.returncode == 4, stopped.stderr
        assert "1 of 6 requests to $a failed, but at most 0 may fail (max_failed_share 0)" in stopped.stderr
        left_out = togi(home, *words, STUB_KEY=KEY)
    finally:
        server.failing = ""
    assert left_out.returncode == 0, left_out.stderr
    assert "ALARM failed: 1 of 6 requests to $b failed, so their prompts are left out" in left_out.stderr
    found = read_object(home / "runs" / "remote" / "scores" / "summary.json")
    assert found["counts"] == {"in": 6, "out": 5} and found["drops"] == {"failed": 1}
    assert all(row["difference"]["n"] == 5 for row in found["table"] if row["difference"])
    count = len(server.asked)
    whole = togi(home, *words, "--redo", "scores", STUB_KEY=KEY)
    assert whole.returncode == 0, whole.stderr
    assert read_object(home / "runs" / "remote" / "scores" / "summary.json")["counts"] == {"in": 6, "out": 6}
    asked = [body["messages"][0]["content"] for body in server.asked[count:] if body["model"] == "small"]
    assert [text for text in asked if text in QUESTIONS] == ["Why do we dream?"]


def test_check_asks_the_servers_and_says_what_they_do(server: Stub, tmp_path: Path, told) -> None:
    path = recipe(tmp_path, server.url)
    code, said = told("check", str(path))
    assert (
        code == 0
        and f"model a: small at {server.url}, protocol togi, context 900 tokens; tried: several samples at once, seeds"
        in said
    )
    assert "stage scores (evaluate): the server of $a, $b renders its rows" in said
    code, said = told("check", str(path), "--offline")
    assert code == 0 and f"models.b: {server.url} was not asked (--offline)" in said


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        ("", 2, "the environment variable NO_KEY is not set"),
        ("key_env: WRONG_KEY", 3, "refuses the key (401"),
        ("model: huge", 3, "does not serve 'huge' (it serves 'small', 'large'"),
        ("url: 'http://127.0.0.1:9/v1'", 3, "start the server, or correct url"),
        ("budget: {tokens: 10}", 3, "models.a.budget: one answer of stage scores may have 12 tokens"),
    ],
)
def test_what_is_wrong_with_an_endpoint_is_one_clear_message(
    server: Stub, tmp_path: Path, told, monkeypatch: pytest.MonkeyPatch, more: str, code: int, says: str
) -> None:
    monkeypatch.setenv("WRONG_KEY", "other")
    path = recipe(tmp_path, server.url)
    key, _, value = (more or "key_env: NO_KEY").partition(": ")
    ended, said = told("check", str(path), f"models.a.{key}={value}")
    assert ended == code and says in said and "Traceback" not in said


def test_a_budget_that_is_spent_ends_the_run_with_4_and_is_never_passed(server: Stub, tmp_path: Path) -> None:
    path = recipe(tmp_path, server.url, "budget: {tokens: 100}")
    count = len(server.asked)
    ended = togi(tmp_path / "home", "run", str(path), STUB_KEY=KEY)
    assert ended.returncode == 4 and "the budget of 100 tokens is spent" in ended.stderr, ended.stderr
    assert 15 * sum(body["model"] == "small" for body in server.asked[count:]) <= 100


def test_check_tells_a_budget_that_is_smaller_than_one_answer(server: Stub, tmp_path: Path, told) -> None:
    path = recipe(tmp_path, server.url, "budget: {tokens: 1000}")
    assert told("check", str(path))[0] == 0
    code, said = told("check", str(path), "stages.scores.max_tokens=1001")
    assert code != 0 and "models.a.budget: one answer of stage scores may have 1,001 tokens" in said


def test_where_a_tokenizer_is_named_check_holds_rows_to_the_context_of_the_server(
    server: Stub, tmp_path: Path, told
) -> None:
    tiny_model(tmp_path / "model")
    named = {"key_env: STUB_KEY}": "key_env: STUB_KEY, tokenizer: model, template: chatml}"}
    path = recipe(tmp_path, server.url, "tokenizer: model, template: chatml", **named)
    assert told("check", str(path))[0] == 0
    code, said = told("check", str(path), "stages.scores.max_tokens=895")  # of 900; the prompt has more than 5
    assert code != 0 and "stage scores: prompt" in said and "900" in said
    assert told("check", str(path), "models.a.tokenizer=null", "stages.scores.max_tokens=895")[0] == 0


def test_a_training_from_a_server_is_refused(server: Stub, tmp_path: Path, told) -> None:
    path = recipe(tmp_path, server.url)
    path.write_text(path.read_text() + "  tuned: {type: train.sft, init: $a, chats: $some}\n")
    code, said = told("check", str(path))
    assert code == 2 and "stages.tuned.init: $a is on a server (models.a.url); training needs its weights" in said


def test_a_trial_on_few_rows_asks_little_and_stands_apart(server: Stub, tmp_path: Path, told) -> None:
    path = recipe(tmp_path, server.url)
    count = len(server.asked)
    tried = togi(tmp_path / "home", "run", str(path), "--limit", "6", STUB_KEY=KEY)
    assert tried.returncode == 0, tried.stderr
    assert "a trial on 6 rows of each data set, stored separately as remote-limit6, run " in tried.stderr
    asked = [body for body in server.asked[count:] if body["messages"][0]["content"] in QUESTIONS]
    assert len(asked) == 6  # three questions to each model
    code, planned = told("plan", str(path))
    assert code == 0 and "0 of 3 stages are done" in planned and "12 calls" in planned
    assert sorted(each.name for each in (tmp_path / "home" / "runs").iterdir()) == ["remote-limit6"]
