"""Checkpoints: the whole state of a training run, whole or absent.

    step-00000010/
      weights.safetensors  optimizer.safetensors  random.safetensors  progress.json
      manifest.json        written last: hashes of the others, byte lengths of the append-only files beside them

A checkpoint is written to a temporary folder, synced and renamed. To restore one is also to cut every append-only file
back to the length it had, so that nothing is told twice.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter

from togi.core.errors import StageError
from togi.core.files import crash_point, read_json, sync_folder, write_json
from togi.train.optimizer import order_of

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
TENSORS = ("weights", "optimizer", "random")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything that the next step depends on. `step` counts finished steps; `progress` is JSON of the caller's own:
    counters, data cursor, guards."""

    step: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    random: Mapping[str, Tensor]
    progress: Mapping[str, Any]


# --- between a running training and a State ---------------------------------------------------------------------------


def capture(
    step: int, params: Mapping[str, Parameter], optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]
) -> State:
    """The state after `step` finished steps. `params` are the trained ones: frozen weights come from where they came.

    Tensors are not copied: save the state before the next step.
    """
    return State(
        step=step,
        weights={name: param.detach() for name, param in params.items()},
        optimizer=_optimizer_tensors(optimizer, params),
        random=_random_state(),
        progress=progress,
    )


def restore(path: Path, params: Mapping[str, Parameter], optimizer: torch.optim.Optimizer) -> State:
    """Puts a checkpoint's state into `params`, `optimizer` and the random generators, and cuts append-only files back.

    Raises StageError when the checkpoint belongs to other parameters or a file is shorter than it was.
    """
    state = load(path)
    _check_same("weights", params, state.weights, path)
    with torch.no_grad():
        for name, param in params.items():
            param.copy_(state.weights[name])
    _restore_optimizer(optimizer, params, state.optimizer)
    _restore_random(state.random)
    cut_files(path)
    return state


def resume(
    folder: Path, params: Mapping[str, Parameter], optimizer: torch.optim.Optimizer, files: Sequence[Path] = ()
) -> State | None:
    """Restores the newest complete checkpoint of `folder`; without one, empties `files` and gives None."""
    path = newest_complete(folder)
    if path is not None:
        return restore(path, params, optimizer)
    for file in files:
        _cut(file, 0)
    return None


def _optimizer_tensors(optimizer: torch.optim.Optimizer, params: Mapping[str, Parameter]) -> dict[str, Tensor]:
    """The optimiser's tensors under "name/key"; its rates follow from the step."""
    numbered = optimizer.state_dict()["state"]
    names = order_of(optimizer, params)
    return {f"{names[i]}/{key}": value for i, entries in numbered.items() for key, value in entries.items()}


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, params: Mapping[str, Parameter], tensors: Mapping[str, Tensor]
) -> None:
    numbers = {name: i for i, name in enumerate(order_of(optimizer, params))}
    entries: dict[int, dict[str, Tensor]] = {}
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("/")
        entries.setdefault(numbers[name], {})[key] = value.clone()  # the loaded one is a view of the file
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def _random_state() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    return states | {f"cuda/{i}": torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count())}


def _restore_random(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"].clone())
    for i in range(torch.cuda.device_count()):
        if f"cuda/{i}" in states:
            torch.cuda.set_rng_state(states[f"cuda/{i}"].clone(), i)


def _check_same(what: str, ours: Mapping[str, Tensor], stored: Mapping[str, Tensor], path: Path) -> None:
    """Raises StageError unless both have the same names and shapes."""
    shapes = {name: tuple(value.shape) for name, value in ours.items()}
    found = {name: tuple(value.shape) for name, value in stored.items()}
    other = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
    if other:
        name = other[0]
        raise StageError(
            f"{path}: its {what} belong to another model: {name} is {found.get(name, 'absent')} there and "
            f"{shapes.get(name, 'absent')} here ({len(other)} differ); start anew with `togi run --redo`"
        )


# --- between a State and the disk -------------------------------------------------------------------------------------


def save(folder: Path, state: State, *, files: Sequence[Path] = (), keep: int = 2) -> Path:
    """Writes `state` as `folder/step-N` and prunes all but the `keep` newest.

    `files` are append-only (metrics, journal), synced by whoever writes them; their lengths are recorded. Raises
    StageError when the disk is full or cannot be written, which leaves earlier checkpoints as they were.
    """
    final = folder / f"step-{state.step:08d}"
    temporary = folder / f".{final.name}.tmp"
    try:
        _clear_unfinished(folder)
        _write(temporary, final, state, files)
        crash_point("before_rename", final)
        _set_aside(final)
        os.rename(temporary, final)
        crash_point("after_rename", final)
        sync_folder(folder)
        _clear_unfinished(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StageError(
            f"the checkpoint of step {state.step} could not be written to {folder}: {error}. Free some space and run "
            "the same command again: it goes on from the checkpoint before"
        ) from error
    _prune(folder, keep)
    return final


def load(path: Path) -> State:
    """Reads a checkpoint. Its tensors are views of the files."""
    tensors = {name: load_file(path / f"{name}.safetensors") for name in TENSORS}
    return State(step=read_json(path / MANIFEST)["step"], progress=read_json(path / PROGRESS), **tensors)


def newest_complete(folder: Path) -> Path | None:
    """The newest checkpoint whose files are all there and match their hashes; damaged ones are passed over, aloud."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        wrong = _damage(path)
        if wrong is None:
            return path
        logger.warning("checkpoint %s is passed over: %s", path, wrong)
    return None


def cut_files(path: Path) -> None:
    """Cuts a checkpoint's append-only files back to their recorded lengths. Raises StageError if one is shorter."""
    for relative, length in read_json(path / MANIFEST)["lengths"].items():
        file = path.parent / relative
        if _size(file) < length:
            raise StageError(
                f"{file} has {_size(file)} bytes, but had {length} when {path.name} was saved: it was changed since; "
                "start anew with `togi run --redo`"
            )
        _cut(file, length)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _cut(file: Path, length: int) -> None:
    if _size(file) > length:
        os.truncate(file, length)
        _sync(file)


def _write(temporary: Path, final: Path, state: State, files: Sequence[Path]) -> None:
    """Fills the temporary folder; the manifest comes last, when all else is on the disk."""
    temporary.mkdir(parents=True)
    for name, tensors in zip(TENSORS, (state.weights, state.optimizer, state.random), strict=True):
        save_file({key: value.contiguous() for key, value in tensors.items()}, temporary / f"{name}.safetensors")
    crash_point("before_sync", final)
    for name in TENSORS:
        _sync(temporary / f"{name}.safetensors")
    write_json(temporary / PROGRESS, dict(state.progress))
    lengths = {os.path.relpath(file, final.parent): _size(file) for file in files}
    hashes = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
    write_json(temporary / MANIFEST, {"step": state.step, "lengths": lengths, "sha256": hashes})


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, None if nothing."""
    if not (path / MANIFEST).exists():
        return f"it has no {MANIFEST}"
    for name, wanted in read_json(path / MANIFEST)["sha256"].items():
        if not (path / name).exists():
            return f"{name} is missing"
        if _sha256(path / name) != wanted:
            return f"{name} does not match its hash"
    return None


def _clear_unfinished(folder: Path) -> None:
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path)


def _prune(folder: Path, keep: int) -> None:
    for path in sorted(folder.glob("step-*"))[: -max(keep, 1)]:
        _set_aside(path)
    _clear_unfinished(folder)


def _set_aside(path: Path) -> None:
    """Takes the good name from a checkpoint that goes, so that a kill never leaves half of it under that name."""
    if path.exists():
        os.rename(path, path.with_name(f".{path.name}.old.tmp"))


def _sync(path: Path) -> None:
    with path.open("rb+") as handle:
        os.fsync(handle.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
