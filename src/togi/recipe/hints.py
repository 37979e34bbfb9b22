"""Hints on what was probably meant: settings of TRL, LLaMA-Factory and similar tools, and values of another type."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

FOREIGN = {
    "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "micro_batch_size": "batch_size",
    "gradient_accumulation_steps": "batch_size",
    "per_device_eval_batch_size": "micro_batch_tokens",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "max_steps": "steps",
    "max_train_steps": "steps",
    "lr": "learning_rate",
    "lr_scheduler_type": "schedule",
    "lr_scheduler": "schedule",
    "warmup_ratio": "warmup_steps",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "cutoff_len": "max_length",
    "sequence_len": "max_length",
    "gradient_checkpointing": "activation_checkpointing",
    "optim": "optimizer",
    "adam_beta1": "betas",
    "adam_beta2": "betas",
    "adam_epsilon": "eps",
    "save_steps": "save_every",
    "save_total_limit": "keep",
    "eval_steps": "evaluate_every",
    "val_size": "validation",
    "eval_split": "validation",
    "load_best_model_at_end": "choose",
    "metric_for_best_model": "choose_by",
    "report_to": "track",
    "bf16": "compute",
    "fp16": "compute",
    "dtype": "weights",
    "torch_dtype": "weights",
    "nproc_per_node": "processes",
    "num_processes": "processes",
    "model": "init",
    "model_name": "init",
    "model_name_or_path": "init",
    "dataset": "data",
    "dataset_name": "data",
    "train_dataset": "data",
    "chat_template": "template",
    "trust_remote_code": "package",
    "finetuning_type": "lora",
    "use_peft": "lora",
    "peft_config": "lora",
    "lora_rank": "lora.rank",
    "lora_r": "lora.rank",
    "r": "rank",
    "lora_alpha": "lora.alpha",
    "lora_target": "lora.targets",
    "lora_target_modules": "lora.targets",
    "target_modules": "targets",
    "use_rslora": "rank_stabilised",
    "load_in_4bit": "lora.base",
    "quantization_bit": "lora.base",
    "neftune_noise_alpha": "learning_rate",
    "pref_beta": "beta",
    "pref_loss": "loss",
    "loss_type": "loss",
    "rpo_alpha": "sft_weight",
    "pref_ftx": "sft_weight",
    "ref_model": "reference",
    "num_generations": "group_size",
    "max_completion_length": "sampling.max_tokens",
    "max_new_tokens": "max_tokens",
    "epsilon": "loss.eps",
    "epsilon_high": "loss.eps_high",
    "kl_coef": "loss.beta",
    "num_iterations": "epochs_per_batch",
    "reward_funcs": "reward.terms",
    "reward_weights": "reward.terms",
    "center_rewards_coefficient": "centring",
}
"""Names of settings in other tools -> ours, dotted if ours is nested or at the top of a recipe."""

MORE = {
    "gradient_accumulation_steps": "the examples of one step over all processes; micro_batch_tokens splits them to fit",
    "per_device_train_batch_size": "the examples of one step over all processes; micro_batch_tokens splits them to fit",
    "micro_batch_size": "the examples of one step; micro_batch_tokens splits them to fit",
    "warmup_ratio": "a number of steps, not a fraction",
    "num_train_epochs": "a whole number",
    "lr_scheduler_type": "cosine, linear or constant",
    "report_to": "at the top of the recipe",
    "bf16": "at the top of the recipe: compute: bfloat16",
    "fp16": "at the top of the recipe: compute: bfloat16",
    "dataset": "declare it at the top under data:, and refer to it as $name",
    "dataset_name": "declare it at the top under data:, and refer to it as $name",
    "train_dataset": "declare it at the top under data:, and refer to it as $name",
    "model": "declare it at the top under models:, and refer to it as $name",
    "model_name": "declare it at the top under models:, and refer to it as $name",
    "model_name_or_path": "declare it at the top under models:, and refer to it as $name",
    "chat_template": "in the entry under models:",
    "finetuning_type": "lora: {} trains adapters; without it all weights are trained",
    "use_peft": "lora: {} trains adapters; without it all weights are trained",
    "load_in_4bit": "lora: {base: nf4}",
    "quantization_bit": "lora: {base: nf4}",
}
"""Notes on some of these settings."""

ABSENT = {
    "neftune_noise_alpha": "noise on embeddings is not supported; remove it",
    "trust_remote_code": "togi never runs code of models; remove it",
}
"""Settings without a counterpart in togi, with advice."""


def unknown_key(found: str, allowed: Sequence[str]) -> str:
    """The text after "unknown key": the setting that was probably meant, and the allowed ones."""
    return f"{meant(found, allowed)} (allowed: {', '.join(allowed)})"


def meant(found: str, allowed: Sequence[str]) -> str:
    """ "; did you mean ...?", or empty. Names of other tools are tried first, then similar spellings."""
    if found in ABSENT:
        return f"; {ABSENT[found]}"
    ours = FOREIGN.get(found)
    if ours is not None and (ours.partition(".")[0] in allowed or found in MORE):
        more = f" ({MORE[found]})" if found in MORE else ""
        return f"; did you mean {ours!r}?{more}"
    close = difflib.get_close_matches(found, allowed, n=1, cutoff=0.6)
    ends = [name for name in allowed if found and name.lower().endswith(f".{found.lower()}")]
    best = [*ends, *close]
    return f"; did you mean {best[0]!r}?" if best else ""


def shape(key: str, found: Any, wanted: str) -> str:
    """A hint for a value of the wrong type, chosen by the message `wanted`; empty if there is none."""
    if found is True and "map" in wanted:
        return f"; did you mean `{key}: {{}}`, all of its defaults?"
    if found is False and "map" in wanted:
        return f"; did you mean `{key}: null`?"
    if "text" in wanted and isinstance(found, int | float):
        return "; put it in quotes"
    numeric = "number" in wanted or "integer" in wanted
    if numeric and isinstance(found, str) and re.fullmatch(r"[-+]?[0-9]+,[0-9]+", found):
        return f"; a decimal number has a point: {found.replace(',', '.')}"
    return ""


def outside_name(found: str) -> str:
    """A hint for a value that was given in place of a reference `$name`: a hub id or a path must be declared first."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", found):
        return f"; did you mean to declare it, as models: {{base: {{hub: {found}}}}}, and to refer to it as $base?"
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", found):
        return f"; did you mean '${found}'?"
    return ""
