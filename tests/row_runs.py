"""Runs the toy row-wise stage in a folder; any executor can do its shards."""

from pathlib import Path

import row_stage

from togi.core.codec import write_records
from togi.core.records import Document
from togi.core.settings import DocumentsRef
from togi.stages.base import RECORDS_FILE, StageType, gives
from togi.stages.context import Context, Control, Resolved
from togi.stages.data.rows import map_shards
from togi.stages.shards import ShardExecutor

REF = DocumentsRef("$texts")
TOY = StageType("toy", row_stage.Toy, outputs=gives("documents"), work="", reasons=("even",), rows="row_stage")


def context(folder: Path, texts: list[str], executor: ShardExecutor) -> Context:
    documents = [Document(id=f"d{i}", text=text) for i, text in enumerate(texts)]
    write_records(folder / "texts" / RECORDS_FILE, "documents", documents)
    inputs: dict[str, Resolved] = {REF: Resolved("documents", folder=folder / "texts")}
    made = Context("toy", folder / "toy-0", folder, 1, inputs, Control(send=lambda event: None))
    made.folder.mkdir(exist_ok=True)
    made.reasons, made.shards = TOY.reasons, executor
    return made


def run(made: Context) -> None:
    settings = row_stage.Toy(folder=str(made.folder))
    with made.writer("documents") as writer:
        for kept in map_shards(TOY, settings, made, REF, "documents"):
            writer.write(kept)
    made.finish()


def outcome(made: Context) -> dict[str, bytes]:
    names = (RECORDS_FILE, "drops.json", "summary.json")
    return {name: (made.folder / name).read_bytes() for name in names}
