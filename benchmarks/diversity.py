"""Diversity of 8 answers to each of 1,000 prompts, with the numbers that intervals need.

    python benchmarks/diversity.py [--repeats 3]

Both sides read the same texts (about 120 words each) and give the same figures: distinct-n, self-BLEU, spread, Vendi
score and entropy per prompt, and across prompts distinct-n, self-BLEU of 512 of them, Vendi score and homogenisation.
`togi` computes each as one number per prompt, from which intervals are computed; `naive` computes only the figures, as
their papers define them: sacrebleu for each answer, sets of n-grams, the whole kernel, pairs in a loop. Both sides get
the same embeddings; `embedding` is their time (hashed n-grams). Sides are separate processes with one thread,
interleaved; medians are compared. Results: results/diversity.json.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

import numpy as np
from harness import RESULTS, console, cpu_facts, revision, show
from sacrebleu.metrics.bleu import BLEU

from togi.data.features import HashedNgrams
from togi.evaluate.alike import unit_vectors
from togi.evaluate.benchmarks.diversity import Measure, measure
from togi.evaluate.diversity import drawn
from togi.text.compare import normalise

PROMPTS, ANSWERS, WORDS, DRAW, LIMIT = 1000, 8, 4000, 512, 30.0


def answers() -> list[str]:
    """Texts whose words follow Zipf's law; each prompt has a topic of 60 words that its answers prefer."""
    draw = random.Random(17)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(WORDS)]
    weights = [1 / (rank + 2) for rank in range(WORDS)]
    texts = []
    for _ in range(PROMPTS):
        topic = draw.choices(words, k=60)
        for _ in range(ANSWERS):
            size = draw.randint(80, 160)
            mixed = [
                draw.choice(topic) if draw.random() < 0.5 else word for word in draw.choices(words, weights, k=size)
            ]
            texts.append(" ".join(mixed) + ".")
    return texts


class Given:
    """Precomputed embeddings."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    def embed(self, texts: Any) -> np.ndarray:
        return self.vectors


def ours(texts: list[str], vectors: np.ndarray) -> dict[str, float]:
    how = Measure(samples=ANSWERS, units="words", embedder=Given(vectors), seed=1, cut=False, draw=DRAW)
    found = measure({"model": texts}, how).values["model"]
    return {name: float(np.nanmean(values)) for name, values in found.items()}


def naive(texts: list[str], vectors: np.ndarray) -> dict[str, float]:
    groups = [texts[at : at + ANSWERS] for at in range(0, len(texts), ANSWERS)]
    rows_PKD = unit_vectors(vectors, ANSWERS)
    first = [group[0] for group in groups]
    read = [first[i] for i in drawn(len(first), DRAW, 1)]
    spread = [np.mean([1 - a @ b for a, b in combinations(rows, 2)]) for rows in rows_PKD]
    sums = rows_PKD.sum(axis=1)
    alike = [sums[p] @ sums[q] for p, q in combinations(range(len(sums)), 2)]
    return {
        "distinct-2 per prompt": float(np.mean([_distinct(group, 2) for group in groups])),
        "self-BLEU per prompt": float(np.mean([_self_bleu(group) for group in groups])),
        "spread per prompt": float(np.mean(spread)),
        "Vendi score per prompt": float(np.mean([_vendi(rows) for rows in rows_PKD])),
        "answer entropy (bits)": float(np.mean([_entropy(group) for group in groups])),
        **{f"distinct-{n}": _distinct(first, n) for n in (1, 2, 3)},
        "self-BLEU": _self_bleu(read),
        "Vendi score": _vendi(rows_PKD[:, 0]),
        "homogenisation": float(np.mean(alike)) / ANSWERS**2,
    }


def _distinct(texts: list[str], n: int) -> float:
    split = [normalise(text).split() for text in texts]
    grams = [tuple(words[i : i + n]) for words in split for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams)


def _self_bleu(texts: list[str]) -> float:
    bleu = BLEU(effective_order=True)
    scores = [bleu.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)]
    return float(np.mean(scores))


def _vendi(rows: np.ndarray) -> float:
    values = np.linalg.eigvalsh(rows @ rows.T / len(rows))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def _entropy(texts: list[str]) -> float:
    shares = np.array(list(Counter(normalise(text) for text in texts).values())) / len(texts)
    return float(-(shares * np.log2(shares)).sum())


def run(side: str) -> dict[str, Any]:
    """One repeat, in this process."""
    texts = answers()
    start = time.perf_counter()
    vectors = HashedNgrams().embed(texts)
    embedding, start = time.perf_counter() - start, time.perf_counter()
    worked = time.process_time()
    figures = {"togi": ours, "naive": naive}[side](texts, vectors)
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    return {"seconds": seconds, "processor_seconds": worked, "embedding": embedding, "figures": figures}


SIDES = ("togi", "naive")


def main() -> None:
    """Command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=3, help="repeats of each side, interleaved")
    options.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.side:
        print(json.dumps(run(given.side)))
        return
    load, rows = cpu_facts()["load_average"], {side: [] for side in SIDES}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    for turn in range(given.repeats):
        for side in SIDES[:: 1 if turn % 2 == 0 else -1]:
            command = [sys.executable, __file__, "--side", side]
            done = subprocess.run(command, env=os.environ | threads, capture_output=True, check=True)
            rows[side].append(json.loads(done.stdout))
    report(rows, load)


def report(rows: dict[str, list[dict[str, Any]]], load: float) -> None:
    """Prints and writes the results."""
    keys = ("seconds", "processor_seconds", "embedding")
    median = {side: {key: statistics.median(row[key] for row in found) for key in keys} for side, found in rows.items()}
    one, other = (rows[side][0]["figures"] for side in SIDES)
    apart = max(abs(one[name] - other[name]) for name in other)
    table = [[side, *(f"{median[side][key]:.2f}" for key in keys)] for side in SIDES]
    show(f"{PROMPTS:,} x {ANSWERS} answers", ["side", "seconds", "processor's", "embedding"], table)
    whole = median["togi"]["seconds"] + median["togi"]["embedding"]
    console.print(f"togi with embedding: {whole:.1f} s of {LIMIT:g}; figures apart by {apart:.1e} at most")
    record = {
        "name": "diversity",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": revision(),
        "command": ["diversity.py", *sys.argv[1:]],
        "machine": cpu_facts() | {"load_average": load},
        "medians": median,
        "largest_difference": apart,
        "limit": LIMIT,
        "rows": rows,
    }
    path = RESULTS / "diversity.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"written to {path.relative_to(RESULTS.parent.parent)}")


if __name__ == "__main__":
    main()
