"""Whole GRPO steps by TRL's trainer: sample, reward, update."""

import time
from typing import Any

import trl_common
import workloads
from side import Side, versions
from trl import GRPOTrainer


class Timed(GRPOTrainer):
    """The trainer, with timers for its sampling and its rewards."""

    phases: dict[str, float]

    def _generate(self, prompts: Any) -> Any:
        start = time.perf_counter()
        result = super()._generate(prompts)
        self.phases["sample"] = self.phases.get("sample", 0.0) + time.perf_counter() - start
        self.tokens = sum(len(ids) for ids in result[1])
        return result

    def _calculate_rewards(self, *args: Any) -> Any:
        start = time.perf_counter()
        result = super()._calculate_rewards(*args)
        self.phases["reward"] = self.phases.get("reward", 0.0) + time.perf_counter() - start
        return result


def reward(completions: list[str], **_: Any) -> list[float]:
    """The reward that both sides use."""
    return [workloads.reward(text) for text in completions]


def main() -> None:
    side = Side()
    config = side.config
    net, tokenizer = trl_common.load(config)
    texts = workloads.prompt_texts(config, 64 * config["groups"])
    phases: dict[str, float] = {}
    trainer = Timed(
        model=net,
        reward_funcs=reward,
        args=trl_common.arguments(config, generation_kwargs={"min_new_tokens": config["answer"]}),
        train_dataset=trl_common.prompts(texts),
        processing_class=tokenizer,
    )
    trainer.phases = phases
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    facts = {
        "versions": versions("trl"),
        "floor_bytes": trl_common.floor_bytes(net),
        "mean_prompt_tokens": sum(lengths) / len(lengths),
    }
    trainer.add_callback(trl_common.Controlled(side, phases, **facts))
    trainer.train()


if __name__ == "__main__":
    main()
