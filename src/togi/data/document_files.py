"""Documents for grounded answers, from a list of documents or from files: HTML, Markdown and plain text, cut into
parts.

A row of a list has `content` (or `text`) and optionally a `title`.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from togi.core.errors import InputError
from togi.data.chunks import chunks
from togi.data.files import files_under
from togi.data.html_text import CONTROLS, declared_encoding, page_text
from togi.data.rows import SUFFIXES, read_rows
from togi.data.values import BadRow, kind_of
from togi.text.grounded import Shown

LONGEST = 4000
"""Maximum characters of a part, about the length of the longest documents in the card's data."""
HTML = (".html", ".htm", ".xhtml")
MARKDOWN = (".md", ".markdown")
PLAIN = (".txt",)
READ = (*HTML, *MARKDOWN, *PLAIN)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a document. `place` is its position in `file`: its lines, or the item of a list; `part` of `parts`
    counts from 1."""

    file: str
    place: str
    shown: Shown
    part: int = 1
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Found:
    """The parts of all documents, in file order; `documents` is the number of documents, `passed` the number of skipped
    files of other kinds in a folder."""

    parts: list[Part]
    documents: int
    passed: int = 0


def read_parts(path: Path, longest: int = LONGEST, whole: int = 0) -> Found:
    """The documents of a list (.json, .jsonl, .parquet, ...), of a folder, or of one file, cut into parts of at most
    `longest` characters. A list of up to `whole` documents is not cut.

    Raises InputError for a missing path, for a file that cannot be read, and if no document has any text.
    """
    try:
        if path.is_dir():
            found = _folder(path, longest)
        elif path.is_file():
            found = _file(path, longest, whole)
        else:
            raise InputError(f"{path}: there is no such file or folder; documents are {_allowed()}")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not found.parts:
        raise InputError(f"{path}: none of its documents has any text")
    return found


def _allowed() -> str:
    return f"a list (.json, .jsonl), a file or a folder of files with the ending {', '.join(READ)}"


def _folder(folder: Path, longest: int) -> Found:
    files = files_under(folder)
    read = [file for file in files if file.suffix.lower() in READ]
    if not read:
        raise InputError(f"{folder}: the folder has no file with the ending {', '.join(READ)}")
    parts = [part for file in read for part in _cut(file, str(file.relative_to(folder)), longest)]
    return Found(parts, len(read), len(files) - len(read))


def _file(path: Path, longest: int, whole: int) -> Found:
    if path.suffix.lower() in READ:
        return Found(list(_cut(path, path.name, longest)), 1)
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"{path}: cannot read this kind of file; documents are {_allowed()}")
    rows = [_document(row.where, row.values) for row in read_rows(path)]
    if len(rows) <= whole:
        return Found([Part(path.name, _item(i), shown) for i, shown in enumerate(rows, 1)], len(rows))
    return Found([part for i, shown in enumerate(rows, 1) for part in _split(path.name, i, shown, longest)], len(rows))


def _item(number: int) -> str:
    return f"item {number}"


def _document(where: str, row: dict[str, Any] | BadRow) -> Shown:
    if isinstance(row, BadRow):
        raise InputError(f"{where}: {row}")
    content, title = row.get("content", row.get("text")), row.get("title")
    if not isinstance(content, str) or not content.strip():
        found = "an empty text" if isinstance(content, str) else kind_of(content)
        raise InputError(f"{where}: content: found {found}; a document needs content (or text), and a title or null")
    if title is not None and not isinstance(title, str):
        raise InputError(f"{where}: title: found {kind_of(title)}; allowed is text, or null")
    return Shown(title, content)


def _split(file: str, item: int, shown: Shown, longest: int) -> Iterator[Part]:
    pieces = chunks(shown.content, longest)
    for number, piece in enumerate(pieces, 1):
        yield Part(file, _item(item), Shown(shown.title, piece), number, len(pieces))


# --- files ------------------------------------------------------------------------------------------------------------

_HEADING = re.compile(r"^#{1,6}[ \t]+(\S.*)", re.M)
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""The marks at the beginning of a file that name its encoding, whatever else it declares."""


def _cut(path: Path, name: str, longest: int) -> Iterator[Part]:
    text, title, line = _text_of(path)
    pieces = chunks(text, longest)
    end = 0
    for number, piece in enumerate(pieces, 1):
        start = text.index(piece, end)
        end = start + len(piece)
        yield Part(name, _lines(line(start), line(end - 1)), Shown(title, piece), number, len(pieces))


def _lines(first: int, last: int) -> str:
    return f"lines {first} to {last}" if last > first else f"line {first}"


def _text_of(path: Path) -> tuple[str, str, Callable[[int], int]]:
    """A file's text, its title, and a function that returns the line of a position in the text."""
    kind = path.suffix.lower()
    if kind in HTML:
        page = page_text(_decoded(path, page=True))
        return page.text, page.title or _first_heading(page.text) or path.stem, page.line
    text = _decoded(path)
    title = _first_heading(text) if kind in MARKDOWN else ""
    return text, title or path.stem, _line_counter(text)


def _first_heading(text: str) -> str:
    """The first heading, without the marks that may close it."""
    found = _HEADING.search(text)
    words = found[1].rstrip() if found else ""
    opened = words.rstrip("#")
    return opened.rstrip() if opened[-1:].isspace() else words


def _line_counter(text: str) -> Callable[[int], int]:
    ends = [match.start() for match in re.finditer("\n", text)]
    return lambda place: bisect_left(ends, place) + 1


def _decoded(path: Path, page: bool = False) -> str:
    """The text of a file: in the encoding of its first bytes, that a `page` declares, or UTF-8. Raises InputError if
    the file is not in it."""
    raw = path.read_bytes()
    label, codec = declared_encoding(raw) if page else ("", "utf-8")
    codec = next((name for mark, name in _MARKS.items() if raw.startswith(mark)), codec)
    try:
        text = raw.decode(codec, CONTROLS)
    except UnicodeDecodeError:
        declared = f" (it declares {label!r})" if label else ""
        raise InputError(f"{path}: is not {codec} text{declared}; save the file as UTF-8, or remove it") from None
    return text.replace("\r\n", "\n")


def shown_of(parts: Sequence[Part]) -> list[Shown]:
    """The parts as shown in a dialogue."""
    return [part.shown for part in parts]
