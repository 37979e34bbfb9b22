"""Suggestions for mistakes: other libraries' names, short names of stages, values of another shape."""

import re

import pytest

from togi.cli.list import stage_settings
from togi.commands.schema import REFERENCE, recipe_schema
from togi.core.errors import InputError, RecipeError
from togi.recipe.foreign import ABSENT, ELSEWHERE, FOREIGN, MORE, VALUES
from togi.recipe.graph import build
from togi.recipe.hints import PATTERNS, meant, outside_name
from togi.recipe.names import NAME
from togi.recipe.schema import ModelSpec, RecipeHead, validate
from togi.recipe.source import read_tree
from togi.stages.table import STAGES

OURS = {key for name in STAGES for key in stage_settings(name)["settings"]}
OURS |= {"rank", "alpha", "targets", "rank_stabilised", "token_rows", "terms", "max_tokens", "limit"}
OURS |= {*RecipeHead.model_fields, *ModelSpec.model_fields}
WORDS = {word for name in STAGES for row in stage_settings(name)["settings"].values() for word in row["allowed"]}


def test_every_name_that_is_suggested_exists_and_is_not_the_foreign_one():
    assert [name for names in FOREIGN.values() for name in names if name not in OURS] == []
    assert [name for name in MORE if name not in FOREIGN] == []
    assert [name for name in ABSENT if name in FOREIGN] == []
    assert [value for value in VALUES.values() if value not in WORDS] == []


def told(tmp_path, **stage: object) -> str:
    settings = {"type": "train.sft", "init": "$base", "chats": "$chats", **stage}
    text = "name: a\nmodels:\n  base: {path: .}\ndata:\n  chats: {path: r.yaml}\nstages:\n  one: "
    (tmp_path / "r.yaml").write_text(text + str(settings).replace("True", "true") + "\n")
    with pytest.raises(RecipeError) as found:
        validate(read_tree(tmp_path / "r.yaml"))
    return str(found.value)


@pytest.mark.parametrize(
    ("stage", "hint"),
    [
        ({"type": "sft"}, "did you mean 'train.sft'?"),
        ({"lora": {"r": 16}}, "lora.r: unknown key; did you mean 'rank'?"),
        ({"lora": {"lora_alpha": 16}}, "lora.lora_alpha: unknown key; did you mean 'alpha'?"),
        ({"lora": {"lora_rank": 16}}, "lora.lora_rank: unknown key; did you mean 'rank'?"),
        ({"lora": {"lora_target": "all"}}, "lora.lora_target: unknown key; did you mean 'targets'?"),
        ({"lora": {"modules_to_save": ["lm_head"]}}, "did you mean 'token_rows'? (tokens whose rows"),
        ({"lora": {"bias": "none"}}, "adapters train no biases; remove it"),
        ({"lora_alpha": 16}, "did you mean 'lora.alpha'?"),
        ({"lora": True}, "did you mean `lora: {}`, all of its defaults?"),
        ({"per_device_train_batch_size": 4}, "did you mean 'batch_size'? (the examples of one step"),
        ({"num_train_epochs": 4}, "did you mean 'epochs'?"),
        ({"cutoff_len": 4}, "did you mean 'max_length'?"),
        ({"lora_rank": 4}, "did you mean 'lora.rank'?"),
        ({"neftune_noise_alpha": 5}, "noise on embeddings is not supported"),
        ({"chats": "chats"}, "did you mean '$chats'?"),
        ({"init": "Qwen/Qwen3-0.6B"}, "models: {base: {hub: Qwen/Qwen3-0.6B}}"),
        ({"init": "./my-model"}, "models: {base: {path: ./my-model}}"),
        ({"chats": "HuggingFaceH4/ultrachat_200k"}, "data: {chats: {hub: HuggingFaceH4/ultrachat_200k}}"),
        ({"chats": "data/chats.jsonl"}, "data: {chats: {path: data/chats.jsonl}}"),
        ({"epoch": 1}, "did you mean 'epochs'?"),
        ({"warmup": 1}, "did you mean 'warmup_steps'?"),
        ({"warmup_steps": 0.1}, "it is a number of steps, not a share"),
        ({"validation": "5%"}, "should be a valid number, or a reference like $name"),
        ({"weights": "bf16"}, "found 'bf16'; did you mean 'bfloat16'?"),
        ({"optimizer": "adamw_bnb_8bit"}, "did you mean 'adamw-8bit'?"),
        ({"schedule": "cosin"}, "did you mean 'cosine'?"),
        ({"packing": True}, "togi always packs examples"),
        ({"lora_dropout": 0.1}, "no dropout in togi"),
        ({"template": "chatml"}, "template belongs in an entry under models:"),
        ({"track": "wandb"}, "track belongs at the top of the recipe"),
        ({"mask_history": True}, "an answer is context only if its turn in the data has train: false"),
        ({"pure_bf16": True}, "did you mean 'weights'? (weights: bfloat16)"),
        ({"enable_liger_kernel": True}, "togi chooses its kernels itself"),
        ({"type": "train.smpo", "simpo_gamma": 1}, "did you mean 'target_margin'? (in a stage of the type train.smpo"),
        ({"type": "train.dpo", "simpo_gamma": 1}, "did you mean 'target_margin'? (in a stage of the type train.smpo"),
        ({"type": "train.dpo", "precompute_ref_log_probs": True}, "always computes them once"),
        ({"type": "train.dpo", "sync_ref_model": True}, "the reference is always the initial model"),
        ({"type": "train.dpo", "loss": ["sigmoid"]}, "found ['sigmoid']"),
        ({"type": "train.grpo", "loss": "dapo"}, "found 'dapo'; did you mean `loss: {type: dapo}`?"),
    ],
)
def test_mistakes_are_answered_with_what_was_meant(tmp_path, stage, hint):
    assert hint in told(tmp_path, **stage)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("per_device_train_batch_size", "prompts_per_step"),
        ("num_train_epochs", "steps"),
        ("beta", "loss.beta"),
        ("delta", "loss.delta"),
        ("temperature", "sampling.temperature"),
        ("kl_loss_coef", "loss.beta"),
        ("reward_funcs", "reward.terms"),
        ("loss_type", "loss.type"),
        ("steps_per_generation", "minibatches"),
        ("vllm_mode", "engine"),
        ("vllm_server_base_url", "engine"),
    ],
)
def test_a_name_of_grpo_elsewhere_is_answered_with_the_setting_of_grpo(tmp_path, key, hint):
    assert f"{key}: unknown key; did you mean '{hint}'?" in told(tmp_path, **{"type": "train.grpo", key: 1})


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("max_prompt_length", "only train.dpo and train.smpo cut prompts"),
        ("log_completions", "train.grpo stores all samples, see `togi show RECIPE STAGE.samples`"),
        ("top_entropy_quantile", "no loss selects tokens by their entropy"),
        ("sync_ref_model", "the reference is always the initial model"),
    ],
)
def test_a_name_without_a_counterpart_in_grpo_says_what_togi_does(tmp_path, key, hint):
    assert f"{key}: unknown key; {hint}" in told(tmp_path, **{"type": "train.grpo", key: 1})


@pytest.mark.parametrize("kind", ["train.sft", "train.dpo", "train.smpo", "train.grpo", "train.reward", "evaluate"])
def test_no_name_of_another_tool_is_answered_with_a_setting_that_the_stage_does_not_have(tmp_path, kind):
    own = stage_settings(kind)["settings"]
    keys = [name for name in FOREIGN if name not in own and name not in ELSEWHERE]
    lines = told(tmp_path, **{"type": kind, **dict.fromkeys(keys, 1)}).splitlines()
    said = [(line, found[1]) for line in lines if (found := re.search(r"did you mean '([^']+)'", line))]
    assert said and [line for line, name in said if name not in own] == []


@pytest.mark.parametrize("name", ["packing_method", "plot_loss", "chosen_key", "critic_warmup", "processing_class"])
def test_words_that_only_share_letters_are_not_suggested(name):
    assert meant(name, list(STAGES["train.sft"].settings.model_fields)) == ""


def test_a_key_at_the_top_that_is_a_setting_of_a_stage_is_told_its_place(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "base_model: a/b\nlearning_rate: 2.0e-4\nlora_r: 16\nmax_prompt_length: 9\ntemplate: x\n"
    )
    with pytest.raises(RecipeError) as found:
        validate(read_tree(tmp_path / "r.yaml"))
    wrong = str(found.value)
    assert "base_model: unknown key; did you mean 'models'? (declare it at the top under models:" in wrong
    assert "learning_rate: unknown key; a setting of a stage: write stages: {NAME: {type: TYPE, learning_rate:" in wrong
    assert "max_prompt_length: unknown key; a setting of a stage: write stages:" in wrong
    assert "lora_r: unknown key; a setting of a stage: write stages: {NAME: {type: TYPE, lora: {rank: ...}}}" in wrong
    assert "template: unknown key; template belongs in an entry under models:" in wrong


def test_a_suggestion_replaces_a_long_list_of_keys(tmp_path):
    assert "allowed" not in told(tmp_path, stesp=1) and "allowed: type, seed" in told(tmp_path, zzz=1)


def test_a_hub_id_given_as_a_folder_is_told(tmp_path):
    text = "name: a\nmodels:\n  base: {path: Qwen/Qwen3-0.6B}\ndata:\n  chats: {path: r.yaml}\nstages:\n"
    (tmp_path / "r.yaml").write_text(text + "  one: {type: train.sft, init: $base, chats: $chats}\n")
    with pytest.raises(InputError, match=r"did you mean a model on the hub, `hub: Qwen/Qwen3-0\.6B`\?"):
        build(validate(read_tree(tmp_path / "r.yaml")))


def test_nothing_is_suggested_where_nothing_is_near():
    assert meant("zzz", ["alpha", "beta"]) == "" and outside_name("a b") == ""


EVALUATES = """\
name: a
models:
  base: {path: .}
data:
  asked: {path: r.yaml}
stages:
  one: {type: evaluate, models: [$base], benchmarks: [ENTRY]}
"""


@pytest.mark.parametrize(
    ("entry", "hint"),
    [
        ("{type: answers, questions: $asked}", "questions: unknown key; did you mean 'prompts'?"),
        ("{type: answers, prompts: $asked, question: 1}", "question: unknown key (allowed: "),
        ("{type: rag, prompts: $asked}", "prompts: unknown key; did you mean 'questions'?"),
        ("{type: answers, prompts: $asked, chunk_chars: 9}", "chunk_chars: unknown key (allowed: "),
        ("{type: answers, prompts: $asked, max_tokenz: 9}", "max_tokenz: unknown key; did you mean 'max_tokens'?"),
    ],
)
def test_a_key_of_a_union_is_answered_with_the_keys_of_its_own_type(tmp_path, entry, hint):
    (tmp_path / "r.yaml").write_text(EVALUATES.replace("ENTRY", entry))
    with pytest.raises(RecipeError) as found:
        validate(read_tree(tmp_path / "r.yaml"))
    assert f"stages.one.benchmarks.0.{hint}" in str(found.value)
    assert "documents" not in str(found.value) or "rag" in entry


def test_the_refused_key_is_never_suggested():
    assert meant("questions", ["questions", "seed"]) == ""


@pytest.mark.parametrize(
    ("found", "hint"),
    [
        (10, "found 10; for 10 rows, divide 10 by the number of rows: of 200 they are a share of 0.05"),
        (1.0, "found 1.0"),
        (1.5, "found 1.5"),
        (0, "found 0; remove the key to keep nothing"),
    ],
)
def test_a_number_of_rows_in_place_of_a_share_is_told(tmp_path, found, hint):
    share = "validation: should be a share, more than 0 and less than 1, or a reference like $name"
    assert told(tmp_path, validation=found).endswith(f"{share}, {hint}")
    assert "write a share as a number: 0.1" in told(tmp_path, validation="10%")


def patterns(value: object) -> set[str]:
    """All patterns in a JSON schema."""
    if isinstance(value, dict):
        own = {value["pattern"]} if value.get("type") == "string" and "pattern" in value else set()
        return own.union(*map(patterns, value.values()))
    return set().union(*map(patterns, value)) if isinstance(value, list) else set()


def test_every_pattern_of_a_setting_is_told_in_words():
    """A name and a reference have their own messages."""
    assert patterns(recipe_schema()) - {NAME, REFERENCE} == set(PATTERNS)
