"""Stored verdicts of real judges, from ../shared, in the form that the replay judge and the stages read."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

SHARED = ROOT.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="real verdicts lie beside the project, in ../shared")

Row = dict[str, Any]


def pandalm_rows() -> list[Row]:
    """PandaLM's test set: 999 pairs with three human labels (1, 2, 0 for a tie) and GPT-3.5's (`gpt`)."""
    folder = SHARED / "pandalm"
    judged = {row["idx"]: row for row in json.loads((folder / "gpt-3.5-turbo-testset-v1.json").read_text())}
    rows = json.loads((folder / "testset-v1.json").read_text())
    return [
        {**row, "gpt": judged[row["idx"]]["gpt_result"], "reason": judged[row["idx"]]["gpt_reason"]} for row in rows
    ]


def pandalm_question(row: Row) -> str:
    return f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]


def pandalm_models(row: Row) -> tuple[str, str]:
    one, other = row["cmp_key"].split("_")
    return one, other


def pandalm_labels(row: Row) -> Iterator[Row]:
    """One row of pairs for each annotator; a tie has the margin 0."""
    for name in ("annotator1", "annotator2", "annotator3"):
        better, worse = row["response1"], row["response2"]
        if row[name] == 2:
            better, worse = worse, better
        margin = 0 if row[name] == 0 else 1
        yield {"prompt": pandalm_question(row), "chosen": better, "rejected": worse, "margin": margin}


def vicuna_files() -> list[Path]:
    return sorted((SHARED / "ja_vicuna_qa" / "model_judgment" / "pairwise" / "gpt-4").glob("*.jsonl"))


def vicuna_rows() -> list[Row]:
    """GPT-4's verdicts on 80 Japanese questions, six models against one, in both orders."""
    return [json.loads(line) for path in vicuna_files() for line in path.read_text(encoding="utf-8").splitlines()]


def shaberi_rows() -> Iterator[Row]:
    """Answers to ELYZA-tasks-100 with their questions and the grades from several judges."""
    folder = SHARED / "shaberi_judged"
    bench = "elyza__ELYZA-tasks-100"
    lines = (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = {row["index"]: row["question"] for row in map(json.loads, lines) if row["bench"] == bench}
    with gzip.open(folder / "answers_scored.jsonl.gz", "rt", encoding="utf-8") as handle:
        for row in map(json.loads, handle):
            if row["bench"] == bench:
                yield {**row, "question": questions[row["index"]]}


def write_jsonl(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
