"""Records which prompts a stage trained on, next to its output, so that an evaluation can tell whether a model, or a
scorer that grades it, has seen its prompts before."""

import json
from collections.abc import Iterable, Sequence

import numpy as np

from togi.core.errors import DamagedFile
from togi.core.files import atomic_file, read_json
from togi.core.records import Message
from togi.core.seeds import digest
from togi.core.settings import Ref
from togi.stages.context import Context
from togi.text.compare import normalise

FILE = "learnt.json"


def keep_learnt(context: Context, init: Ref, prompts: Iterable[Sequence[Message]]) -> None:
    """Writes hashes of `prompts`, and of all prompts that the stage's initial model was trained on."""
    keep_marks(context, init, np.fromiter((int(mark(prompt), 16) for prompt in prompts), np.uint64))


def keep_marks(context: Context, init: Ref, mark_N: np.ndarray) -> None:
    """`keep_learnt` for prompts whose hashes are known, as numbers. Each takes some 50 bytes of memory."""
    if not context.ranks.first:
        return
    every_N = np.concatenate([np.fromiter((int(each, 16) for each in learnt(context, init)), np.uint64), mark_N])
    _, first_M = np.unique(every_N, return_index=True)
    first_M.sort()
    with atomic_file(context.folder / FILE) as temporary, temporary.open("w", encoding="utf-8") as file:
        for number, place in enumerate(first_M):
            file.write(f"{',' if number else '['}\n {json.dumps(f'{int(every_N[place]):016x}')}")
        file.write("\n]\n" if len(first_M) else "[]\n")


def learnt(context: Context, ref: Ref) -> list[str]:
    """Hashes of the prompts that `ref` was trained on; empty for models from outside."""
    folder = context.inputs[ref].folder
    if folder is None or not (folder / FILE).exists():
        return []
    found = read_json(folder / FILE)
    if not isinstance(found, list):
        raise DamagedFile(f"{folder / FILE}: damaged: expected a list, found {str(found)[:40]!r}")
    return found


def mark(messages: Sequence[Message]) -> str:
    """A hash of a prompt's user messages, which ignores case, spacing and punctuation."""
    return digest([normalise(message.content) for message in messages if message.role == "user"])[:16]
