"""Every training stage gives the same results on two ranks as on one process, and only rank 0 writes its files."""

import importlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_pairs import rows
from tiny_texts import bare_context, chats, documents
from together import together

from togi.core.errors import Interrupted
from togi.core.files import read_json, read_lines
from togi.core.ranks import ALONE, Ranks
from togi.core.records import Message, Pair
from togi.stages.context import Context
from togi.stages.table import STAGES

SHARED = {"init": "$base", "batch_size": 3, "learning_rate": 1e-3, "micro_batch_tokens": 128, "save_every": 2}
LORA = {"lora": {"rank": 4, "alpha": 8}, "learning_rate": 1e-2}
CASES: dict[str, dict[str, Any]] = {
    "sft": {"type": "train.sft", "chats": "$chats", "validation": 0.25, "evaluate_every": 1, "choose": "best"},
    "sft-lora": {"type": "train.sft", "chats": "$chats", "activation_checkpointing": True, **LORA},
    "pretrain": {
        "type": "train.pretrain",
        "sources": [{"documents": "$documents", "share": 0.6}, {"chats": "$chats", "share": 0.4}],
        "tokens": 800,
        "batch_tokens": 400,
        "max_length": 64,
    },
    "reward": {"type": "train.reward", "pairs": "$pairs", "validation": 0.3, "shuffled_control": True},
    "reward-head": {"type": "train.reward", "pairs": "$pairs", "train_layers": 0, "validation": 0.3},
    "dpo": {"type": "train.dpo", "pairs": "$pairs", "validation": 0.3, "epochs": 2},
    "dpo-lora": {"type": "train.dpo", "pairs": "$pairs", **LORA},
    "smpo": {"type": "train.smpo", "pairs": "$pairs"},
}


def pairs() -> list[Pair]:
    return [
        Pair(
            id=f"p{i}",
            prompt=(Message("user", row["prompt"]),),
            chosen=(Message("assistant", row["chosen"]),),
            rejected=(Message("assistant", row["rejected"]),),
        )
        for i, row in enumerate(rows())
    ]


def begin(folder: Path, name: str, ranks: Ranks = ALONE, **more: Any) -> tuple[Any, Context, Any]:
    """Returns settings, context and work of a case, with the stage folder under `name`."""
    case = {**SHARED, **CASES[name], **more}
    if case["type"] == "train.pretrain":
        case.pop("batch_size")
    stage = STAGES[case["type"]]
    context = ranks.in_turn(lambda: bare_context(folder, chats=chats(), documents=documents(), pairs=pairs()))
    ranks.barrier()  # all ranks have written the inputs, which a real run does once
    place = folder / f"{name}-{ranks.size}"
    place.mkdir(exist_ok=True)
    return stage.settings.model_validate(case), replace(context, folder=place, ranks=ranks), stage.work


def watch_writing(folder: Path) -> list[str]:
    """Collects what this process opens for writing, renames or removes below `folder`, except its own shards."""
    found: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.remove", "os.truncate", "shutil.rmtree"):
            path = str(arguments[0])
            if path.startswith(str(folder)) and "-00002-of-00002." not in path:
                found.append(f"{event} {path}")

    sys.addaudithook(hook)
    return found


def work(ranks: Ranks, folder: Path, name: str) -> tuple[dict[str, Any], list[str]]:
    settings, context, module = begin(folder, name, ranks)
    written = watch_writing(context.folder) if not ranks.first else []
    importlib.import_module(module).run(settings, context)
    return {"counts": context.counts, "summary": context.summary}, written


@pytest.mark.parametrize("name", CASES)
def test_a_stage_on_two_ranks_ends_with_what_it_ends_with_on_one(name, tmp_path):
    told, _ = work(ALONE, tmp_path, name)
    (first, _), (second, written) = together(2, work, tmp_path, name)
    assert written == []
    assert first == second and first["counts"] == told["counts"]
    one, two = (tmp_path / f"{name}-{size}" for size in (1, 2))
    weights, others = (load_file(folder / "output" / "model" / "model.safetensors") for folder in (one, two))
    begun = load_file(tmp_path / "model" / "model.safetensors")
    moved = max(float((weights[key] - begun[key]).abs().max()) for key in begun if key in weights)
    moved = moved or float(weights["score.weight"].abs().max())  # if only the head learns
    assert weights.keys() == others.keys()
    assert max(float((weights[key] - others[key]).abs().max()) for key in weights) <= 2e-3 * moved
    lines, found = (read_lines(folder / "metrics.jsonl") for folder in (one, two))
    assert [line["step"] for line in lines] == [line["step"] for line in found]
    for line, other in zip(lines, found, strict=True):
        assert line.keys() == other.keys() and line["num_tokens"] == other["num_tokens"]
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-3)
        for key in (key for key in line if key.startswith("validation/")):
            assert line[key] == pytest.approx(other[key], rel=1e-2, abs=1e-3)


def stopped(ranks: Ranks, folder: Path) -> tuple[str, int]:
    settings, context, module = begin(folder, "sft", ranks, save_every=100)
    context.control.stop = ranks.rank == 1
    try:
        importlib.import_module(module).run(settings, context)
    except Interrupted as error:
        return str(error), len(list((context.folder / "checkpoints").glob("step-00000001/*-of-00002.*")))
    return "", 0


def test_ranks_stop_together_when_one_is_asked_to(tmp_path):
    first, second = together(2, stopped, tmp_path)
    assert first == second == ("stage learn: stopped after step 1, which is saved", 6)


def units(ranks: Ranks, folder: Path) -> tuple[list[Any], int]:
    made = 0
    context = replace(bare_context(folder), ranks=ranks)

    def make(number: int) -> int:
        nonlocal made
        made += 1
        return sum(ranks.gather(number))

    return context.units(3, make), made


def test_units_are_made_by_all_ranks_and_written_once(tmp_path):
    bare_context(tmp_path)
    assert together(2, units, tmp_path) == [([0, 2, 4], 3)] * 2
    (tmp_path / "stage" / "units" / "batch-000001.json").write_text("7")  # not the committed content
    assert together(2, units, tmp_path) == [([0, 2, 4], 1)] * 2
    assert len(read_lines(tmp_path / "stage" / "journal.jsonl")) == 3
    assert read_json(tmp_path / "stage" / "units" / "batch-000001.json") == 2


def test_several_processes_are_a_place():
    for name in ("train.sft", "train.pretrain", "train.reward", "train.dpo", "train.smpo", "train.grpo"):
        extra = STAGES[name].settings.model_fields["processes"].json_schema_extra
        assert isinstance(extra, dict) and extra["place"] is True
