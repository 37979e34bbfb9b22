"""Tokenised data: kept in the store, for every stage, rank and later run that would tokenise the same records alike.

The folder is `tokens-<hash>`, with a hash of the records, the tokenizer, the template, and the settings that determine
a record's example. It can be deleted: `togi clean --yes` removes it, and it is made again when needed.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from togi.core.errors import DamagedFile
from togi.core.seeds import digest
from togi.core.settings import Ref
from togi.stages.context import Context
from togi.stages.made_once import made_once
from togi.stages.training.example_work import Example
from togi.stages.training.optimisation import TokenisedTraining
from togi.stages.training.token_files_work import Stored, TokenFile
from togi.stages.training.token_writer_work import MANIFEST, TokenWriter
from togi.stages.training.tokenising_work import AT_ONCE, DROPS, Border, Making, words_of

VERSION = 1
"""Increased when the same records and settings give different tokens."""


def tokenised(settings: TokenisedTraining, context: Context, ref: Ref, border: Border) -> TokenFile:
    """The examples of the records of `ref`, from the store if it has them. In either case the drops are recorded in the
    stage, and the counts in the border.

    Raises the border's InputError, and InputError if there are no records.
    """
    count = context.records_count(ref)
    key = _key(context, ref, border)
    folder = context.folder / f"tokens-{ref.name}" if key is None else context.cache / f"tokens-{key}"
    making = Making(settings, context, ref, border, {"name": folder.name, "records": count})
    file = _stored(context, folder, f"the tokenising of {ref}", making.fill)
    context.note_sources(ref)
    border.counts.update(file.more["counts"])
    with (file.folder / DROPS).open(encoding="utf-8") as drops:
        for line in drops:
            context.drop(*json.loads(line))
    return file


def _stored(context: Context, folder: Path, what: str, make: Callable[[Path], None]) -> TokenFile:
    """The token file of a folder, on each rank. If it is missing or damaged, `make` fills a new folder."""

    def read(tell: Callable[[str], None]) -> TokenFile | None:
        try:
            return _own(TokenFile(folder)) if (folder / MANIFEST).exists() else None
        except FileNotFoundError:  # another process has just set it aside
            return None
        except DamagedFile as error:
            tell(f"{error}. Tokenising again")
            return None

    return context.ranks.in_turn(lambda: made_once(context, folder, what, read, make))


def _key(context: Context, ref: Ref, border: Border) -> str | None:
    """The store key of the records' tokens; None if the records are not in a file."""
    content = context.contents(ref)
    if content is None:
        return None
    code = [VERSION, *(metadata.version(name) for name in ("transformers", "tokenizers", "jinja2"))]
    made_by = f"{type(border).__module__}.{type(border).__qualname__}"
    return digest([code, content, words_of(border.model), made_by, border.key])[:16]


def _own(file: TokenFile) -> TokenFile:
    """The file. Raises DamagedFile if it was made under another name, and so for other contents."""
    if file.more["name"] != file.folder.name:
        raise DamagedFile(f"{file.folder}: tokens of other records, another tokenizer or other settings")
    return file


def kept(context: Context, name: str, of: Stored, key: Any, examples: Iterable[Example], vocabulary: int) -> Stored:
    """Examples derived from `of` and `key`, stored on disk where those are, and made only once. `name` is their folder
    if they are stored in the stage's folder."""
    source = [[file.folder.name for file in of.files], hashlib.sha256(of.rows().tobytes()).hexdigest()]
    stays = all(file.folder.parent == context.cache for file in of.files)
    folder = context.cache / f"tokens-{digest([source, name, key])[:16]}" if stays else context.folder / name

    def make(new: Path) -> None:
        writer = TokenWriter(new, vocabulary)
        try:
            for example in examples:
                writer.add(example)
                if writer.examples % AT_ONCE == 0:
                    writer.flush()
                    context.ranks.still_here()
            writer.finish({"name": folder.name})
        finally:
            writer.close()

    return Stored([_stored(context, folder, f"the cutting into {name}", make)])


def unrendered_warning(files: Sequence[TokenFile]) -> list[tuple[str, str]]:
    """A warning if the template cannot render some records of the files in full."""
    counts = [file.more["unrendered"] for file in files]
    if not (count := sum(number for number, _ in counts)):
        return []
    records = sum(file.more["records"] for file in files)
    first = next(told for number, told in counts if number)
    return [("not_rendered", f"{count} of {records} records are dropped; the first is {first}")]
