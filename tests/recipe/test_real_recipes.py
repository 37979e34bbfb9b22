"""The recipes at the scale of the published models: checked and planned without a network, and compared with the
numbers of the model cards."""

import json
import socket
from typing import Any

import pytest
from click.testing import CliRunner
from places import RECIPES, ROOT

from togi.cli import main
from togi.cli.list import stage_settings
from togi.data.filters import first_failure
from togi.model.sizes import Shape
from togi.recipe.schema import validate
from togi.recipe.source import read_tree
from togi.stages.data.curate import SCORE
from togi.stages.data.curate_rows import rules

LLM_JP = "llm-jp-3.1-instruct4"
SIZES = {LLM_JP: "1.8b", f"{LLM_JP}-13b": "13b", f"{LLM_JP}-8x13b": "8x13b"}
HUBS = {  # some of the things that a check without a network cannot verify
    "arrowideative-13b": ("model llm-jp/llm-jp-3-13b", "model intfloat/multilingual-e5-large"),
    "ca-reward-3b-ja": ("model sbintuitions/sarashina2.2-3b-instruct-v0.1", "dataset nvidia/HelpSteer3"),
    **{name: (f"model llm-jp/llm-jp-3-{size}", "dataset llm-jp/ac-self-inst") for name, size in SIZES.items()},
    f"{LLM_JP}-8x13b": ("model llm-jp/llm-jp-3.1-8x13b", "dataset llm-jp/ac-self-inst"),
    "vikhr-nemo-12b": ("model mistralai/Mistral-Nemo-Instruct-2407", "dataset Vikhrmodels/Grounded-RAG-RU-v2"),
}
GATED = {"ca-reward-3b-ja": "lmsys/chatbot_arena_conversations", LLM_JP: "llm-jp/AnswerCarefully"}


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
    ended = CliRunner().invoke(main, ["plan", str(RECIPES / f"{name}.yaml"), "--json"])
    assert ended.exit_code == 0, ended.output
    return {row["stage"]: row for row in json.loads(ended.stdout)}


def stages(name: str) -> dict[str, Any]:
    """The settings of a recipe's stages."""
    return dict(validate(read_tree(RECIPES / f"{name}.yaml")).stages)


def parameters(rows: dict[str, dict[str, Any]], model: str) -> dict[str, int]:
    return next(row["models"][model] for row in rows.values() if model in row["models"])


CARDS = {  # as counted in the model cards: body, embeddings, total, active
    "1.8b": (1_459_718_144, 407_498_752, 1_867_216_896, 1_867_216_896),
    "13b": (12_688_184_320, 1_018_746_880, 13_706_931_200, 13_706_931_200),
    "8x13b": (72_144_081_920, 1_018_746_880, 73_162_828_800, 22_200_806_400),
}


@pytest.mark.parametrize("size", CARDS)
def test_shapes_have_the_parameters_of_the_cards(size):
    shape = Shape.of(json.loads((RECIPES / "shapes" / f"llm-jp-3-{size}.json").read_text()))
    counts = shape.counts
    assert (counts.body, counts.embeddings, counts.total, counts.active) == CARDS[size]
    assert shape.vocabulary == 99_584 and shape.parameters == counts.body + 2 * 99_584 * shape.width


@pytest.mark.parametrize("name", HUBS)
def test_a_recipe_is_checked_offline_and_tells_what_it_could_not_verify(name):
    ended = CliRunner().invoke(main, ["check", str(RECIPES / f"{name}.yaml"), "--offline"])
    assert ended.exit_code == 0, ended.output
    assert "all keys, references, files and templates fit" in ended.stdout
    lines = [line for line in ended.stdout.splitlines() if line.startswith("note: not verified: ")]
    for hub in HUBS[name]:
        assert [line for line in lines if f"{hub} at revision main was not looked up on the hub (--offline)" in line]
    gated = [line for line in lines if line.endswith("It is gated: accept its terms on its page, and set HF_TOKEN")]
    assert name not in GATED or (len(gated) == 1 and GATED[name] in gated[0])
    names = [line.partition(" at revision ")[0] for line in lines]
    assert len(names) == len(dict.fromkeys(names))


@pytest.mark.parametrize("name", HUBS)
def test_a_plan_knows_what_every_training_takes(name):
    rows = plan(name)
    for row in rows.values():
        estimate = row["estimate"]
        if row["type"].startswith("train."):
            told = [estimate[key] for key in ("tokens", "flops", "peak_bytes", "seconds")]
            assert None not in told and min(told) > 0 and estimate["memory"], row["stage"]
        elif row["type"] != "evaluate":
            assert estimate["records"], row["stage"]
    assert sum(row["estimate"]["calls"] or 0 for row in rows.values()) > 0
    assert [alarm for row in rows.values() for alarm in row["estimate"]["alarms"]] == []


@pytest.mark.parametrize("name", HUBS)
def test_a_setting_that_changes_memory_and_time_alone_is_said_to_be_ours(name):
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    made = stages(name).values()
    ours = {
        key for each in made for key in each.model_fields_set if stage_settings(each.type)["settings"][key]["place"]
    }
    assert ours and [key for key in ours if f"`{key}`" not in page] == []


def test_arrowideative_learns_by_grpo_alone_with_the_reward_of_its_card():
    rows, policy = plan("arrowideative-13b"), stages("arrowideative-13b")["policy"]
    assert [row["type"] for row in rows.values() if row["type"].startswith("train.")] == ["train.grpo"]
    (gate,), (term,) = policy.reward.gates, policy.reward.terms
    assert (gate.type, gate.bonus, term.cap, term.negative_scale) == ("terminator", 6.0, 10.0, 0.5)
    estimate = rows["policy"]["estimate"]
    assert estimate["samples"] == 8000 and estimate["sampled"] == 8000 * 1024
    assert estimate["stored_bytes"] == 8000 * (300 + 1024 * 28)
    assert estimate["memory"]["cuda:0"] < 32e9 and estimate["memory"]["cuda:1"] < 16e9  # RTX 5090, RTX 4060 Ti


def test_the_reward_model_is_trained_with_the_settings_of_its_card():
    rows, made = plan("ca-reward-3b-ja"), stages("ca-reward-3b-ja")
    reward = made["reward"]
    assert made["parts"].parts == {"train": 601_348, "validation": 8_000}
    assert (reward.batch_size, reward.schedule, reward.epochs, reward.max_length) == (32, "linear", 1.0, 4096)
    assert reward.sweep == (8e-7, 1e-6, 2.5e-6, 5e-6) and reward.lora is None and reward.train_layers is None
    assert rows["reward"]["estimate"]["samples"] == 4 * 601_348
    assert made["judged"].orders == "both" and rows["judged"]["estimate"]["records"] >= 601_348 + 8_000
    human = [rows[name]["estimate"]["records"] for name in ("helpsteer_train", "helpsteer_validation", "llm_jp_arena")]
    assert human[0] + human[1] == 283 and human[2] == 448
    assert [each.type for each in made["scores"].benchmarks] == ["reward_accuracy"] * 2
    assert rows["reward"]["estimate"]["peak_bytes"] < 80e9  # memory of an A100


@pytest.mark.parametrize("name", SIZES)
def test_llm_jp_is_pretrained_on_instructions_and_learns_twice_from_its_own_answers(name):
    rows, made = plan(name), stages(name)
    counts = parameters(rows, "base")
    assert tuple(counts[key] for key in ("body", "embeddings", "total", "active")) == CARDS[SIZES[name]]
    if not name.endswith("8x13b"):  # its recipe starts after pretraining
        shares = [source.share for source in made["pretrained"].sources]
        assert shares[0] / sum(shares) == pytest.approx(90 / 400) and rows["pretrained"]["estimate"]["tokens"] == 400e9
        instructions = made["pairs_of_texts"]
        assert instructions.count is None and instructions.asks_once, "greedy passes would only repeat the first"
    careful = made["answer_carefully_16"]
    assert careful.epochs == 16 and "$answer_carefully_16" in made["tuned"].chats
    assert rows["answer_carefully_16"]["estimate"]["records"] == 16 * rows["answer_carefully"]["estimate"]["records"]
    first, second = made["round_1"], made["round_2"]
    for name, each in (("round_1", first), ("round_2", second)):
        assert rows[name]["estimate"]["steps"] > each.warmup_steps + each.final_steps + 50, "the rate decays"
    assert (first.init, second.init, second.pairs) == ("$tuned", "$round_1", ("$pairs_2", "$ac_self_inst"))
    assert first.beta == second.beta == 0.1 and first.batch_size == 256
    assert made["answers_1"].models == ("$tuned",) and made["answers_2"].models == ("$round_1",)


def test_vikhr_learns_from_the_best_of_seven_answers_against_the_two_worst():
    rows, made = plan("vikhr-nemo-12b"), stages("vikhr-nemo-12b")
    assert (made["answers"].samples, made["answers"].temperature, made["pairs"].worst) == (7, 0.8, 2)
    assert rows["best"]["estimate"]["records"] == 10_000 and rows["pairs"]["estimate"]["records"] == 2 * 10_000
    assert rows["grandmaster"]["estimate"]["records"] == 150_000
    good, apart, best = made["good"], made["apart"], made["best"]
    assert (apart.input, apart.by, best.input, best.by) == ("$good", SCORE, "$apart", SCORE), "the best first"
    assert first_failure("Создайте рецепт пасты с капустой.", rules(good)) is None, "an instruction, no draft"
    tuned, policy = made["tuned"], made["policy"]
    assert (tuned.learning_rate, tuned.lora.rank, tuned.max_length) == (4e-5, 256, 16_000)
    assert (policy.beta, policy.target_margin, policy.chosen_sft_ratio, policy.lora.rank) == (1.2, 0.4, 0.75, 96)
