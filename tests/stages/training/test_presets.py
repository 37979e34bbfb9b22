"""Presets: published settings by name, which the recipe's own settings override."""

import pytest
from pydantic import ValidationError

from togi.stages.training.dpo import PRESETS as DPO_PRESETS
from togi.stages.training.dpo import TrainDpo
from togi.stages.training.reward import PRESETS as REWARD_PRESETS
from togi.stages.training.reward import TrainReward
from togi.stages.training.sft import TrainSft
from togi.stages.training.smpo import PRESETS as SMPO_PRESETS
from togi.stages.training.smpo import TrainSmpo

GIVEN = {"init": "$base", "pairs": "$pairs"}


def smpo(**settings) -> TrainSmpo:
    return TrainSmpo.model_validate({"type": "train.smpo", **GIVEN, **settings})


def dpo(**settings) -> TrainDpo:
    return TrainDpo.model_validate({"type": "train.dpo", **GIVEN, **settings})


@pytest.mark.parametrize(
    ("name", "beta", "margin", "ratio", "epochs", "rank", "batch"),
    [
        ("vikhr-nemo", 1.2, 0.4, 0.75, 2.0, 96, 8),
        ("vikhr-llama-3.1-8b", 1.1, 0.4, 0.75, 2.0, 96, 8),
        ("vikhr-phi4", 1.1, 0.5, 1.0, 1.0, 256, 16),
        ("vikhr-qwen-1.5b", 1.6, 0.5, 0.9, 1.2, 128, 4),
    ],
)
def test_smpo_presets_are_the_published_table(name, beta, margin, ratio, epochs, rank, batch):
    made = smpo(preset=name)
    found = (made.beta, made.target_margin, made.chosen_sft_ratio, made.epochs, made.batch_size)
    assert found == (beta, margin, ratio, epochs, batch)
    assert made.lora is not None and (made.lora.rank, made.lora.alpha) == (rank, rank)
    assert (made.learning_rate, made.schedule, made.margin_schedule) == (2e-5, "cosine", "constant")
    assert made.score_header and made.clipping.lower_quantile is None


def test_the_cards_model_has_its_lengths_and_its_second_bos():
    made = smpo(preset="vikhr-nemo")
    assert (made.max_length, made.max_prompt_length, made.overflow, made.warmup_steps) == (8192, 4096, "truncate", 20)
    assert made.second_bos and not smpo().second_bos and not smpo().score_header


def test_the_dpo_preset_is_the_published_one():
    made = dpo(preset="llm-jp-instruct3")
    assert (made.loss, made.beta, made.batch_size, made.sft_weight) == ("sigmoid", 0.1, 256, 0.0)
    assert (made.learning_rate, made.schedule, made.warmup_steps, made.final_steps) == (9e-7, "cosine", 20, 100)
    assert made.learning_rate * made.final_rate == pytest.approx(5e-7)
    assert (made.epochs, made.max_grad_norm, made.validation) == (1.0, 1.0, 0.05)


def test_sft_and_dpo_of_one_project_share_its_model_configuration():
    """configs/model/llm-jp-3-13b.yaml of llm-jp/instruct3, which sft.yaml and dpo.yaml both read."""
    published = ((0.9, 0.98), 0.1, 4096, "cosine", 20, 100)
    sft = TrainSft.model_validate({"init": "$base", "chats": "$chats", "preset": "llm-jp-instruct3"})
    for made in (sft, dpo(preset="llm-jp-instruct3")):
        found = made.betas, made.weight_decay, made.max_length, made.schedule, made.warmup_steps, made.final_steps
        assert found == published


def test_the_recipes_own_keys_win_and_maps_are_merged():
    made = smpo(preset="vikhr-nemo", beta=2.0, lora={"rank": 8}, second_bos=False, steps=50)
    assert made.beta == 2.0 and made.target_margin == 0.4 and not made.second_bos
    assert made.lora is not None and (made.lora.rank, made.lora.alpha) == (8, 96)
    assert (made.steps, made.epochs) == (50, None)
    assert smpo(preset="vikhr-nemo", lora=None).lora is None


@pytest.mark.parametrize("name", [*SMPO_PRESETS, *DPO_PRESETS])
def test_what_is_written_out_reads_back_as_the_same(name):
    made = dpo(preset=name, steps=300) if name in DPO_PRESETS else smpo(preset=name, lora=None, steps=300)
    assert type(made).model_validate(made.model_dump(mode="json")) == made


@pytest.mark.parametrize("name", REWARD_PRESETS)
def test_a_sweep_stands_in_place_of_the_rate_of_a_preset(name):
    made = TrainReward.model_validate({**GIVEN, "preset": name, "sweep": [1e-5, 2e-5]})
    assert made.sweep == (1e-5, 2e-5) and made.batch_size == REWARD_PRESETS[name]["batch_size"]
    with pytest.raises(ValidationError, match="sweep and learning_rate both set the rate"):
        TrainReward.model_validate({**GIVEN, "preset": name, "sweep": [1e-5, 2e-5], "learning_rate": 3e-4})


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ValidationError, match="vikhr-nemo"):
        smpo(preset="vikhr")
