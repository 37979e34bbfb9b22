"""Data at scale: near-duplicates against datasketch, selection to a budget, rules of curation.

    python benchmarks/data.py [--rows 100000] [--repeats 3] [--texts FOLDER ...] [--only minhash k_centre ...]

`minhash`: paragraphs with planted copies (a tenth of the rows, some words left out, doubled or changed). Both sides
read the same texts, use the same character 5-grams and the same bands of the same length, and keep the first of similar
texts. togi also compares each candidate exactly in that time; datasketch's candidates count without a comparison.
Recall is the share that a side finds of the planted copies above the threshold in true Jaccard similarity. `k_centre`:
a tenth of the rows x 384, float16. `facility`: the same, over 64 neighbours each, with the recall of the neighbours
against a full comparison. `rules`: the rules of `curate`, from a file of records to rows of the codec, in one process.

Each side is a separate process; repeats are interleaved, medians are reported. `processor` are CPU seconds, which other
work on the machine affects less. Memory is the peak above the process's earlier size. Paragraphs come from the text of
installed Python packages and of `--texts`. Results: results/data.json.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from harness import HERE, RESULTS, cpu_facts, revision, show

from togi.core.codec import write_records
from togi.core.records import Message, Prompt
from togi.data.diversify import facility_location, farthest_points, nearest
from togi.data.duplicates import copies_by_ngrams, unit_rows
from togi.data.minhash import Layout
from togi.stages.data.curate import Curate
from togi.stages.shards import SHARD_ROWS, ShardTask, do_shard
from togi.text.compare import comparable, jaccard, ngrams

NGRAM, THRESHOLD, WIDTH = 5, 0.7, 384
SUFFIXES = (".txt", ".md", ".rst", ".py", ".jsonl")


def paragraphs(folders: list[str], count: int) -> list[str]:
    """Different paragraphs of 80 to 2,000 characters, shuffled with a fixed seed."""
    found: dict[str, None] = {}
    for folder in [*folders, sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"]]:
        for path in sorted(each for each in Path(folder).rglob("*") if each.suffix in SUFFIXES and each.is_file()):
            text = path.read_text(encoding="utf-8", errors="ignore")
            parts = _strings(text) if path.suffix == ".jsonl" else text.split("\n\n")
            found |= {part.strip(): None for part in parts if 80 <= len(part.strip()) <= 2000}
            if len(found) > 3 * count:
                break
    texts = list(found)
    random.Random(1).shuffle(texts)
    return texts[:count]


def _strings(lines: str) -> Iterator[str]:
    """The lines of all strings in a file of JSON lines."""
    waiting: list[Any] = []
    for line in lines.splitlines():
        try:
            waiting.append(json.loads(line))
        except json.JSONDecodeError:
            continue
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict | list):
                waiting += value.values() if isinstance(value, dict) else value
            elif isinstance(value, str):
                yield from value.split("\n")


def planted(texts: list[str]) -> tuple[list[str], list[tuple[int, int]]]:
    """The texts with a copy of each tenth one put in at random, and the positions of each copy and its original."""
    rng = random.Random(2)
    originals = list(range(0, len(texts), 10))
    rows = [(text, number, -1) for number, text in enumerate(texts)]
    rows += [(_changed(texts[number], rng), -1, number) for number in originals]
    rng.shuffle(rows)
    places = {number: place for place, (_, number, _) in enumerate(rows) if number >= 0}
    copies = [(place, places[of]) for place, (_, _, of) in enumerate(rows) if of >= 0]
    return [text for text, _, _ in rows], copies


def _changed(text: str, rng: random.Random) -> str:
    """The text with up to one in twelve of its pieces left out, doubled or changed."""
    pieces = text.split(" ") if text.count(" ") > len(text) / 20 else [*text]
    for _ in range(rng.randint(1, max(1, len(pieces) // 12))):
        at = rng.randrange(len(pieces))
        pieces[at : at + 1] = rng.choice([[], [pieces[at], pieces[at]], [pieces[at][::-1]]])
    return (" " if " " in text and len(pieces) < len(text) else "").join(pieces)


# --- sides ------------------------------------------------------------------------------------------------------------


def timed(work: Callable[[], Any]) -> dict[str, Any]:
    """Seconds, and the memory peak above the size before, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: making the rows took more than they hold
    before = memory("VmRSS")
    start, used = time.perf_counter(), time.process_time()
    value = work()
    return {
        "seconds": time.perf_counter() - start,
        "processor": time.process_time() - used,
        "MiB": (memory("VmHWM") - before) / 1024,
        "value": value,
    }


def memory(name: str) -> int:
    """KiB of this process, now (VmRSS) or at its peak (VmHWM), from Linux."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0])


def minhash_togi(options: argparse.Namespace) -> dict[str, Any]:
    texts, copies = planted(paragraphs(options.texts, options.rows))
    done = timed(lambda: copies_by_ngrams(texts, THRESHOLD, NGRAM))
    of = done.pop("value").of.tolist()
    pairs = over_threshold(texts, copies)
    return done | {"pairs": len(pairs), "found": sum(of[a] >= 0 or of[b] >= 0 for a, b in pairs), "rows": len(texts)}


def minhash_datasketch(options: argparse.Namespace) -> dict[str, Any]:
    from datasketch import MinHash, MinHashLSH  # noqa: PLC0415 - only this side needs it

    texts, copies = planted(paragraphs(options.texts, options.rows))
    layout = Layout.at(THRESHOLD)

    def work() -> list[list[int]]:
        index = MinHashLSH(num_perm=layout.permutations, params=(layout.bands, layout.rows))
        found = []
        for row, text in enumerate(texts):
            plain = comparable(text)
            grams = {plain[i : i + NGRAM].encode() for i in range(max(len(plain) - NGRAM + 1, 1))}
            sketch = MinHash(num_perm=layout.permutations)
            sketch.update_batch(list(grams))
            found.append(index.query(sketch))
            if not found[-1]:
                index.insert(row, sketch)
        return found

    done = timed(work)
    of = done.pop("value")
    pairs = over_threshold(texts, copies)
    return done | {"pairs": len(pairs), "found": sum(bool(of[a] or of[b]) for a, b in pairs), "rows": len(texts)}


def over_threshold(texts: list[str], copies: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The planted pairs whose true similarity is over the threshold."""
    grams = {row: ngrams(comparable(texts[row]), NGRAM) for pair in copies for row in pair}
    return [(a, b) for a, b in copies if jaccard(grams[a], grams[b]) > THRESHOLD]


def vectors(rows: int) -> np.ndarray:
    """Points clustered around a hundredth as many centres, like sentence embeddings; float16."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(max(1, rows // 100), WIDTH)).astype(np.float32)
    found = np.empty((rows, WIDTH), dtype=np.float16)
    for first in range(0, rows, 10_000):
        size = min(10_000, rows - first)
        noise = rng.normal(size=(size, WIDTH)).astype(np.float32)
        found[first : first + size] = unit_rows(centres[rng.integers(0, len(centres), size)] + 0.7 * noise)
    return found


def k_centre(options: argparse.Namespace) -> dict[str, Any]:
    points = vectors(options.rows)
    done = timed(lambda: farthest_points(points, options.rows // 10))
    return done | {"value": len(done["value"]), "rows": options.rows}


def facility(options: argparse.Namespace) -> dict[str, Any]:
    points = vectors(options.rows)
    done = timed(lambda: facility_location(points, options.rows // 10))
    near_NK, _ = nearest(points, 64)
    some = np.random.default_rng(4).choice(options.rows, 500, False)
    exact = np.argsort(-(unit_rows(points[some]) @ unit_rows(points).T), axis=1)[:, :64]
    recall = np.mean(
        [len({*near_NK[row].tolist()} & {*row_64.tolist()}) / 64 for row, row_64 in zip(some, exact, strict=True)]
    )
    return done | {"value": len(done["value"]), "recall": float(recall), "rows": options.rows}


def rules(options: argparse.Namespace) -> dict[str, Any]:
    texts = paragraphs(options.texts, options.rows)
    asked = [
        Prompt(id=f"p{i}", messages=(Message("user", f"What does this mean: {t[:200]}?"),)) for i, t in enumerate(texts)
    ]
    path = RESULTS / ".rules.parquet"
    write_records(path, "prompts", asked)
    settings = Curate.model_validate({"input": "$x", "method": "rules"})

    def work() -> int:
        common = {"rows": "togi.stages.data.curate_rows", "settings_class": "togi.stages.data.curate:Curate"}
        common |= {"settings": settings.model_dump(mode="json"), "stage": "s", "producer": "p", "seed": 1}
        firsts = range(0, len(asked), SHARD_ROWS)
        tasks = [
            ShardTask(**common, source=str(path), number=n, first=first, count=SHARD_ROWS)
            for n, first in enumerate(firsts)
        ]
        return sum(len(do_shard(task)["kept"]) for task in tasks)

    try:
        done = timed(work)
    finally:
        path.unlink()
    return done | {"rows": len(asked), "rows_per_second": len(asked) / done["processor"]}


SIDES: dict[str, dict[str, Callable[[argparse.Namespace], dict[str, Any]]]] = {
    "minhash": {"togi": minhash_togi, "datasketch": minhash_datasketch},
    "k_centre": {"togi": k_centre},
    "facility": {"togi": facility},
    "rules": {"togi": rules},
}


# --- all of them ------------------------------------------------------------------------------------------------------


def measured(options: argparse.Namespace, name: str) -> dict[str, list[dict[str, Any]]]:
    """Every repeat of each side of one benchmark."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES[name]}
    for _ in range(options.repeats):
        for side in found:
            command = [sys.executable, str(HERE / "data.py"), "--side", name, side, "--rows", str(options.rows)]
            command += ["--texts", *options.texts]
            ended = subprocess.run(command, capture_output=True, text=True, check=True)
            found[side].append(json.loads(ended.stdout.splitlines()[-1]))
    return found


def table(found: dict[str, dict[str, list[dict[str, Any]]]]) -> list[list[str]]:
    rows = []
    for name, sides in found.items():
        for side, repeats in sides.items():
            seconds, used = (
                f"{statistics.median(each[key] for each in repeats):.1f}" for key in ("seconds", "processor")
            )
            last = repeats[-1]
            told = [f"{last[key]:.4g}" for key in ("recall", "rows_per_second") if key in last]
            told += [f"{last['found']} of {last['pairs']} pairs"] if "found" in last else []
            rows.append([name, side, str(last["rows"]), seconds, used, f"{last['MiB']:.0f}", ", ".join(told)])
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--texts", nargs="*", default=[], help="folders with further texts")
    parser.add_argument("--only", nargs="*", choices=[*SIDES], default=[*SIDES])
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--note", default="", help="what else the machine was doing")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(SIDES[options.side[0]][options.side[1]](options)))
        return
    found = {name: measured(options, name) for name in options.only}
    show("data", ["work", "side", "rows", "seconds", "processor", "MiB", ""], table(found))
    path = RESULTS / "data.json"
    before = json.loads(path.read_text())["sides"] if path.exists() else {}
    note = {"note": options.note, "date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": revision()}
    sides = before | {name: {**note, **sides} for name, sides in found.items()}
    path.write_text(json.dumps({"machine": cpu_facts(), "sides": sides}, indent=1) + "\n")


if __name__ == "__main__":
    main()
