"""Records become tokens, in the stage's own process or in several (`workers`): the bytes are the same."""

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
"""Records that are examples in memory at a time."""
ROWS = "togi.stages.training.token_rows_work"
"""What does a shard of records in another process."""


class Border(Protocol):
    """Makes an example of a record, or gives the reason for dropping it. `key` are the settings that decide which, as
    JSON-like values; `counts` what it counted on the way."""

    counts: Counter[str]

    @property
    def model(self) -> LoadedModel: ...

    @property
    def key(self) -> Any: ...

    def __call__(self, record: Any, /) -> Example | str: ...


def words_of(model: LoadedModel) -> str:
    """A hash of all that a model makes tokens with: tokenizer, special tokens, template."""
    tokenizer = model.tokenizer
    special = sorted(map(str, tokenizer.special_tokens_map.items()))
    return digest([tokenizer.backend_tokenizer.to_str(), special, asdict(model.template)])


@dataclass(slots=True)
class Tally:
    """What tokenising tells besides tokens: what the border counted, how many records the template cannot render whole,
    and why the first of them."""

    counts: Counter[str] = field(default_factory=Counter)
    unrendered: int = 0
    first: str = ""

    def add(self, more: "Tally") -> None:
        """Counts what was told of the records that follow."""
        self.counts.update(more.counts)
        self.unrendered += more.unrendered
        self.first = self.first or more.first


def tokenise(border: Border, records: Iterable[Record], writer: TokenWriter, drops: TextIO) -> Tally:
    """Writes the examples of records, and a line [id, reason] for each that gives none. Raises InputError as the border
    does."""
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
    """Makes the tokens of the records of `ref`. `told` is what the manifest tells besides, such as how many `records`
    there are."""

    settings: TokenisedTraining
    context: Context
    ref: Ref
    border: Border
    told: dict[str, Any]

    def fill(self, folder: Path) -> None:
        """Writes all examples into a folder, and shows the rate. Raises InputError as the border does, and Interrupted
        when asked to stop."""
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
        """Says how far it is, to people and to ranks that wait."""
        self.context.progress(done, self.told["records"], "records", note)
        self.context.ranks.still_here()
        if self.context.control.stop:  # every rank hears of it by itself: one of them may be here alone
            raise Interrupted(f"stage {self.context.name}: stopped while it tokenised; it begins anew")

    def _steps(self, writer: TokenWriter, drops: TextIO, folder: Path) -> Iterator[tuple[int, Tally]]:
        """How many records were written, and what is told of them, part by part."""
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
                    f"stage {self.context.name}: another process reads another tokenizer or template for "
                    f"{self.settings.init} than the stage does; set workers: 1"
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
    """Where the tokens of a shard lie until they are joined."""
    return folder / f"part-{number:06d}"
