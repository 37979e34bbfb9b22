"""The card of an exported model: the facts of a real run, in three languages, with code that runs."""

import re
from pathlib import Path
from typing import Any

import pytest
from card_code import code_of, run
from huggingface_hub import ModelCard
from tiny_run import togi
from transformers import GenerationConfig

from togi.report.card_words import LANGUAGES, WORDS

CARD = """
card:
  title: Tiny
  language: [en, ja]
  licence: MIT
  intended: "To be | tested."
  authors: me
  sampling: vikhr-nemo
"""


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy and the reward model of the tiny run, exported with its card."""
    folder = tmp_path_factory.mktemp("cards")
    recipe = finished / "carded.yaml"  # the texts of a card are in no fingerprint, so nothing is recomputed
    recipe.write_text((finished / "tiny.yaml").read_text() + CARD)
    for stage, more in (("policy", ()), ("reward", ("--reward",))):
        ended = togi(finished / "home", "export", f"{recipe}:{stage}", str(folder / stage), *more)
        assert ended.returncode == 0, ended.stderr
    return folder


def test_what_was_measured_round_trips_through_the_hubs_library(exported):
    card = ModelCard.load(exported / "policy" / "README.md")
    data: Any = card.data
    assert data.to_dict()["license"] == "mit" and data.language == ["en", "ja"]
    assert data.pipeline_tag == "text-generation" and data.library_name == "transformers" and data.model_name == "Tiny"
    found = {each.metric_name: each for each in data.eval_results}
    assert {"reward", "length (tokens)"} <= {*found} and not any("accuracy" in name for name in found)
    assert found["reward"].metric_args["overlap"].startswith("$policy was trained on 6 of 6 prompts")
    again: Any = ModelCard(str(card)).data
    assert again.eval_results == data.eval_results and found["reward"].metric_args["n"] == 6
    shown = [line for line in card.text.splitlines() if line.startswith("| reward (")]
    assert len(shown) == 1 and "scores |" in shown[0]


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_language_has_every_part_and_its_code_runs(exported, language):
    name = "README.md" if language == "en" else f"README.{language}.md"
    text, words = (exported / "policy" / name).read_text(), WORDS[language]
    for key in ("intended", "code", "results", "plots", "samples", "training", "architecture", "limits", "reproduce"):
        assert f"## {words[key]}\n" in text, key
    assert words["overlap"] in text and words["no_leaks"] not in text
    assert "`train.grpo`" in text and "LlamaForCausalLM" in text
    assert [*WORDS[language]] == [*WORDS["en"]]
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (exported / "policy" / picture).read_text().startswith("<svg")
    run(code_of(exported / "policy" / name))


def test_code_for_a_terminator_of_several_tokens_stops_at_its_text(exported):
    text = (exported / "policy" / "README.md").read_text()
    assert ", stop_strings=['<|im_end|>'], tokenizer=tokenizer" in text
    assert ".split('<|im_end|>')[0]" in text


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_sampling_of_the_recipe_is_in_the_code_the_texts_and_the_files(exported, language):
    name = "README.md" if language == "en" else f"README.{language}.md"
    text, words = (exported / "policy" / name).read_text(), WORDS[language]
    told = words["sampled"].format(values="temperature 0.3, top_k 40") + " " + words["hot"].format(hot=1.0)
    assert f"\n{told}\n" in text
    drawn = "do_sample=True, temperature=0.3, top_p=1.0, top_k=40, min_p=0.0, repetition_penalty=1.0"
    assert f"model.generate(**inputs, max_new_tokens=2048, {drawn}, stop_strings=" in text
    assert GenerationConfig.from_pretrained(exported / "policy").top_k == 40
    assert told not in (exported / "reward" / name).read_text()
    assert "recommended" not in (exported / "reward" / "togi.json").read_text()


def test_a_chat_with_the_export_samples_as_recommended(exported, finished):
    asked = ("chat", str(exported / "policy"), "-m", "Why?", "--max-tokens", "2")
    ended = togi(finished / "home", *asked)
    assert ended.returncode == 0
    assert "recommended sampling (vikhr-nemo): temperature 0.3, top_p 1, top_k 40\n" in ended.stderr
    assert "of training" not in togi(finished / "home", *asked, "--sampling", "none").stderr


def test_the_facts_of_the_model_are_one_to_a_row(exported):
    text = (exported / "policy" / "README.md").read_text()
    rows = dict(line.strip("| ").split(" | ") for line in text.splitlines() if line.count(" | ") == 1)
    assert rows["end of an answer"] == "<\\|im_end\\|>" and re.fullmatch(r"\d+(, \d+)*", rows["its token ids"])
    assert re.fullmatch(r"\d+", rows["attention heads"]) and re.fullmatch(r"[\d,]+", rows["vocabulary"])


def test_a_reward_models_card_scores(exported):
    text = (exported / "reward" / "README.md").read_text()
    data: Any = ModelCard(text).data
    assert data.pipeline_tag == "text-classification" and "reward-model" in data.tags
    assert {each.dataset_name for each in data.eval_results} == {"tiny: reward"}  # not the results of the policy
    assert {each.task_type for each in data.eval_results} == {data.pipeline_tag}
    assert WORDS["en"]["scores"] in text and "generate" not in text
    assert float(run(code_of(exported / "reward" / "README.md"))) == pytest.approx(0, abs=100)


def test_the_recipe_and_its_lock_lie_beside_the_card(exported):
    assert "title: Tiny" in (exported / "policy" / "recipe.yaml").read_text()
    assert "name: tiny" in (exported / "policy" / "recipe.lock.yaml").read_text()
