"""Reads rows from JSON, JSON Lines, CSV, TSV, Parquet and plain text files, each with its position in the file.

For each library that reads a format, a single place turns its errors into a bad row or an InputError with file and
line.
"""

import csv
import gzip
import json
import logging
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from togi.core.errors import InputError
from togi.core.outside import refuse_pointer
from togi.data.files import SPLIT_WORDS, SUFFIXES, ending_of, find_files
from togi.data.squad import is_squad, squad_rows
from togi.data.values import BadRow, judged, kind_of, parse_json, parse_list, without_nulls

__all__ = ["SUFFIXES", "Row", "find_files", "read_rows"]

log = logging.getLogger(__name__)

BATCH_ROWS = 4096
UTF8_MARK = b"\xef\xbb\xbf"
DAMAGED = (pa.ArrowException, OSError, MemoryError, ValueError, LookupError, OverflowError)  # what pyarrow raises
UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Row:
    """One row: `where` is file:line (or file, row N). `values` is a BadRow if the row could not be read."""

    where: str
    values: dict[str, Any] | BadRow


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of one file, in order. Raises InputError if the file as a whole cannot be read."""
    refuse_pointer(path)
    match ending_of(path):
        case ".parquet":
            return _parquet(path)
        case ".csv":
            return _csv(path, _separator(path))
        case ".tsv":
            return _csv(path, "\t")
        case ".txt":
            return _document(path)
        case ".json":
            return _json(path)
        case _:
            return _jsonl(path)


# --- bytes and text ---------------------------------------------------------------------------------------------------


def _byte_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, decompressed, with their numbers, without UTF-8's byte order mark."""
    number = 0
    try:
        with _open(path) as handle:
            for number, line in enumerate(handle, 1):
                if number == 1 and (line[:2] in UTF16 or b"\0" in line[:2]):
                    raise InputError(f"{path}: looks like UTF-16: save the file as UTF-8")
                yield number, line.removeprefix(UTF8_MARK)
    except EOFError:
        raise InputError(
            f"{path}:{number + 1}: the file ends early; the download may be incomplete: fetch it again"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}:{number + 1}: not a gzip file, or a damaged one ({error}): fetch it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _open(path: Path) -> IO[bytes]:
    if path.name.lower().endswith(".gz"):
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def _lines(path: Path) -> Iterator[str]:
    """The lines as text. Raises InputError for a line that is not UTF-8."""
    for number, line in _byte_lines(path):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}:{number}: byte {error.start + 1} of the line is not UTF-8: save the file as UTF-8"
            ) from None


def _document(path: Path) -> Iterator[Row]:
    """A text file is one document."""
    yield Row(str(path), {"text": "".join(_lines(path)).replace("\r\n", "\n")})


# --- JSON -------------------------------------------------------------------------------------------------------------


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in _byte_lines(path):
        if line.strip():
            yield Row(f"{path}:{number}", _object(line))


def _object(line: bytes) -> dict[str, Any] | BadRow:
    try:
        return _row(parse_json(line.decode()))
    except UnicodeDecodeError as error:
        return BadRow("invalid_utf8", f"byte {error.start + 1} is not UTF-8: save the file as UTF-8")
    except BadRow as bad:
        return bad


def _row(value: Any) -> dict[str, Any] | BadRow:
    if isinstance(value, dict | BadRow):
        return value
    return BadRow("not_an_object", f"found {kind_of(value)}, wanted an object with named columns")


CONTAINERS = ("data", "rows", "examples", "records", "items", *SPLIT_WORDS)


def _json(path: Path) -> Iterator[Row]:
    """A list of objects; the questions of a SQuAD file; or JSON Lines under a .json name, if the first line is a whole
    object."""
    if _begins_with_a_row(path):
        yield from _jsonl(path)
        return
    try:
        value = parse_list("".join(_lines(path)))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}: not JSON: {error.msg}; wanted a list of objects, or one object on each line"
        ) from None
    except BadRow as bad:
        raise InputError(f"{path}: {bad}") from None
    if is_squad(value):
        yield from (Row(f"{path}, {place}", judged(row)) for place, row in squad_rows(value))
        return
    if not isinstance(value, list):
        held = f" with the keys {', '.join(list(value)[:8])}" if isinstance(value, dict) else ""
        raise InputError(f"{path}: found {kind_of(value)}{held}, wanted a list of objects, or one object on each line")
    for number, item in enumerate(value, 1):
        yield Row(f"{path}, item {number}", _row(item))


def _begins_with_a_row(path: Path) -> bool:
    """Whether the first line is an object, even a bad one, but not a container of all rows."""
    lines = (line for _, line in _byte_lines(path) if line.strip())
    first = next(lines, b"")
    if not first.lstrip().startswith(b"{"):
        return False
    found = _object(first)
    if isinstance(found, BadRow):
        return found.reason not in ("invalid_json", "invalid_utf8")
    return not any(isinstance(found.get(key), list | dict) for key in CONTAINERS) or next(lines, None) is not None


# --- CSV --------------------------------------------------------------------------------------------------------------


SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def _separator(path: Path) -> str:
    """The separator of a .csv file. Excel writes semicolons where a comma is the decimal sign."""
    first = next(_lines(path), "")
    try:
        counts = {each: len(next(csv.reader([first], delimiter=each), [])) for each in SEPARATORS}
    except csv.Error:
        return ","
    found = "," if counts[","] > 1 else max(counts, key=lambda each: counts[each])
    if found != ",":
        _tell(path, SEPARATORS[found])
    return found


@lru_cache(maxsize=64)
def _tell(path: Path, separators: str) -> None:
    """Logs the separator of a file, once in a process."""
    log.warning("%s: read with %s between the cells, as in its header line", path, separators)


def _csv(path: Path, delimiter: str) -> Iterator[Row]:
    """Cells under a header. A row's line is the one it starts on. Text that is not UTF-8 is an error, not a bad row,
    because quoting spans lines."""
    csv.field_size_limit(sys.maxsize)  # by default the library rejects cells of over 131,072 characters
    reader = csv.reader(_lines(path), strict=True, delimiter=delimiter)
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
                wrong = f"{found}: quote cells that contain {SEPARATORS[delimiter]}"
                yield Row(f"{path}:{line}", BadRow("wrong_cell_count", wrong))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not CSV: {error}") from None


# --- Parquet ----------------------------------------------------------------------------------------------------------


def _parquet(path: Path) -> Iterator[Row]:
    number = 0
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if len(dict.fromkeys(names)) != len(names):
            raise InputError(f"{path}: two columns have the same name ({', '.join(names)}): rename one")
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            for values in _batch(batch):
                number += 1
                yield Row(f"{path}, row {number}", values)
    except DAMAGED as error:
        what = " ".join(str(error).split())
        raise InputError(
            f"{path}: not a Parquet file, or a damaged one (after row {number}: {what}): fetch or write it again"
        ) from error


def _batch(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | BadRow]:
    """The rows of a batch. If one holds a value that Python cannot represent (a time beyond year 9999, bytes that are
    not UTF-8), bisection finds it."""
    try:
        yield from [{name: without_nulls(v) for name, v in row.items()} for row in batch.to_pylist()]
    except (ValueError, OverflowError, LookupError) as error:
        half = batch.num_rows // 2
        if half:
            yield from _batch(batch.slice(0, half))
            yield from _batch(batch.slice(half))
        else:
            yield BadRow("unreadable_value", f"holds a value that cannot be read ({error})")
