"""`togi ground` as a user runs it: on a small model in its own process, and with a server."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from stub_server import KEY, Stub, stub_server
from tiny_run import tiny_model

from togi.cli import main
from togi.commands.ground import check_shown
from togi.core.errors import InputError
from togi.text.grounded import Shown, asked, asked_again
from togi.text.safety import SAFETY
from togi.text.template import TEMPLATES

LIST = [
    {"doc_id": 0, "title": "Ледники", "content": "Объём ледников уменьшился на 30%."},
    {"doc_id": 1, "title": None, "content": "Уровень моря повысился на 20 см."},
]
SHOWN = [Shown(row["title"], row["content"]) for row in LIST]
QUESTION = "Что с ледниками?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a context long enough for a page."""
    folder = tmp_path_factory.mktemp("ground") / "model"
    tiny_model(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2000}))
    return folder


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    path = tmp_path / "list.json"
    path.write_text(json.dumps(LIST, ensure_ascii=False))
    return path


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TOGI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STUB_KEY", KEY)

    def run(*words: object) -> Result:
        return CliRunner().invoke(main, ["ground", *map(str, words)])

    return run


def scripted(*said: str) -> Any:
    """The answers of a server: the n-th text for a conversation with n assistant turns."""
    return lambda body, index: said[sum(turn["role"] == "assistant" for turn in body["messages"])]


def on(server: Stub) -> tuple[str, ...]:
    return (f"{server.url}#small", "--key-env", "STUB_KEY")


def turns(messages: Any) -> list[dict[str, str]]:
    return [{"role": each.role, "content": each.content} for each in messages]


def test_a_server_is_asked_twice_as_the_card_says(shell, documents):
    with stub_server() as server:
        server.says = scripted("```json\n{'relevant_doc_ids': [0, 0, 7]}\n```", "Они тают.")
        ended = shell(*on(server), "--documents", documents, QUESTION, "--json")
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    assert (found["relevant_doc_ids"], found["unknown_ids"], found["repeated_ids"]) == ([0], ["7"], 1)
    assert (found["answer"], found["cut"]) == ("Они тают.", False)
    assert [(row["doc_id"], row["file"], row["place"]) for row in found["documents"]] == [
        (0, "list.json", "item 1"),
        (1, "list.json", "item 2"),
    ]
    first, second = steps = [body for body in server.asked if body["messages"][0]["role"] == "system"]
    assert first["messages"] == turns(asked(SHOWN, QUESTION))
    assert second["messages"] == turns(asked_again(asked(SHOWN, QUESTION), found["said"]))
    assert [body["temperature"] for body in steps] == [0.0, 0.3]
    assert [body.get("max_tokens", body.get("max_completion_tokens")) for body in steps] == [2048, 2048]


def test_sampling_and_the_safety_prompt_are_for_the_answer_alone(shell, documents):
    with stub_server() as server:
        server.says = scripted('{"relevant_doc_ids": [0]}', "Они тают.")
        more = ("--sampling", "llm-jp-3.1", "--safety-prompt", "ru", "--json")
        ended = shell(*on(server), "--documents", documents, QUESTION, *more)
    assert ended.exit_code == 0, ended.output
    first, second = [body for body in server.asked if body["messages"][0]["role"] == "system"]
    system, *rest = turns(asked(SHOWN, QUESTION))
    assert first["messages"] == [system, *rest]
    assert second["messages"][0]["content"] == f"{system['content']}\n\n{SAFETY['ru']}"
    assert second["messages"][1:-1] == rest
    assert [(body["temperature"], body["top_p"]) for body in (first, second)] == [(0.0, 1.0), (0.7, 0.95)]
    assert [body.get("max_tokens", body.get("max_completion_tokens")) for body in (first, second)] == [2048, 2048]


def test_what_is_printed_names_files_places_and_ids(shell, tmp_path):
    (tmp_path / "docs").mkdir()
    for number in range(9):
        text = f"# Page {number}\n\nGlaciers melt.\n" if number == 4 else f"# Page {number}\n\nNothing of note.\n"
        (tmp_path / "docs" / f"{number}.md").write_text(text)
    (tmp_path / "docs" / "x.py").write_text("x = 1")
    with stub_server() as server:
        server.says = scripted('{"relevant_doc_ids": [0]}', "They melt.")
        ended = shell(*on(server), "--documents", tmp_path / "docs", "Which glaciers melt?", "--most", 3)
    assert ended.exit_code == 0, ended.output
    lines = ended.stdout.splitlines()
    assert lines[0] == "9 documents, 9 parts, the 3 best matches are shown; 1 file of another kind is not read"
    assert any(line.split() == ["0", "4.md", "lines", "1", "to", "3", "Page", "4"] for line in lines)
    assert lines[-3:] == ["relevant documents: 0", "", "They melt."]
    asked_first = next(body for body in server.asked if body["messages"][0]["role"] == "system")
    shown = json.loads(asked_first["messages"][1]["content"])
    assert [row["doc_id"] for row in shown] == [0, 1, 2] and "Glaciers" in shown[0]["content"]


@pytest.mark.parametrize(
    ("said", "told", "ids"),
    [
        ('{"relevant_doc_ids": []}', "relevant documents: none", []),
        ("I am not sure.", "relevant documents: not readable in the model's output: 'I am not sure.'", None),
        ('{"relevant_doc_ids": [9]}', "none (left out, because there are no such documents: 9)", []),
    ],
)
def test_no_ids_unreadable_ids_and_unknown_ids_are_told_apart(shell, documents, said, told, ids):
    with stub_server() as server:
        server.says = scripted(said, "No.")
        words = (*on(server), "--documents", documents, QUESTION)
        assert told in shell(*words).stdout
        assert json.loads(shell(*words, "--json").stdout)["relevant_doc_ids"] == ids


def test_a_model_in_this_process_answers_the_same_each_time(shell, model, documents):
    words = (model, "--documents", documents, QUESTION, "--template", "llama3-text", "--max-tokens", 6)
    first, other = (shell(*words, "--json", "--seed", seed) for seed in (1, 2))
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    assert found["cut"] and found["answer"] and found["relevant_doc_ids"] is None
    assert json.loads(other.stdout)["answer"] != found["answer"]
    plain = shell(*words, "--seed", 1)
    assert "(cut at 6 tokens; raise --max-tokens for more)" in plain.stdout
    assert found["answer"] in plain.stdout


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--template", "chatml"), 3, "no role 'documents'"),
        (("--template", "llama3-text", "--max-tokens", 2000), 3, "the model's context is 2000"),
        (("--key-env", "STUB_KEY"), 2, "--key-env goes with a server's URL#NAME"),
        (("--revision", "main"), 2, "--revision goes with a hub id"),
        (("--documents", "nowhere"), 3, "nowhere: there is no such file or folder"),
    ],
)
def test_what_cannot_be_answered_is_said_in_one_line(shell, model, documents, words, code, says):
    ended = shell(model, QUESTION, "--documents", documents, *words)
    assert ended.exit_code == code
    assert says in ended.stderr and "Traceback" not in ended.stderr


def test_a_server_that_cannot_be_named_or_refuses(shell, documents):
    with stub_server() as server:
        assert "write URL#NAME" in shell(server.url, "--documents", documents, QUESTION).stderr
        server.failing = "relevant document identifiers"
        ended = shell(*on(server), "--documents", documents, QUESTION)
        assert ended.exit_code == 3 and "this prompt is refused" in ended.stderr
        gone = shell(f"{server.url}#small", "--key-env", "NO_SUCH_KEY", "--documents", documents, QUESTION)
        assert gone.exit_code == 2 and "NO_SUCH_KEY is not set" in gone.stderr


def written(*roles: str) -> Any:
    """A template that writes the turns of these roles alone."""
    return lambda messages: "".join(turn["content"] for turn in messages if turn["role"] in roles)


def refusing(*roles: str) -> Any:
    """A template that refuses turns of these roles."""

    def reads(messages: list[dict[str, str]]) -> str:
        for turn in messages:
            if turn["role"] in roles:
                raise ValueError(f"no role {turn['role']!r}")
        return str(messages)

    return reads


@pytest.mark.parametrize(
    ("reads", "says"),
    [
        (written("system", "documents", "user"), ""),
        (written("documents", "user"), "the server's template does not write the turn of the role system"),
        (written("system", "user"), "the server's template does not write the turn of the role documents"),
        (refusing("documents"), "the server refuses the conversation: no role 'documents'; a grounded answer needs"),
        (refusing("documents", "user"), "note: the server's /tokenize gives no tokens of conversations"),
        (lambda messages: "x", "note: the server's /tokenize gives no tokens of conversations"),
        (None, "note: the server's /tokenize gives no tokens of conversations"),
    ],
)
def test_the_template_of_a_server_is_checked_before_it_is_asked(shell, documents, reads, says):
    with stub_server() as server:
        server.says, server.reads = scripted('{"relevant_doc_ids": [0]}', "Они тают."), reads
        ended = shell(*on(server), "--documents", documents, QUESTION)
    refused = bool(says) and not says.startswith("note")
    assert ended.exit_code == (3 if refused else 0), ended.output
    assert (says in ended.stderr) if says else (ended.stderr == "")
    assert bool(server.asked) != refused


def test_a_template_that_replaces_the_system_prompt_is_refused():
    template = replace(TEMPLATES["llama3"], fixed_system="Be kind.")
    first = asked(SHOWN, QUESTION)
    check_shown("llama3", TEMPLATES["llama3"].prompt_text(first), first)
    with pytest.raises(InputError, match="does not write the turn of the role system unchanged"):
        check_shown("mine", template.prompt_text(first), first)
