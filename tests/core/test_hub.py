"""The hub: what is downloaded, what the cache serves while the hub does not answer, and how soon users are told."""

import importlib
import logging
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, serving
from huggingface_hub import constants

from togi.cli.check import command
from togi.core import hub
from togi.core.errors import InputError
from togi.core.hub import snapshot

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "onnx/model.safetensors": b"others", "a.py": b"no"}
CLOSED = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_silent", {})


def at(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


def test_what_is_asked_for_is_fetched_and_then_needs_no_hub(monkeypatch, caplog):
    ask: Any = {"allow": ["*.json", "*.safetensors"], "ignore": ["*/*.safetensors"]}
    with serving({"o/n": FILES}) as address:
        at(monkeypatch, address)
        folder, commit = snapshot("o/n", "main", **ask)
        assert commit == COMMIT and (folder / "model.safetensors").read_bytes() == b"weights"
        assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
        with pytest.raises(InputError, match=r"'o/gone' at revision 'main': .* answers: .*404"):
            snapshot("o/gone", "main", **ask)
    at(monkeypatch, CLOSED)
    assert snapshot("o/n", COMMIT, **ask) == (folder, COMMIT) and not caplog.records  # a commit never changes
    assert snapshot("o/n", "main", **ask) == (folder, COMMIT)
    assert "the hub does not answer" in caplog.text and "using the copy in the cache" in caplog.text


def test_a_copy_that_lacks_files_is_not_taken_for_the_whole(monkeypatch):
    with serving({"o/n": FILES}) as address:
        at(monkeypatch, address)
        snapshot("o/n", "main", allow=["*.json"])
    at(monkeypatch, CLOSED)
    for revision in ("main", COMMIT):
        begun = time.monotonic()
        with pytest.raises(InputError, match="lacks some of its files"):
            snapshot("o/n", revision, allow=["*.json", "model.safetensors"])
        assert time.monotonic() - begun < 8


def test_a_hub_that_accepts_and_is_silent_is_told_in_time_and_asked_once(monkeypatch, caplog, capfd):
    monkeypatch.setattr(hub, "SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        at(monkeypatch, f"http://127.0.0.1:{server.getsockname()[1]}")
        begun = time.monotonic()
        for _ in range(5):
            with pytest.raises(InputError, match=r"hub does not answer .*no answer within 0\.3 s|timed out"):
                snapshot("o/n", "main", allow=["*"])
        assert time.monotonic() - begun < 8
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING] and capfd.readouterr() == ("", "")


def test_offline_no_hub_is_asked_and_the_cache_still_answers(monkeypatch):
    with serving({"o/n": FILES}) as address:
        at(monkeypatch, address)
        found = snapshot("o/n", "main", allow=["*.json"])
        with hub.offline("--offline"):
            assert snapshot("o/n", "main", allow=["*.json"]) == found
            with pytest.raises(hub.NotLookedUp, match="model o/other at revision v1 was not looked up"):
                snapshot("o/other", "v1", allow=["*.json"])
        assert snapshot("o/n", COMMIT, allow=["*.json"]) == found


def test_what_no_hub_has_is_told(monkeypatch):
    at(monkeypatch, CLOSED)
    with pytest.raises(InputError, match="not the name of a model"):
        snapshot("a/b/c", "main", allow=["*"])


@pytest.mark.parametrize("what", ["model", "data set"])
def test_check_tells_a_silent_hub_before_anything_heavy_is_imported(what, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "SECONDS", 0.3)
    monkeypatch.setenv("TOGI_HOME", str(tmp_path / "home"))
    data = "{hub: o/n}" if what == "data set" else "{path: d.jsonl}"
    model = "{path: m}" if what == "data set" else "{hub: o/n}"
    (tmp_path / "m").mkdir()
    (tmp_path / "d.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    (tmp_path / "r.yaml").write_text(
        f"name: offline\nmodels: {{base: {model}}}\ndata: {{d: {data}}}\n"
        "stages: {tuned: {type: train.sft, init: $base, chats: $d, steps: 1}}\n"
    )
    monkeypatch.setattr(importlib, "import_module", light(importlib.import_module))
    with socket.create_server(("127.0.0.1", 0)) as server:
        at(monkeypatch, f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(InputError, match="the hub does not answer"):
            command.callback(tmp_path / "r.yaml", (), None, False, False)


def test_check_lists_all_that_no_hub_has_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TOGI_HOME", str(tmp_path / "home"))
    (tmp_path / "r.yaml").write_text(
        "name: away\nmodels: {base: {hub: o/n}}\ndata: {d: {hub: o/rows}}\n"
        "stages: {tuned: {type: train.sft, init: $base, chats: $d, steps: 1}}\n"
    )
    at(monkeypatch, CLOSED)
    with pytest.raises(InputError) as raised:
        command.callback(tmp_path / "r.yaml", (), None, False, False)
    rows, model = sorted(str(raised.value).splitlines())
    assert "'o/rows'" in rows and "'o/n'" in model


def light(load: Any) -> Any:
    """`import_module`, which fails for the module that imports torch."""

    def refusing(name: str, *rest: Any) -> Any:
        assert name != "togi.commands.check", "the hub was asked too late"
        return load(name, *rest)

    return refusing
