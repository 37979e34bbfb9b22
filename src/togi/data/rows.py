"""Rows out of files: JSONL, JSON, CSV and Parquet, each row with the place it came from."""

import csv
import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from togi.core.errors import InputError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
SPLITS = ("train", "validation", "valid", "dev", "test", "eval")  # words by which file names tell their split
BATCH_ROWS = 4096


class BadRow(Exception):
    """A row that does not fit: `reason` is a short constant, the text says what was found and what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Row:
    """One row: `where` is file:line (or file, row N). `values` is a BadRow where the row could not even be read."""

    where: str
    values: dict[str, Any] | BadRow


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of one file, in order. Raises InputError where the file as a whole cannot be read."""
    name = path.name.lower()
    if name.endswith(".parquet"):
        return _parquet(path)
    if name.endswith(".csv"):
        return _csv(path)
    if name.endswith(".json"):
        return _json(path)
    return _jsonl(path)


def find_files(path: Path, split: str) -> list[Path]:
    """The files to read: `path` itself, or those of a folder, by name, that belong to `split`.

    Files whose names carry no split all belong to every split. Raises InputError if nothing is there to read, or if the
    files lie in several folders that each look like a configuration of their own.
    """
    if path.is_file():
        if not path.name.lower().endswith(SUFFIXES):
            raise InputError(f"{path}: cannot read this kind of file; allowed are {', '.join(SUFFIXES)}")
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: there is no such file or folder")
    found = [f for f in sorted(path.rglob("*")) if f.is_file() and f.name.lower().endswith(SUFFIXES)]
    found = [f for f in found if not any(part.startswith(".") for part in f.relative_to(path).parts)]
    if not found:
        raise InputError(f"{path}: the folder holds no file with the ending {', '.join(SUFFIXES)}")
    named = {f: _words(f.relative_to(path)) for f in found}
    if not any(word in SPLITS or word == split for words in named.values() for word in words):
        return found
    chosen = [f for f, words in named.items() if split in words]
    if not chosen:
        names = ", ".join(str(f.relative_to(path)) for f in found[:8])
        raise InputError(f"{path}: no file of the split {split!r} among {names}; set `split`")
    folders = list(dict.fromkeys(_configuration(f.relative_to(path), split) for f in chosen))
    if len(folders) > 1:
        raise InputError(
            f"{path}: the split {split!r} lies in several folders ({', '.join(folders)}): name one of them"
        )
    return chosen


def _words(path: Path) -> list[str]:
    return re.split(r"[-_./\\]", str(path).lower())


def _configuration(path: Path, split: str) -> str:
    """The folder of a file, without folders that are named after the split itself."""
    return "/".join(part for part in path.parts[:-1] if part.lower() != split) or "."


def _open(path: Path) -> IO[bytes]:
    if path.name.lower().endswith(".gz"):
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def _jsonl(path: Path) -> Iterator[Row]:
    with _open(path) as handle:
        for number, line in enumerate(handle, 1):
            if line.strip():
                yield Row(f"{path}:{number}", _object(line))


def _object(line: bytes) -> dict[str, Any] | BadRow:
    try:
        value = json.loads(_text(line))
    except UnicodeDecodeError as error:
        return BadRow("invalid_utf8", f"byte {error.start + 1} is not UTF-8: save the file as UTF-8")
    except json.JSONDecodeError as error:
        return BadRow("invalid_json", f"not JSON at character {error.pos + 1}: {error.msg}")
    if not isinstance(value, dict):
        return BadRow("not_an_object", f"found {kind_of(value)}, wanted an object with named columns")
    return value


def _text(line: bytes) -> str:
    return line.decode("utf-8-sig" if line.startswith(b"\xef\xbb\xbf") else "utf-8")


def _json(path: Path) -> Iterator[Row]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        line = path.read_bytes().count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8: save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}: not JSON: {error.msg}. A file with one object on each line must end in .jsonl"
        ) from None
    if not isinstance(value, list):
        raise InputError(f"{path}: found {kind_of(value)}, wanted a list of objects")
    for number, item in enumerate(value, 1):
        wrong = BadRow("not_an_object", f"found {kind_of(item)}, wanted an object with named columns")
        yield Row(f"{path}, item {number}", item if isinstance(item, dict) else wrong)


def _csv(path: Path) -> Iterator[Row]:
    """CSV with a header. A row's line is the one it starts on. Not UTF-8 is an error: quoting spans lines."""
    reader = csv.reader(_lines(path), strict=True)
    try:
        header = next(reader, None)
        if header is None or len(dict.fromkeys(header)) != len(header):
            raise InputError(f"{path}:1: wanted a header line with different column names, found {header}")
        line = reader.line_num + 1
        for cells in reader:
            if len(cells) == len(header):
                yield Row(f"{path}:{line}", dict(zip(header, cells, strict=True)))
            elif cells:
                found = f"found {len(cells)} cells under {len(header)} column names"
                yield Row(f"{path}:{line}", BadRow("wrong_cell_count", f"{found}: quote cells that hold commas"))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not CSV: {error}") from None


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            try:
                yield _text(line)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}:{number}: byte {error.start + 1} of the line is not UTF-8: save the file as UTF-8"
                ) from None


def _parquet(path: Path) -> Iterator[Row]:
    try:
        file = pq.ParquetFile(path)
        batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=BATCH_ROWS))
        for number, values in enumerate(chain.from_iterable(batches), 1):
            yield Row(f"{path}, row {number}", values)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: not a Parquet file, or a damaged one ({error})") from error


def kind_of(value: Any) -> str:
    """What a value is, in words that a message can use."""
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)
