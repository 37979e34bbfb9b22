"""Runs a stage's work over a file of rows and prints its peak memory above the starting level.

`python tests/memory_of_stages.py` reads lines of JSON, `["STAGE", "FOLDER", false]`, and runs each in its own process,
forked from this one, which has imported the modules of stages; `write_rows` makes the folder. Buffers of some thousand
rows (a row group, a batch, a tile of vectors) do not grow with the number of rows; with true they hold some hundred
rows, so that a few rows show how much memory each takes.
"""

import importlib
import json
import os
import random
import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

from judges import SpokenJudge, sample, shown

from togi.core import aside, record_streams
from togi.core.record_streams import record_writer
from togi.core.records import Document, Message, Prompt, Verdict
from togi.core.settings import Ref
from togi.core.sources import ModelSource
from togi.data import diversify, duplicates
from togi.stages import drops, judging_work
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Control, Resolved
from togi.stages.data import curate_work, harvest_work, rows
from togi.stages.table import STAGES

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "import": ("import", {"kind": "prompts"}),
    "curate": ("curate", {"input": "$rows", "method": "rules", "max_chars": 1000}),
    "curate-json": ("curate", {"input": "$rows", "model": "$model", "method": "json", "rewrite": True}),
    "curate-logprob": ("curate", {"input": "$rows", "model": "$model"}),
    "decontaminate": ("decontaminate", {"input": "$rows", "against": "$tests", "kind": "prompts"}),
    "mix": (
        "mix",
        {"inputs": [{"input": "$rows"}, {"input": "$tests", "share": 1e-3}], "by": "rows", "kind": "prompts"},
    ),
    "label": ("label", {"samples": "$answers", "judge": "$model"}),
    "label-graded": ("label", {"samples": "$answers", "judge": "$model", "method": "graded"}),
    "pairs": ("pairs", {"samples": "$answers", "verdicts": "$verdicts"}),
    "synthesize-rewrite": ("synthesize", {"model": "$model", "method": "rewrite", "input": "$rows"}),
    "synthesize-qa": ("synthesize", {"model": "$model", "method": "qa", "documents": "$documents", "min_support": 0}),
    "dedup-exact": ("dedup", {"input": "$rows", "kind": "prompts", "method": "exact"}),
    "dedup-minhash": ("dedup", {"input": "$rows", "kind": "prompts"}),
    "dedup-embeddings": ("dedup", {"input": "$rows", "kind": "prompts", "method": "embeddings", "threshold": 0.99}),
    "diversify-k_centre": ("diversify", {"input": "$rows", "kind": "prompts", "keep": 500}),
    "diversify-facility": (
        "diversify",
        {"input": "$rows", "kind": "prompts", "keep": 500, "method": "facility_location"},
    ),
}
WORDS = 4000
LETTERS = 240
"""Characters of a row's text, each one byte."""


SMALL_GROUP = 1024
"""Rows of a row group with `small`. The file's metadata of each group stays in memory during writing: 90 bytes a row
in groups of 256, 30 in groups of 1024, 2 in groups of the size that stages write."""
PARTS = ((duplicates, "BLOCK"), (duplicates, "TILE"), (diversify, "TILE"))
PARTS += ((diversify, "POOL"), (diversify, "EXACT"), (drops, "HELD"), (rows, "SHARD_ROWS"))


class Forgetful(SpokenJudge):
    """A model that does not record what it was asked."""

    def generate(self, prompts: Any, params: Any) -> Any:
        found = super().generate(prompts, params)
        self.asked.clear()
        return found

    def margins(self, asked: Any, yes: str, no: str) -> list[float]:
        return [float(len(turn.content) % 7) for (turn,) in asked]


class InSmallParts(Context):
    """Reads few records at a time."""

    def batches(self, ref: Ref, rows: int = 256, *, noted: bool = True) -> Any:
        return super().batches(ref, rows, noted=noted)


def in_small_parts() -> None:
    """Shrinks buffers of some thousand rows to some hundred."""
    record_streams.ROWS_PER_GROUP = SMALL_GROUP
    for module, name in PARTS:
        setattr(module, name, 256)
    diversify.SEARCHED, diversify.PROBED = 32, 2
    aside.IN_MEMORY = 1 << 14


def write_rows(folder: Path, rows: int) -> None:
    """Different questions of LETTERS characters as records and as JSON lines, and two questions of a test."""
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(3, 9))) for _ in range(WORDS)]
    (folder / "rows" / "output").mkdir(parents=True)
    lines = (folder / "rows.jsonl").open("w")
    with record_writer(folder / "rows" / RECORDS_FILE, "prompts") as writer, lines:
        for row in range(rows):
            text = f"Why {' '.join(rng.choices(words, k=60))}"[: LETTERS - 1] + "?"
            writer.write([Prompt(id=f"{row:016x}", messages=(Message("user", text),))])
            lines.write(json.dumps({"question": text}) + "\n")
    with record_writer(folder / "tests" / RECORDS_FILE, "prompts") as writer:
        for name in ("a", "b"):
            text = f"{name}: which of the many words in this question stands in no other one of them all?"
            writer.write([Prompt(id=name, messages=(Message("user", text),))])


def write_answers(folder: Path, rows: int) -> None:
    """Two answers to each of `rows` / 2 prompts of LETTERS characters, a verdict on each pair, and `rows` documents."""
    with record_writer(folder / "answers" / RECORDS_FILE, "samples") as answers:
        for row in range(rows):
            question, text = (
                f"{row // 2:x} {'why ' * (LETTERS // 4)}?",
                f"{row:x} {'because ' * (LETTERS // 8 - row % 2)}",
            )
            answers.write([sample(f"{row:016x}", question, text)])
    with record_writer(folder / "verdicts" / RECORDS_FILE, "verdicts") as verdicts:
        for row in range(0, rows, 2):
            pair = (f"{row:016x}", f"{row + 1:016x}")
            verdicts.write([Verdict(id=f"{row}", prompt="p", answers=pair, judge="j", text="[[A]]", winner=pair[0])])
    with record_writer(folder / "documents" / RECORDS_FILE, "documents") as documents:
        for row in range(rows):
            documents.write([Document(id=f"{row:016x}", text=f"{row:x} {'of all things ' * (LETTERS // 14)}")])


def say(text: str, index: int) -> str:
    """The model's text: which answer is longer, a grade, a verdict, a question with its answer, or a question."""
    if "[Answer A]" in text:
        one, other = map(len, shown(text))
        return "[[A]]" if one > other else "[[B]]"
    if "Rating:" in text:
        return "[[7]]"
    if '"keep"' in text:
        return '{"keep": true}'
    number = next(SAID)
    asked = f"Why does star number {number} shine?"
    return f"Question: {asked}\nAnswer: It is hot, star {number}." if "Question:" in text else asked


SAID = count()


def run(stage: str, folder: Path, small: bool) -> int:
    """Peak memory of the stage's work in bytes, above the level before it."""
    if small:
        in_small_parts()
    kind, given = SETTINGS[stage]
    if kind == "import":
        given = {**given, "path": str(folder / "rows.jsonl")}
    settings, work = STAGES[kind].settings.model_validate(given), importlib.import_module(STAGES[kind].work)
    made = folder / f"{stage}-0"
    made.mkdir()
    kinds = {"answers": "samples", "verdicts": "verdicts", "documents": "documents"}
    inputs: dict[str, Resolved] = {
        Ref(f"${name}"): Resolved(kinds.get(name, "prompts"), folder=folder / name)
        for name in ("rows", "tests", *kinds)
        if (folder / name).exists()
    }
    inputs[Ref("$model")] = Resolved("model", source=ModelSource(kind="endpoint", name="model"))
    for module in (judging_work, harvest_work, curate_work):
        vars(module)["generator"] = lambda context, ref, batch_rows: Forgetful(say)
    vars(curate_work)["chooser"] = lambda context, ref: Forgetful(say)
    kind_of = InSmallParts if small else Context
    context = kind_of("stage", made, folder, 1, inputs, Control(send=lambda event: None))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak: imports took more than they kept
    before = memory("VmRSS")
    work.run(settings, context)
    context.finish()
    return memory("VmHWM") - before


def memory(name: str) -> int:
    """Bytes of this process, now (VmRSS) or at its peak (VmHWM)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


def measured(stage: str, folder: Path, small: bool) -> int:
    """Like `run`, after a warm-up: memory that a library takes on first use is not counted for the rows."""
    with tempfile.TemporaryDirectory() as warm:
        write_rows(Path(warm), 600)
        write_answers(Path(warm), 600)
        run(stage, Path(warm), small)
    return run(stage, folder, small)


def main() -> None:
    """Answers each line with the bytes, or with null if the work failed."""
    for kind in {kind for kind, _ in SETTINGS.values()}:
        importlib.import_module(STAGES[kind].work)
    for line in sys.stdin:
        stage, folder, small = json.loads(line)
        came, told = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(told, str(measured(stage, Path(folder), small)).encode())
            os._exit(0)
        os.close(told)
        with open(came) as said:
            print(said.read() or "null", flush=True)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
