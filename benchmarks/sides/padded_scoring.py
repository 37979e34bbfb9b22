"""Reward scoring as a padded batch of transformers: every row is as long as the longest."""

import time
from random import Random
from typing import Any

import torch
import workloads
from side import Side, versions
from transformers import AutoModelForSequenceClassification


def batch(config: dict[str, Any], sizes: list[int]) -> dict[str, torch.Tensor]:
    """Rows of prompt and answer, padded on the right."""
    rng, vocabulary = Random(config["seed"]), config["vocabulary"]
    rows = [torch.tensor(workloads.random_ids(rng, config["prompt"] + size, vocabulary)) for size in sizes]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=2)
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}


def main() -> None:
    side = Side()
    config = side.config
    net = AutoModelForSequenceClassification.from_pretrained(
        config["model"], num_labels=1, dtype=torch.float32, pad_token_id=2
    ).eval()
    short, long = [config["short"]] * config["short_count"], [config["long"]]
    works = {"seconds": short + long, "short_seconds": short, "long_seconds": long}

    def measure() -> dict[str, Any]:
        times = {}
        for name, sizes in works.items():
            inputs = batch(config, sizes)
            start = time.perf_counter()
            net(**inputs)
            times[name] = time.perf_counter() - start
        return times

    side.ready(versions=versions())
    with torch.inference_mode():
        side.serve(measure)


if __name__ == "__main__":
    main()
