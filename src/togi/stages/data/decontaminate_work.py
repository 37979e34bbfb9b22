"""The work of `decontaminate`. A shard of rows is a unit of work; only the evaluation sets are held in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from togi.core.files import write_json
from togi.core.protocols import Embedder
from togi.core.record_streams import read_range
from togi.core.records import Match, Record
from togi.core.seeds import make_id
from togi.core.settings import refs_of
from togi.data.compared import turns
from togi.data.contamination import Sought
from togi.stages.context import Context
from togi.stages.data import rows
from togi.stages.data.decontaminate import STAGE, Decontaminate
from togi.stages.data.decontaminate_rows import Sets, Told, sought, told
from togi.stages.endpoints import embedder
from togi.stages.held_against import FILE, Held

REASON = {"ngrams": "in_evaluation_set", "embedding": "like_evaluation_set"}
UNIT = "search"


def run(settings: Decontaminate, context: Context) -> None:
    count = context.records_count(settings.input)
    context.count_in(count)
    search = Search.of(settings, context)
    found = {name: 0 for name, *_ in search.sets}
    units = search.matches(-(-count // rows.SHARD_ROWS))
    with context.writer(settings.kind or "") as kept, context.writer("matches", "matches") as matches:
        for batch, unit in zip(context.batches(settings.input, rows.SHARD_ROWS), units, strict=True):
            matched = {each["row"]: each for each in reversed(unit)}
            kept.write([record for row, record in enumerate(batch) if row not in matched])
            matches.write([_match(context, batch[each["row"]], each, index) for index, each in enumerate(unit)])
            for row in sorted(matched):
                context.drop(batch[row], REASON[matched[row]["how"]])
            for where in dict.fromkeys((each["row"], each["where"]) for each in unit):
                found[where[1]] += 1
    context.summary |= {"records that matched": found}
    held = [Held(context.name, where, search.marks[where], number, count) for where, number in found.items()]
    write_json(context.folder / FILE, [each.to_json() for each in held])
    _tell(context, found, count)


def _tell(context: Context, found: dict[str, int], count: int) -> None:
    each = ", ".join(f"{number} in {where}" for where, number in found.items())
    context.log(f"of {count} records, matched an evaluation set: {each}")


@dataclass(frozen=True, slots=True)
class Search:
    """The evaluation texts to compare records with: `sets` names the sets and their files, `marks` identify their
    content for the stages that measure on them. `asked` and `vectors_EW`, the embeddings of the questions in `texts`,
    exist only with an embedder."""

    settings: Decontaminate
    context: Context
    sets: Sets
    marks: dict[str, str]
    asked: Embedder | None = None
    texts: Sequence[Sought] = ()
    vectors_EW: np.ndarray | None = None

    @classmethod
    def of(cls, settings: Decontaminate, context: Context) -> "Search":
        refs = [] if settings.against is None else refs_of(settings.against)
        for ref in refs:
            context.records_count(ref)
        sets = tuple((str(ref), str(context.records_file(ref)), str(context.contents(ref))) for ref in refs)
        marks = {str(ref): context.output_mark(ref) for ref in refs}
        if settings.embedder is None:
            return cls(settings, context, sets, marks)
        asked, texts = embedder(context, settings.embedder), list(sought(sets, settings.characters))
        return cls(settings, context, sets, marks, asked, texts, asked.embed([each.text for each in texts]))

    def matches(self, count: int) -> Iterator[list[Told]]:
        """Yields the matches of the records of each of `count` shards, by their row in the shard."""
        more = {"sets": self.sets}
        missing = self.context.missing_units(count, UNIT)
        tasks = [rows.shard_task(STAGE, self.settings, self.context, self.settings.input, n, more) for n in missing]
        values = self.context.shards.values(tasks)
        return self.context.stream_units(count, lambda number: self._joined(number, next(values)["found"]), UNIT)

    def _joined(self, number: int, found: list[Told]) -> list[Told]:
        """The matches of a shard by n-grams, and those by embedding of other pairs."""
        pairs = {(each["row"], each["where"], each["other"]): each for each in found}
        for each in self._close(number):
            pairs.setdefault((each["row"], each["where"], each["other"]), each)
        names = [name for name, *_ in self.sets]
        return [pairs[key] for key in sorted(pairs, key=lambda key: (key[0], names.index(key[1])))]

    def _close(self, number: int) -> list[Told]:
        """Matches of records whose question embedding is close to that of an evaluation text; for each record the
        closest one."""
        if self.asked is None or self.vectors_EW is None or not len(self.vectors_EW):
            return []
        records = read_range(self.context.records_file(self.settings.input), number * rows.SHARD_ROWS, rows.SHARD_ROWS)
        texts = ["\n".join(turns(record, "question")) for record in records]
        cosine_NE = self.asked.embed(texts) @ self.vectors_EW.T
        best_N = cosine_NE.argmax(axis=1)
        closest_N = np.take_along_axis(cosine_NE, best_N[:, None], axis=1)[:, 0]
        return [
            told(row, self.texts[best_N[row]], "embedding", float(closest_N[row]), texts[row])
            for row in np.flatnonzero(closest_N > self.settings.max_cosine).tolist()
        ]


def _match(context: Context, record: Record, found: Told, index: int) -> Match:
    return Match(
        id=make_id(context.folder.name, (record.id, found["other"]), index),
        parents=(record.id, found["other"]),
        record=record.id,
        **{name: found[name] for name in ("where", "other", "how", "similarity", "text")},
    )
