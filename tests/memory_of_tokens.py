"""Writes pairs as tokens, and reads them as training does: prints the growth of the process's memory.

`python tests/memory_of_tokens.py write FOLDER PAIRS`, or `corpus FOLDER TEXTS` with 1,000 tokens each, then `... read
FOLDER` in a separate process.
"""

import json
import sys
from contextlib import closing
from pathlib import Path

import numpy as np

from togi.core.records import Message
from togi.core.settings import ModelRef
from togi.model.forest import Sequence as TokenSequence
from togi.stages.context import Context, Control, Resolved
from togi.stages.seen_prompts import keep_marks
from togi.stages.training.dpo import TrainDpo
from togi.stages.training.example_work import Example
from togi.stages.training.examples_work import ShuffledEpochs, split_stored
from togi.stages.training.token_files_work import Stored, TokenFile
from togi.stages.training.token_writer_work import TokenWriter

TOKENS = 100
"""Tokens of each side of a pair: as Python objects a pair would take more than 1,600 bytes."""
STEPS = 50


def write(folder: Path, pairs: int) -> None:
    """Writes pairs of different prompts, 2 x TOKENS tokens each."""
    side = TokenSequence(tuple(range(1, TOKENS + 1)), (False,) * (TOKENS // 2) + (True,) * (TOKENS // 2))
    folder.mkdir(parents=True)
    with closing(TokenWriter(folder, 50_000)) as writer:
        for number in range(pairs):
            prompt = (Message("user", f"What is {number}?"),)
            writer.add(Example(id=f"{number:016x}", prompt=prompt, group=(side, side)))
            if number % 512 == 0:
                writer.flush()
        writer.finish({})


def write_corpus(folder: Path, texts: int) -> None:
    """Writes texts of 1,000 tokens, a thousand at a time; each thousand is the same."""
    part = folder.with_name("part")
    text = TokenSequence(tuple(range(1, 1001)), (False,) * 1000)
    for each in (part, folder):
        each.mkdir(parents=True, exist_ok=True)
    with closing(TokenWriter(part, 50_000)) as writer:
        for number in range(1000):
            writer.add(Example(id=f"{number:016x}", prompt=f"{number}", group=(text,)))
        writer.finish({})
    with closing(TokenWriter(folder, 50_000)) as writer:
        for _ in range(texts // 1000):
            writer.take(part)
        writer.finish({})


def read(folder: Path) -> dict[str, int]:
    """Bytes that the process holds, and its peak, above the level before it read: a split, the marks of what was
    learnt, the order of an epoch, and STEPS batches."""
    settings = TrainDpo.model_validate({"type": "train.dpo", "init": "$base", "pairs": "$pairs", "batch_size": 16})
    base = ModelRef("$base")
    context = Context("policy", folder.parent, folder.parent, 1, {base: Resolved("model")}, Control(lambda event: None))
    np.unique(np.arange(1000), return_index=True, return_inverse=True)  # modules that sorting loads are not data
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    training, held = split_stored(Stored([TokenFile(folder)]), 0.01, 1, context.name)
    keep_marks(context, base, training.column("mark"))
    training.common_system(0.9)
    training.longest()
    source = ShuffledEpochs(settings, training, 1)
    taken = sum(len(source.take(step)) for step in range(STEPS))
    assert taken == STEPS * settings.batch_size and len(training) + len(held) == len(training.files[0])
    return {"held": memory("VmRSS") - before, "peak": memory("VmHWM") - before}


def memory(name: str) -> int:
    """Bytes of this process now (VmRSS) or at its peak (VmHWM), as reported by Linux."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


if __name__ == "__main__":
    writers = {"write": write, "corpus": write_corpus}
    if sys.argv[1] in writers:
        writers[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
    else:
        sys.stdout.write(json.dumps(read(Path(sys.argv[2]))))
