"""Checkpoints: the complete state of a training run, written atomically.

    step-00000010/
      weights.safetensors  optimizer.safetensors  random.safetensors  progress.json
      manifest.json        written last: hashes of the other files and of itself, byte lengths of the append-only files
                           in the folder above, the format number and the fingerprint of the stage

Each rank writes its own tensors (`shards`), and any number of ranks can read them. A checkpoint is written to a
temporary folder, synced and renamed. Restoring it also truncates every append-only file to its recorded length, so that
nothing is logged twice.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter

from togi.core.errors import DamagedFile, StageError
from togi.core.files import SEAL, crash_point, read_object, read_sealed, sync_folder, write_json, write_sealed
from togi.core.ranks import ALONE, Ranks
from togi.train import shards
from togi.train.optimizer import order_of
from togi.train.shards import like, local, part_of

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
FORMAT = 2  # increased when a checkpoint's files or their meaning change
SHAPE = {"format": int, "fingerprint": str, "step": int, "lengths": dict, "sha256": dict}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything that the next step depends on. `step` counts finished steps. `progress` is the caller's JSON:
    counters, data cursor, guards. `fingerprint` is the stage's; only the same stage may continue from here."""

    step: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    random: Mapping[str, Tensor]
    progress: Mapping[str, Any]
    fingerprint: str = ""


# --- between a running training and a State ---------------------------------------------------------------------------


def capture(
    step: int,
    params: Mapping[str, Parameter],
    optimizer: torch.optim.Optimizer,
    progress: Mapping[str, Any],
    fingerprint: str = "",
) -> State:
    """The state after `step` finished steps. `params` are the trained parameters; frozen weights are not saved.

    Tensors are not copied: save the state before the next step.
    """
    return State(
        step=step,
        weights={name: param.detach() for name, param in params.items()},
        optimizer=_optimizer_tensors(optimizer, params),
        random=_random_state(),
        progress=progress,
        fingerprint=fingerprint,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """The point from which a training continues."""

    step: int
    progress: Mapping[str, Any]


def restore(
    path: Path,
    params: Mapping[str, Parameter],
    optimizer: torch.optim.Optimizer,
    ranks: Ranks = ALONE,
    fingerprint: str = "",
) -> Restored:
    """Loads a checkpoint into `params`, `optimizer` and the random generators, and truncates append-only files.

    Raises StageError if the checkpoint belongs to another stage or other parameters, has another format, or if a file
    is shorter than recorded.
    """
    manifest = _manifest(path, fingerprint)
    size = manifest.get("ranks", 1)
    _put_weights(path, size, params)
    _restore_optimizer(optimizer, params, shards.Stored(path, "optimizer", size))
    _restore_random(load_file(path / shards.file_name("random", ranks.rank % size, size)))
    ranks.on_first_rank(lambda: cut_files(path))
    return Restored(step=manifest["step"], progress=read_object(path / PROGRESS))


def _manifest(path: Path, fingerprint: str) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises StageError if it belongs to another stage or has another format."""
    manifest = read_object(path / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise StageError(
            f"{path}: it was written by another version of togi (format {manifest.get('format', 'without a number')}, "
            f"this one reads {FORMAT}); continue with that version, or start over with `togi run --redo`"
        )
    if manifest["fingerprint"] != fingerprint:
        raise StageError(
            f"{path}: it belongs to a stage with other settings, data or models, or of another version: its "
            f"fingerprint is {manifest['fingerprint'][:16] or 'empty'}, this stage's is {fingerprint[:16] or 'empty'}; "
            "start over with `togi run --redo`"
        )
    return manifest


def _put_weights(path: Path, size: int, params: Mapping[str, Parameter]) -> None:
    stored = shards.Stored(path, "weights", size)
    _check_same("weights", params, stored.shapes, path)
    with torch.no_grad():
        for name, param in params.items():
            local(param).copy_(stored.read(name, part_of(param)))


def _optimizer_tensors(optimizer: torch.optim.Optimizer, params: Mapping[str, Parameter]) -> dict[str, Tensor]:
    """The optimiser's tensors under "name/key"; the learning rates follow from the step."""
    numbered = optimizer.state_dict()["state"]
    names = order_of(optimizer, params)
    return {f"{names[i]}/{key}": value for i, entries in numbered.items() for key, value in entries.items()}


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, params: Mapping[str, Parameter], stored: shards.Stored
) -> None:
    numbers = {name: i for i, name in enumerate(order_of(optimizer, params))}
    entries: dict[int, dict[str, Tensor]] = {}
    for full_name, shape in stored.shapes.items():
        name, _, key = full_name.rpartition("/")
        param = params[name]
        if shape == tuple(param.shape):  # moments are sharded like their parameter; counters are not
            value = like(stored.read(full_name, part_of(param)).to(param.device), param)
        else:
            value = stored.read(full_name)
        entries.setdefault(numbers[name], {})[key] = value.clone()  # the tensor read may be a view of the file
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def _random_state() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    return states | {f"cuda/{i}": torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count())}


def _restore_random(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"].clone())
    for i in range(torch.cuda.device_count()):
        if f"cuda/{i}" in states:
            torch.cuda.set_rng_state(states[f"cuda/{i}"].clone(), i)


def _check_same(what: str, ours: Mapping[str, Tensor], found: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Raises StageError unless both have the same names and shapes."""
    shapes = {name: tuple(value.shape) for name, value in ours.items()}
    other = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
    if other:
        name = other[0]
        raise StageError(
            f"{path}: its {what} belong to another model: {name} is {found.get(name, 'absent')} there and "
            f"{shapes.get(name, 'absent')} here ({len(other)} differ); start over with `togi run --redo`"
        )


# --- between a State and the disk -------------------------------------------------------------------------------------


def save(
    folder: Path,
    state: State,
    *,
    files: Sequence[Path] = (),
    keep: int = 2,
    pinned: int | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Writes `state` as `folder/step-N` and prunes all but the `keep` newest and the one of step `pinned`.

    `files` are append-only (metrics, journal) and synced by their writers; their lengths are recorded. Every rank
    writes its own tensors, rank 0 the rest. Raises StageError if the disk is full or not writable; earlier checkpoints
    stay intact.
    """
    final = folder / _name(state.step)
    temporary = folder / f".{final.name}.tmp"
    hashes: dict[str, str] = {}
    try:
        ranks.on_first_rank(lambda: _begin(temporary))
        hashes = _write_tensors(temporary, final, state, ranks)
        ranks.on_first_rank(lambda: _finish(temporary, final, state, files, hashes, ranks.size))
    except (OSError, SafetensorError) as error:
        with suppress(OSError):  # report the first error only
            if hashes:
                shutil.rmtree(temporary)
            for path in _paths(temporary, ranks):  # only this rank's files: others may still be writing
                path.unlink(missing_ok=True)
        raise StageError(
            f"the checkpoint of step {state.step} could not be written to {folder}: {error}. Free some space and run "
            "the same command again: it resumes from the previous checkpoint"
        ) from error
    ranks.on_first_rank(lambda: _prune(folder, keep, pinned))
    return final


def _begin(temporary: Path) -> None:
    _clear_unfinished(temporary.parent)
    temporary.mkdir(parents=True)


def _finish(
    temporary: Path, final: Path, state: State, files: Sequence[Path], hashes: Mapping[str, str], size: int
) -> None:
    """Writes the manifest after everything else is on disk, then renames the checkpoint to its final name."""
    write_json(temporary / PROGRESS, dict(state.progress))
    lengths = {os.path.relpath(file, final.parent): _size(file) for file in files}
    found = {
        "format": FORMAT,
        "fingerprint": state.fingerprint,
        "step": state.step,
        "lengths": lengths,
        "sha256": {**hashes, PROGRESS: _sha256(temporary / PROGRESS)},
    }
    write_sealed(temporary / MANIFEST, found if size == 1 else {**found, "ranks": size})
    crash_point("before_rename", final)
    _set_aside(final)
    os.rename(temporary, final)
    crash_point("after_rename", final)
    sync_folder(final.parent)
    _clear_unfinished(final.parent)


def _paths(folder: Path, ranks: Ranks) -> list[Path]:
    """This rank's files of a checkpoint."""
    return [folder / shards.file_name(kind, ranks.rank, ranks.size) for kind in ("weights", "optimizer", "random")]


def _write_tensors(temporary: Path, final: Path, state: State, ranks: Ranks) -> dict[str, str]:
    """Writes and syncs this rank's files; returns the hashes of the files of all ranks."""
    paths = _paths(temporary, ranks)
    shards.write(paths[0], state.weights, ranks)
    shards.write(paths[1], state.optimizer, ranks)
    save_file(dict(state.random), paths[2])
    crash_point("before_sync", final)
    for path in paths:
        _sync(path)
    hashes: dict[str, str] = {}
    for found in ranks.gather({path.name: _sha256(path) for path in paths}):
        hashes |= found
    return hashes


def _name(step: int | None) -> str:
    return "" if step is None else f"step-{step:08d}"


def take_weights(folder: Path, step: int, params: Mapping[str, Parameter], fingerprint: str = "") -> None:
    """Loads only the weights of the checkpoint of `step` into `params`: no optimiser, no random state, no file is cut.

    Raises StageError if the checkpoint is missing or damaged, or belongs to another stage or other parameters.
    """
    path = folder / _name(step)
    wrong = _damage(path)
    if wrong is not None:
        raise StageError(f"{path}: the checkpoint of the best weights cannot be read: {wrong}; start over with --redo")
    _put_weights(path, _manifest(path, fingerprint).get("ranks", 1), params)


def newest_complete(folder: Path) -> Path | None:
    """The newest checkpoint whose files all exist and match their hashes. Logs a warning for each damaged one."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        wrong = _damage(path)
        if wrong is None:
            return path
        logger.warning("checkpoint %s is skipped: %s", path, wrong)
    return None


def cut_files(path: Path) -> None:
    """Truncates a checkpoint's append-only files to their recorded lengths. Raises StageError if one is shorter."""
    for relative, length in read_sealed(path / MANIFEST, SHAPE)["lengths"].items():
        file = path.parent / relative
        if _size(file) < length:
            raise StageError(
                f"{file} has {_size(file)} bytes, but had {length} when {path.name} was saved: it was changed since; "
                "start over with `togi run --redo`"
            )
        _cut(file, length)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _cut(file: Path, length: int) -> None:
    if _size(file) > length:
        os.truncate(file, length)
        _sync(file)


def _damage(path: Path) -> str | None:
    """The damage of a checkpoint, in words; None if it is complete."""
    if not (path / MANIFEST).exists():
        return f"it has no {MANIFEST}"
    try:
        if _is_foreign(path):
            return None  # complete, as far as can be checked; `restore` reports the other version
        manifest = read_sealed(path / MANIFEST, SHAPE)
    except DamagedFile as error:
        return str(error)
    if path.name != _name(manifest["step"]):
        return f"it holds step {manifest['step']}"
    for name, wanted in manifest["sha256"].items():
        if not (path / name).exists():
            return f"{name} is missing"
        if _sha256(path / name) != wanted:
            return f"{name} does not match its hash"
    return None


def _is_foreign(path: Path) -> bool:
    """Whether another version of togi wrote a checkpoint: its manifest has no hash, or another format. Raises
    DamagedFile if the manifest has changed since."""
    found = read_object(path / MANIFEST)
    if SEAL not in found:
        return found.get("format", 1) == 1 and isinstance(found.get("sha256"), dict)
    return read_sealed(path / MANIFEST, {"format": int})["format"] != FORMAT


def _clear_unfinished(folder: Path) -> None:
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path)


def _prune(folder: Path, keep: int, pinned: int | None) -> None:
    for path in sorted(folder.glob("step-*"))[: -max(keep, 1)]:
        if path.name != _name(pinned):
            _set_aside(path)
    _clear_unfinished(folder)


def _set_aside(path: Path) -> None:
    """Renames a checkpoint before its removal, so that a kill never leaves half of it under a valid name."""
    if path.exists():
        os.rename(path, path.with_name(f".{path.name}.old.tmp"))


def _sync(path: Path) -> None:
    with path.open("rb+") as handle:
        os.fsync(handle.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
