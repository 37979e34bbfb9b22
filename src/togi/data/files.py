"""Finds the files in a folder that hold rows, by ending and split; skips documentation and metadata."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from togi.core.errors import InputError

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
SUFFIXES = (*ENDINGS, *(f"{ending}.gz" for ending in ENDINGS), ".parquet")
PACKED = (".zst", ".bz2", ".xz", ".zip", ".7z", ".tar", ".tgz", ".tar.gz", ".rar", ".lz4")
SPLITS = (("train", "training"), ("validation", "valid", "val", "dev"), ("test", "testing", "eval", "evaluation"))
"""Words in file names that denote a split; those of a row denote the same one."""
SPLIT_WORDS = tuple(word for row in SPLITS for word in row)
SHARD = re.compile(r"(.*?)[-_.](\d{2,})-of-(\d{2,})$")
BESIDE = (
    "dataset_infos.json",
    "dataset_info.json",
    "dataset_dict.json",
    "state.json",
    "config.json",
    "metadata.json",
    "croissant.json",
    "package.json",
    "requirements.txt",
    "robots.txt",
)
PAPERS = ("readme", "license", "licence", "copying", "notice", "changelog", "changes", "citation")
SAVED = "a folder written by `save_to_disk` of the datasets library holds Arrow files, which togi does not read"
MEND = (
    "in Python, convert it with `datasets.load_from_disk(FOLDER).to_parquet('data.parquet')` (several splits: one file "
    "each)"
)


def find_files(path: Path, split: str, texts: bool = True) -> list[Path]:
    """The files to read: `path` itself, or the files of a folder that belong to `split`, sorted by name.

    If no file name contains a split, all files are read. Documentation and metadata next to the data (README, LICENSE,
    dataset_info.json) are skipped; without `texts`, so are .txt files next to other data files. Raises InputError if
    there is nothing to read, if a file has an unknown compression, or if several folders each look like a
    configuration.
    """
    try:
        if path.is_file():
            return [_readable(path)]
        if path.is_dir():
            return _chosen(path, _data_files(path, texts), split)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if path.exists():
        raise InputError(f"{path}: neither a file nor a folder, but a pipe or a device: save the rows in a file")
    raise InputError(f"{path}: there is no such file or folder")


def ending_of(path: Path) -> str:
    """The ending that defines a file's format, without ".gz"; "" for a file that togi does not read."""
    name = path.name.lower().removesuffix(".gz")
    return next((ending for ending in (*ENDINGS, ".parquet") if name.endswith(ending)), "")


def _readable(path: Path) -> Path:
    name = path.name.lower()
    if name.endswith(SUFFIXES):
        return path
    if name.endswith(".arrow"):
        raise InputError(f"{path}: {SAVED}: {MEND}")
    if name.endswith((*PACKED, ".parquet.gz")):
        raise InputError(f"{path}: togi does not read this compression: unpack the file, or use gzip (.gz)")
    raise InputError(f"{path}: cannot read this kind of file; allowed are {', '.join(SUFFIXES)}")


def _data_files(folder: Path, texts: bool) -> list[Path]:
    files = files_under(folder)
    found = [f for f in files if f.name.lower().endswith(SUFFIXES) and not _beside(f)]
    arrows = [f for f in files if f.name.lower().endswith(".arrow")]
    if arrows and (not found or any(f.name in ("state.json", "dataset_dict.json") for f in files)):
        raise InputError(f"{folder}: {SAVED} ({arrows[0].relative_to(folder)}): {MEND}")
    packed = [f for f in files if f.name.lower().endswith(PACKED) and ending_of(f.with_suffix(""))]
    for file in packed if found else [f for f in files if f.name.lower().endswith(PACKED)]:
        _readable(file)
    if not found:
        raise InputError(f"{folder}: the folder has no file with the ending {', '.join(SUFFIXES)}")
    if not texts:
        found = [f for f in found if ending_of(f) != ".txt"] or found
    _refuse_twins(folder, found)
    return found


def files_under(folder: Path) -> list[Path]:
    """All files, sorted by path, without hidden ones. Rejects a link to a folder, unless it leads back into
    `folder`."""

    def refuse(error: OSError) -> None:
        raise error

    files: list[Path] = []
    home = folder.resolve()
    for place, names, here in os.walk(folder, onerror=refuse):
        names[:] = [name for name in names if not name.startswith(".")]
        for link in (Path(place, name) for name in names if Path(place, name).is_symlink()):
            if not home.is_relative_to(link.resolve()) and not link.resolve().is_relative_to(home):
                raise InputError(f"{link}: togi does not follow a link to a folder: name that folder as `path`")
        files += [Path(place, name) for name in here if not name.startswith(".")]
    return [file for file in sorted(files) if file.is_file()]


def _beside(file: Path) -> bool:
    name = file.name.lower()
    paper = name.endswith((".txt", ".json")) and name.split(".")[0] in PAPERS
    return name in BESIDE or paper


def _refuse_twins(folder: Path, found: Sequence[Path]) -> None:
    """Rejects the same data in two formats (train.jsonl and train.parquet), which would be read twice."""
    seen: dict[str, Path] = {}
    for file in found:
        stem = str(file.relative_to(folder)).lower().removesuffix(".gz").removesuffix(ending_of(file))
        other = seen.setdefault(stem, file)
        if other is not file:
            names = f"{other.relative_to(folder)} and {file.relative_to(folder)}"
            raise InputError(f"{folder}: {names} look like the same rows in two formats: name one of them as `path`")


def _chosen(folder: Path, found: Sequence[Path], split: str) -> list[Path]:
    names = {f: _Name.of(f.relative_to(folder)) for f in found}
    known = {*SPLIT_WORDS, split}
    if not any(known & {name.split, *name.words} for name in names.values()):
        return _whole(folder, found, names)
    chosen = _of_split(names, split)
    if not chosen:
        there = ", ".join(dict.fromkeys(name.split for name in list(names.values())[:8]))
        raise InputError(
            f"{folder}: no file of the split {split!r} among {there}; set `split`, or name one of the files"
        )
    splits = list(dict.fromkeys(names[f].split for f in chosen if names[f].shard))
    if len(splits) > 1:
        raise InputError(f"{folder}: the split {split!r} may be {' or '.join(splits)}: set `split` to one of them")
    folders = list(dict.fromkeys(_configuration(f.relative_to(folder), split) for f in chosen))
    if len(folders) > 1:
        raise InputError(
            f"{folder}: the split {split!r} is in several folders ({', '.join(folders)}): name one of them"
        )
    return _whole(folder, chosen, names)


@dataclass(frozen=True, slots=True)
class _Name:
    """The name of a file: the split that it names as a whole (train_prefs), and the words of its path that may name
    one. `shard` is its number and the total if it is a part of a split (-00001-of-00003)."""

    split: str
    words: tuple[str, ...]
    shard: tuple[int, int] | None

    @classmethod
    def of(cls, path: Path) -> "_Name":
        """A .txt file's name is its title, so only its folder or its whole name counts."""
        stem = path.name.lower().removesuffix(".gz").removesuffix(ending_of(path))
        part = SHARD.match(stem)
        stem = part[1] if part else stem
        shard = (int(part[2]), int(part[3])) if part else None
        folders = [part.lower() for part in path.parts[:-1]]
        words = [word for part in folders for word in re.split(r"[-_.]", part)]
        own = [path.name.lower().split(".")[0]] if ending_of(path) == ".txt" else re.split(r"[-_.]", stem)
        return cls(stem, (*folders, *words, *own), shard)


def _of_split(names: Mapping[Path, _Name], split: str) -> list[Path]:
    """The files whose whole name is the split, else those with the word in their path, else with one of the same
    meaning."""
    same = next((row for row in SPLITS if split in row), ())
    ways: tuple[Callable[[_Name], bool], ...] = (
        lambda name: split == name.split,
        lambda name: split in name.words,
        lambda name: any(word in same for word in name.words),
    )
    found = ([f for f, name in names.items() if way(name)] for way in ways)
    return next((files for files in found if files), [])


def _whole(folder: Path, files: Sequence[Path], names: Mapping[Path, _Name]) -> list[Path]:
    """The files. Raises InputError if some of a split's numbered files are missing."""
    parts: dict[tuple[str, int], dict[int, Path]] = {}
    for file in files:
        name = names[file]
        if name.shard:
            parts.setdefault((str(file.with_name(name.split)), name.shard[1]), {})[name.shard[0]] = file
    for (_, total), there in parts.items():
        first = 1 if total in there else 0
        gone = [number for number in range(first, total + first) if number not in there]
        if gone:
            number, file = next(iter(there.items()))
            example = file.name.replace(f"{number:05d}-of-", f"{gone[0]:05d}-of-")
            raise InputError(
                f"{folder}: {len(gone)} of {total} files of this split are missing, such as {example}: fetch them, or "
                "name the files to read one by one"
            )
    return list(files)


def _configuration(path: Path, split: str) -> str:
    """The folder of a file, without parts named after the split itself."""
    return "/".join(part for part in path.parts[:-1] if part.lower() != split) or "."
