"""Optimiser steps of TRL's SFT, DPO, reward and CPO trainers on prepared token ids: their own loops and steps.

Subclasses pass ids to trainers that accept only texts; nothing else is changed. The reference pass of DPO is the
trainer's own, precomputed, and repeated before each step so that it counts; with `reference` "beside" it is the
trainer's alternative, a second model that runs within the step.
"""

from typing import Any

import torch
import trl_common
import workloads
from datasets import Dataset
from side import DTYPES, Side, keep_first_gradients, versions
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset
from trl.experimental.cpo import CPOConfig, CPOTrainer

IGNORED = -100


class PreparedDPO(DPOTrainer):
    """Accepts rows of token ids unchanged."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


class PreparedCPO(CPOTrainer):
    """Accepts the prepared pair whose number replaces the prompt."""

    pairs: list[dict[str, list[int]]]

    def tokenize_row(self, feature: Any, model: Any = None) -> dict[str, list[int]]:
        return self.pairs[int(feature["prompt"])]


def packed(config: dict[str, Any]) -> tuple[Dataset, int]:
    """Texts with their labels, and how many rows of `row` tokens the trainer will pack them into."""
    texts = [{"input_ids": ids, "labels": [IGNORED] * first + ids[first:]} for ids, first in workloads.texts(config)]
    dataset = Dataset.from_list(texts)
    return dataset, len(pack_dataset(dataset, config["row"], "bfd"))


def pair_rows(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Pairs as the trainer of the work reads them."""
    rows = []
    for number, (prompt, chosen, rejected) in enumerate(workloads.pairs(config)):
        if config["work"] == "dpo":
            rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
        elif config["work"] == "reward":
            rows.append({"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected})
        else:
            rows.append({"prompt": str(number), "chosen": "", "rejected": ""})
    return rows


def concatenated(config: dict[str, Any]) -> list[dict[str, list[int]]]:
    """Pairs as CPO's collator reads them."""
    rows = []
    for prompt, *answers in workloads.pairs(config):
        row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for name, answer in zip(("chosen", "rejected"), answers, strict=True):
            row[f"{name}_input_ids"] = prompt + answer
            row[f"{name}_attention_mask"] = [1] * len(prompt + answer)
            row[f"{name}_labels"] = [IGNORED] * len(prompt) + answer
        rows.append(row)
    return rows


def network(config: dict[str, Any]) -> Any:
    """The model; a reward model gets the same head as the other side."""
    options = {"dtype": DTYPES[config["precision"]], **config.get("load", {})}
    if config["work"] != "reward":
        return AutoModelForCausalLM.from_pretrained(config["model"], **options)
    net = AutoModelForSequenceClassification.from_pretrained(config["model"], num_labels=1, **options)
    weights = workloads.head_weights(config["seed"], net.score.in_features)
    with torch.no_grad():
        net.score.weight.copy_(torch.tensor([weights]))
    return net


def trainer_of(config: dict[str, Any]) -> tuple[Any, int]:
    """The trainer, and the tokens that its model computes in a step, padding not counted."""
    common = {"model": network(config), "processing_class": AutoTokenizer.from_pretrained(config["model"])}
    if "texts" in config:
        dataset, rows = packed(config)
        batches = -(-rows // config["batch"])
        args = SFTConfig(
            **trl_common.settings(config, batches),
            packing=True,
            max_length=config["row"],
            shuffle_dataset=False,
        )
        trainer = SFTTrainer(**common, args=args, train_dataset=dataset)
        assert len(trainer.train_dataset) == rows
        return trainer, sum(len(ids) for ids in dataset["input_ids"])
    common["train_dataset"] = Dataset.from_list(pair_rows(config))
    shared = {**trl_common.settings(config, -(-config["pairs"] // config["batch"])), "max_length": None}
    tokens = 2 * config["pairs"] * (config["prompt"] + config["answer"])
    if config["work"] == "dpo":
        beside = config.get("reference") == "beside"
        args = DPOConfig(**shared, beta=config["beta"], precompute_ref_log_probs=not beside)
        return PreparedDPO(**common, args=args), tokens
    if config["work"] == "reward":
        return RewardTrainer(**common, args=RewardConfig(**shared)), tokens
    shared["max_length"] = 2 * (config["prompt"] + config["answer"])
    args = CPOConfig(**shared, loss_type="simpo", beta=config["beta"], simpo_gamma=config["gamma"], cpo_alpha=1.0)
    PreparedCPO.pairs = concatenated(config)
    return PreparedCPO(**common, args=args), tokens


class Controlled(trl_common.Controlled):
    """Also repeats the precomputed reference pass, as part of the step."""

    trainer: Any

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.batches = []
        if getattr(self.trainer, "precompute_ref_logps", False):
            rows, size = list(self.trainer.train_dataset), args.per_device_train_batch_size
            parts = [rows[first : first + size] for first in range(0, len(rows), size)]
            self.batches = [self.trainer._prepare_inputs(self.trainer.data_collator(part)) for part in parts]
        super().on_train_begin(args, state, control, **kwargs)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_begin(args, state, control, **kwargs)
        for batch in self.batches:
            self.trainer.compute_ref_log_probs(self.trainer.model, batch)


def main() -> None:
    side = Side()
    config = side.config
    trainer, tokens = trainer_of(config)
    if "gradients" in config:
        keep_first_gradients(trainer.model, config["gradients"])
    floor = trl_common.floor_bytes(trainer.model)
    callback = Controlled(side, {}, versions=versions("trl"), floor_bytes=floor, computed_tokens=tokens)
    callback.trainer = trainer
    trainer.add_callback(callback)
    trainer.train()


if __name__ == "__main__":
    main()
