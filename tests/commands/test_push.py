"""`togi push` to a hub on this machine, through the hub library's own client."""

import json
from pathlib import Path

import pytest
from hub_server import COMMIT, Repositories, serving
from tiny_run import togi

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An exported folder: weights, a card, and a private file."""
    found = tmp_path / "out"
    (found / "sub").mkdir(parents=True)
    (found / "model.safetensors").write_bytes(WEIGHTS)
    (found / "README.md").write_text("---\ntags: [togi]\n---\n# Card\n")
    (found / "sub" / "note.txt").write_text("note")
    (found / ".env").write_text("HF_TOKEN=secret")
    return found


def push(folder: Path, address: str, *words: str, token: str = "right"):
    more = {"HF_ENDPOINT": address, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder.parent / "hf")}
    return togi(folder.parent, "push", str(folder), *words, **more)


def test_a_folder_is_published_in_one_commit_without_what_is_hidden(folder):
    held: Repositories = {}
    with serving(held, token="right") as address:
        ended = push(folder, address, "me/mine", "--json")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["commit"] == COMMIT and told["kind"] == "model"
    assert held["me/mine"]["model.safetensors"] == WEIGHTS and "secret" not in str(held)
    assert sorted(held["me/mine"]) == sorted(told["files"]) == ["README.md", "model.safetensors", "sub/note.txt"]
    assert "sending 3 files" in ended.stderr


def test_a_data_set_is_one_where_there_is_parquet(folder):
    with serving({}, token="right") as address:
        ended = push(folder, address, "me/rows", "--dataset")
    assert ended.returncode == 2 and "has no *.parquet, so it is not a dataset; leave --dataset out" in ended.stderr
    (folder / "train.parquet").write_bytes(b"rows")
    held: Repositories = {}
    with serving(held, token="right") as address:
        ended = push(folder, address, "me/rows", "--dataset")
    assert ended.returncode == 0 and held["me/rows"]["train.parquet"] == b"rows"
    assert "published 4 files as dataset me/rows" in ended.stdout


def test_a_wrong_token_a_hub_that_is_away_and_a_bad_name_are_told(folder):
    with serving({}, token="right") as address:
        ended = push(folder, address, "me/mine", token="hf_other")
        assert ended.returncode == 4 and "set HF_TOKEN to one that may write" in ended.stderr
        assert "hf_other" not in ended.stderr and "Traceback" not in ended.stderr
    ended = push(folder, address, "me/mine")
    assert ended.returncode == 4 and f"the hub at {address} was not reached" in ended.stderr
    assert ". Run the command again" in ended.stderr and ".. " not in ended.stderr
    ended = push(folder, address, "mine")
    assert ended.returncode == 2 and "give owner/name" in ended.stderr


def test_an_adapter_whose_base_only_this_machine_has_is_told(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/here/base"}')
    with serving({}, token="right") as address:
        ended = push(folder, address, "me/mine")
    assert ended.returncode == 0 and "names its base by a folder (/here/base)" in ended.stderr


def test_a_pickle_is_never_published(folder):
    (folder / "optimizer.pt").write_bytes(b"")
    ended = push(folder, "http://127.0.0.1:9", "me/mine")
    assert ended.returncode == 3 and "optimizer.pt: a pickle runs code" in ended.stderr


def test_pickles_in_capitals_and_links_that_lead_out_of_the_folder_are_not_published(folder):
    (folder / "OPT.PT").write_bytes(b"")
    ended = push(folder, "http://127.0.0.1:9", "me/mine")
    assert ended.returncode == 3 and "OPT.PT: a pickle runs code" in ended.stderr
    (folder / "OPT.PT").unlink()
    (folder.parent / "secret.txt").write_text("secret")
    (folder / "sub" / "linked.txt").symlink_to("../../secret.txt")
    ended = push(folder, "http://127.0.0.1:9", "me/mine")
    assert ended.returncode == 3 and "linked.txt: is a link to " in ended.stderr
    (folder / "sub" / "linked.txt").unlink()
    (folder / "same.txt").symlink_to("sub/note.txt")
    held: Repositories = {}
    with serving(held, token="right") as address:
        assert push(folder, address, "me/mine").returncode == 0
    assert held["me/mine"]["same.txt"] == b"note"
