"""The recipes at the scale of the published models: checked and planned without a network, with the cards' numbers."""

import json
import socket
from typing import Any

import pytest
from click.testing import CliRunner
from places import RECIPES

from togi.cli import main
from togi.model.sizes import Shape

NAMES = ("arrowideative-13b",)


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """No network, an empty store, and an empty cache of the hub library."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TOGI_HOME", str(tmp_path / "home"))


def plan(name: str) -> dict[str, dict[str, Any]]:
    """The rows of a plan by stage."""
    ended = CliRunner().invoke(main, ["plan", str(RECIPES / f"{name}.yaml"), "--compute", "bfloat16", "--json"])
    assert ended.exit_code == 0, ended.output
    return {row["stage"]: row for row in json.loads(ended.stdout)}


def parameters(rows: dict[str, dict[str, Any]], model: str) -> dict[str, int]:
    return next(row["models"][model] for row in rows.values() if model in row["models"])


CARDS = {  # as the cards count: body, embeddings, total, active
    "llm-jp-3-1.8b": (1_459_718_144, 407_498_752, 1_867_216_896, 1_867_216_896),
    "llm-jp-3-13b": (12_688_184_320, 1_018_746_880, 13_706_931_200, 13_706_931_200),
    "llm-jp-3-8x13b": (72_144_081_920, 1_018_746_880, 73_162_828_800, 22_200_806_400),
}


@pytest.mark.parametrize("name", CARDS)
def test_shapes_have_the_parameters_of_the_cards(name):
    shape = Shape.of(json.loads((RECIPES / "shapes" / f"{name}.json").read_text()))
    counts = shape.counts
    assert (counts.body, counts.embeddings, counts.total, counts.active) == CARDS[name]
    assert shape.vocabulary == 99_584 and shape.parameters == counts.body + 2 * 99_584 * shape.width


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_checked_offline_and_tells_what_it_could_not_verify(name):
    ended = CliRunner().invoke(main, ["check", str(RECIPES / f"{name}.yaml"), "--offline"])
    assert ended.exit_code == 0, ended.output
    assert "every key, reference, file and template fits" in ended.stdout
    for hub in UNVERIFIED[name]:
        assert f"not verified: {hub} at revision main was not looked up on the hub (--offline)" in ended.stdout


UNVERIFIED = {"arrowideative-13b": ("model llm-jp/llm-jp-3-13b", "model intfloat/multilingual-e5-large")}


def test_arrowideative_learns_by_grpo_alone_with_the_reward_of_its_card():
    rows = plan("arrowideative-13b")
    counts = parameters(rows, "base")
    assert counts["body"] == 12_688_184_320 and counts["embeddings"] == 1_018_746_880
    assert [row["type"] for row in rows.values() if row["type"].startswith("train.")] == ["train.grpo"]
    policy = rows["policy"]["estimate"]
    assert policy["samples"] == 8000 and policy["sampled"] == 8000 * 1024
    assert policy["calls"] == 1000  # a group of 8 is one request to the reward model's server
    assert policy["flops"] > 1e17 and policy["peak_bytes"] < 32e9
