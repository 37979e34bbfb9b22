"""Sampling with `generate` of transformers: all samples as rows of one batch."""

import time
from typing import Any

import torch
import workloads
from side import Side, versions
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList

WEIGHTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16-weights": torch.bfloat16}


class Lengths(StoppingCriteria):
    """Ends every row at its own length."""

    def __init__(self, prompt: int, lengths: list[int]) -> None:
        self.prompt = prompt
        self.lengths = torch.tensor(lengths)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return input_ids.shape[1] - self.prompt >= self.lengths


def main() -> None:
    side = Side()
    config = side.config
    net = AutoModelForCausalLM.from_pretrained(config["model"], dtype=WEIGHTS[config["precision"]]).eval()
    lengths = workloads.answer_lengths(config)
    rows = [prompt for prompt, _ in workloads.groups({**config, "answer": 0}) for _ in range(config["samples"])]
    ids = torch.tensor(rows)
    settings = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=config["longest"], pad_token_id=2)
    net.generation_config.eos_token_id = None

    def measure() -> dict[str, Any]:
        start = time.perf_counter()
        net.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            stopping_criteria=StoppingCriteriaList([Lengths(config["prompt"], lengths)]),
        )
        return {"seconds": time.perf_counter() - start, "tokens": sum(lengths)}

    side.ready(versions=versions())
    with torch.inference_mode():
        side.serve(measure)


if __name__ == "__main__":
    main()
