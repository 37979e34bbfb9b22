"""Tokenises records, in the stage's process or in several (`workers`), with byte-identical results."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

from togi.core.errors import Interrupted, StageError
from togi.core.records import Record
from togi.core.seeds import digest
from togi.core.settings import Ref
from togi.model.load import LoadedModel
from togi.stages.context import Context
from togi.stages.shards import SHARD_ROWS, SerialShards, ShardTask
from togi.stages.training.example_work import Example
from togi.stages.training.optimisation import TokenisedTraining
from togi.stages.training.token_writer_work import TokenWriter
from togi.text.turns import Unrendered

DROPS = "drops.jsonl"
AT_ONCE = 512
"""Records that are held in memory as examples at a time."""
ROWS = "togi.stages.training.token_rows_work"
"""The module that tokenises a shard of records in another process."""


class Border(Protocol):
    """Converts a record to an example, or gives the reason for dropping it. `key` holds the settings that determine the
    result, as JSON-like values; `counts` its counters."""

    counts: Counter[str]

    @property
    def model(self) -> LoadedModel: ...

    @property
    def key(self) -> Any: ...

    def __call__(self, record: Any, /) -> Example | str: ...


def words_of(model: LoadedModel) -> str:
    """A hash of everything that determines a model's tokens: tokenizer, special tokens, template."""
    tokenizer = model.tokenizer
    special = sorted(map(str, tokenizer.special_tokens_map.items()))
    return digest([tokenizer.backend_tokenizer.to_str(), special, asdict(model.template)])


@dataclass(slots=True)
class Tally:
    """Counts made while tokenising: the border's counters, the number of records that the template cannot render in
    full, and the reason for the first of them."""

    counts: Counter[str] = field(default_factory=Counter)
    unrendered: int = 0
    first: str = ""

    def add(self, more: "Tally") -> None:
        """Adds the tally of the following records."""
        self.counts.update(more.counts)
        self.unrendered += more.unrendered
        self.first = self.first or more.first


def tokenise(border: Border, records: Iterable[Record], writer: TokenWriter, drops: TextIO) -> Tally:
    """Writes the examples of records, and a line [id, reason] for each dropped record. Raises the border's
    InputError."""
    tally = Tally()
    before, border.counts = border.counts, tally.counts
    try:
        for record in records:
            example = _example(border, record, tally)
            if isinstance(example, str):
                drops.write(f"{json.dumps([record.id, example])}\n")
            else:
                writer.add(example)
    finally:
        border.counts = before
    writer.flush()
    return tally


def _example(border: Border, record: Record, tally: Tally) -> Example | str:
    try:
        return border(record)
    except Unrendered as error:
        tally.unrendered += 1
        tally.first = tally.first or f"{record.id}: {error}"
        return "not_rendered"


@dataclass(frozen=True, slots=True)
class Making:
    """Tokenises the records of `ref`. `told` holds further entries of the manifest, such as the number of
    `records`."""

    settings: TokenisedTraining
    context: Context
    ref: Ref
    border: Border
    told: dict[str, Any]

    def fill(self, folder: Path) -> None:
        """Writes all examples into a folder, and reports the rate. Raises the border's InputError, and Interrupted when
        asked to stop."""
        tally, done, start = Tally(), 0, time.monotonic()
        with closing(TokenWriter(folder, len(self.border.model.tokenizer))) as writer:
            with (folder / DROPS).open("w", encoding="utf-8") as drops:
                for count, found in self._steps(writer, drops, folder):
                    tally.add(found)
                    done += count
                    rate = writer.tokens / max(time.monotonic() - start, 1e-3)
                    self._tell(done, f"tokenising, {rate:,.0f} tokens/s")
            unrendered = [tally.unrendered, tally.first]
            writer.finish({**self.told, "counts": dict(tally.counts), "unrendered": unrendered}, [DROPS])

    def _tell(self, done: int, note: str) -> None:
        """Reports progress, and tells waiting ranks that this one is alive."""
        self.context.progress(done, self.told["records"], "records", note)
        self.context.ranks.still_here()
        if self.context.control.stop:  # each rank gets the signal itself; the others may not be here
            raise Interrupted(f"stage {self.context.name}: stopped while tokenising, which starts over on resume")

    def _steps(self, writer: TokenWriter, drops: TextIO, folder: Path) -> Iterator[tuple[int, Tally]]:
        """Yields the number of records written and their tally, part by part."""
        alone = isinstance(self.context.shards, SerialShards) or self.told["records"] <= SHARD_ROWS
        if not alone and self.context.contents(self.ref) is not None:
            yield from self._in_pool(writer, drops, folder)
            return
        for records in self.context.batches(self.ref, AT_ONCE, noted=False):
            yield len(records), tokenise(self.border, records, writer, drops)

    def _in_pool(self, writer: TokenWriter, drops: TextIO, folder: Path) -> Iterator[tuple[int, Tally]]:
        tasks, words = self._tasks(folder), words_of(self.border.model)
        for task, value in zip(tasks, self.context.shards.values(tasks), strict=True):
            part = part_folder(folder, task.number)
            if value["words"] != words:
                raise StageError(
                    f"stage {self.context.name}: a worker process read a different tokenizer or template for "
                    f"{self.settings.init} than the stage did; set workers: 1"
                )
            writer.take(part)
            with (part / DROPS).open(encoding="utf-8") as lines:
                shutil.copyfileobj(lines, drops)
            shutil.rmtree(part)
            yield value["records"], Tally(Counter(value["counts"]), *value["unrendered"])

    def _tasks(self, folder: Path) -> list[ShardTask]:
        context, cls = self.context, type(self.settings)
        source = asdict(context.model(self.settings.init))
        return [
            ShardTask(
                rows=ROWS,
                settings_class=f"{cls.__module__}:{cls.__qualname__}",
                settings=self.settings.model_dump(mode="json"),
                stage=context.name,
                producer=context.folder.name,
                seed=context.seed,
                source=str(context.records_file(self.ref)),
                number=number,
                first=first,
                count=SHARD_ROWS,
                more={"folder": str(folder), "cache": str(context.cache), "model": source},
            )
            for number, first in enumerate(range(0, self.told["records"], SHARD_ROWS))
        ]


def part_folder(folder: Path, number: int) -> Path:
    """The folder of a shard's tokens until they are joined."""
    return folder / f"part-{number:06d}"
