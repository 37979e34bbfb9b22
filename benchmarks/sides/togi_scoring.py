"""Reward scoring by togi: short answers and one long one, together and separately."""

import time
from collections.abc import Sequence as Seq
from pathlib import Path
from random import Random
from typing import Any

import workloads
from side import Side, versions

from togi.core.sources import ModelSource
from togi.model.forest import Sequence
from togi.model.load import load
from togi.model.reward_model import ModelScorer, add_scalar_head


def conversations(config: dict[str, Any]) -> list[Sequence]:
    """`short_count` answers of `short` tokens and one of `long`, each after its own prompt."""
    rng, vocabulary = Random(config["seed"]), config["vocabulary"]
    sizes = [config["short"]] * config["short_count"] + [config["long"]]
    ids = [tuple(workloads.random_ids(rng, config["prompt"] + size, vocabulary)) for size in sizes]
    return [Sequence(row, (False,) * len(row)) for row in ids]


def main() -> None:
    side = Side()
    config = side.config
    base = load(ModelSource(kind="path", name=config["model"], template="chatml"), Path(config["model"]))
    scorer = ModelScorer(add_scalar_head(base, seed=config["seed"]))
    rows = conversations(config)

    def seconds(part: Seq[Sequence]) -> float:
        start = time.perf_counter()
        scorer.score_sequences(part, range(len(part)))
        return time.perf_counter() - start

    def measure() -> dict[str, Any]:
        return {"seconds": seconds(rows), "short_seconds": seconds(rows[:-1]), "long_seconds": seconds(rows[-1:])}

    side.ready(versions=versions("togi"), tokens=sum(len(row.ids) for row in rows))
    side.serve(measure)


if __name__ == "__main__":
    main()
