"""Sampling with togi's own sampler: one prefill per group; finished rows leave the batch."""

import time
from collections.abc import Sequence
from typing import Any

import torch
import workloads
from side import Side, versions
from transformers import AutoModelForCausalLM, AutoTokenizer

from togi.core.protocols import Event
from togi.core.records import SamplingParams
from togi.rollout.local import Sampler
from togi.rollout.terminator import Ending

WEIGHTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16-weights": torch.bfloat16}


class Ragged(Sampler):
    """The sampler, with every row ended at its own length; nothing else is changed."""

    ends_at: list[list[int]]
    offset = 0

    def _advance(self, rows: Sequence[Any], crew: Any, logits_RV: torch.Tensor) -> list[Event]:
        events = super()._advance(rows, crew, logits_RV)
        for row in rows:
            group = row.group
            if row.ended or len(row.ids) < self.ends_at[group.id - self.offset][row.index]:
                continue
            row.ended = True
            ending = Ending("length", group.watch.text(group.context, row.ids))
            events.append(Event(group.id, row.index, "", row.completion(ending)))
        return events


def main() -> None:
    side = Side()
    config = side.config
    net = AutoModelForCausalLM.from_pretrained(config["model"], dtype=WEIGHTS[config["precision"]]).eval()
    samples, groups = config["samples"], config["groups"]
    sampler = Ragged(net, AutoTokenizer.from_pretrained(config["model"]), "<|eot_id|>", batch_rows=groups * samples)
    lengths = workloads.answer_lengths(config)
    sampler.ends_at = [lengths[i * samples : (i + 1) * samples] for i in range(groups)]
    prompts = [prompt for prompt, _ in workloads.groups({**config, "answer": 0})]
    params = SamplingParams(max_tokens=config["longest"], n=samples)
    repeat = 0

    def measure() -> dict[str, Any]:
        nonlocal repeat
        repeat += 1
        seeds = [[(repeat * groups + i) * samples + j for j in range(samples)] for i in range(groups)]
        start = time.perf_counter()
        answers = sampler.generate(prompts, params, seeds)
        seconds = time.perf_counter() - start
        sampler.offset += groups
        return {"seconds": seconds, "tokens": sum(len(a.token_ids) for group in answers for a in group)}

    side.ready(versions=versions("togi"))
    side.serve(measure)


if __name__ == "__main__":
    main()
