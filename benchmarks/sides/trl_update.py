"""One GRPO update by TRL's trainer: its own step on a prepared batch."""

from typing import Any

import torch
import trl_common
import workloads
from side import Side, versions
from trl import GRPOTrainer


class Prepared(GRPOTrainer):
    """Uses a given batch instead of sampling one."""

    batch: dict[str, torch.Tensor]

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.args.device) for name, tensor in self.batch.items()}


def make_batch(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The trainer's batch of samples: one row per sample."""
    pairs = [(prompt, answer) for prompt, answers in workloads.groups(config) for answer in answers]
    prompt_ids = torch.tensor([prompt for prompt, _ in pairs])
    completion_ids = torch.tensor([answer for _, answer in pairs])
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": torch.ones_like(prompt_ids),
        "completion_ids": completion_ids,
        "completion_mask": torch.ones_like(completion_ids),
        "advantages": torch.tensor(workloads.advantages(config)),
        "num_items_in_batch": torch.tensor(completion_ids.numel()),
    }


def main() -> None:
    side = Side()
    config = side.config
    net, tokenizer = trl_common.load(config)
    trainer = Prepared(
        model=net,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl_common.arguments(config),
        train_dataset=trl_common.prompts(["a"] * 64),
        processing_class=tokenizer,
    )
    trainer.batch = make_batch(config)
    computed = config["groups"] * config["samples"] * (config["prompt"] + config["answer"])
    floor = trl_common.floor_bytes(net)
    facts = {"versions": versions("trl"), "floor_bytes": floor, "computed_tokens": computed}
    trainer.add_callback(trl_common.Controlled(side, {}, **facts))
    trainer.train()


if __name__ == "__main__":
    main()
