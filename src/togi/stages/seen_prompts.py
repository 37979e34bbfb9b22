"""Records which prompts a stage trained on, next to its output, so that an evaluation can tell whether a model, or a
scorer that grades it, has seen its prompts before."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from togi.core.errors import DamagedFile
from togi.core.files import atomic_file, read_json
from togi.core.records import Message
from togi.core.seeds import digest
from togi.core.settings import Ref
from togi.stages.context import Context
from togi.stages.held_against import stage_of
from togi.text.compare import normalise

FILE = "learnt.json"


def keep_learnt(context: Context, init: Ref, prompts: Iterable[Sequence[Message]]) -> None:
    """Writes hashes of `prompts`, and of all prompts that the stage's initial model was trained on."""
    keep_marks(context, init, np.fromiter((int(mark(prompt), 16) for prompt in prompts), np.uint64))


def keep_marks(context: Context, init: Ref, mark_N: np.ndarray) -> None:
    """`keep_learnt` for prompts whose hashes are known, as numbers. Each takes some 50 bytes of memory."""
    if not context.ranks.first:
        return
    every_N = np.concatenate([np.fromiter((int(each, 16) for each in learnt(context, init) or ()), np.uint64), mark_N])
    _, first_M = np.unique(every_N, return_index=True)
    first_M.sort()
    with atomic_file(context.folder / FILE) as temporary, temporary.open("w", encoding="utf-8") as file:
        for number, place in enumerate(first_M):
            file.write(f"{',' if number else '['}\n {json.dumps(f'{int(every_N[place]):016x}')}")
        file.write("\n]\n" if len(first_M) else "[]\n")


def learnt(context: Context, ref: Ref) -> list[str] | None:
    """Hashes of the prompts that `ref` was trained on; None if nothing is known of them, as for most models from
    outside. Raises DamagedFile."""
    path = _beside(context, ref)
    if path is None:
        return None
    found = read_json(path)
    if not isinstance(found, list):
        raise DamagedFile(f"{path}: damaged: expected a list, found {str(found)[:40]!r}")
    return found


def _beside(context: Context, ref: Ref) -> Path | None:
    """The file of a model: in the folder of its stage, or in the folder of an exported model."""
    target = context.inputs[ref]
    if target.folder is not None:
        return target.folder / FILE if (target.folder / FILE).is_file() else None
    return None if target.source is None or target.source.kind != "path" else file_of(Path(target.source.name))


def file_of(model: Path) -> Path | None:
    """The file with the hashes of the prompts that the model in a folder was trained on: in the folder of its stage, or
    in its own folder, where `togi export` puts it. None if there is none."""
    made = stage_of(model)
    folders = [model] if made is None else [made, model]
    return next((folder / FILE for folder in folders if (folder / FILE).is_file()), None)


def mark(messages: Sequence[Message]) -> str:
    """A hash of a prompt's user messages, which ignores case, spacing and punctuation."""
    return digest([normalise(message.content) for message in messages if message.role == "user"])[:16]
