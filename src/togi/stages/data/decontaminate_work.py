"""The work of `decontaminate`. A shard of rows is a unit of work; only the evaluation sets are held in memory."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from togi.core.files import write_json
from togi.core.protocols import Embedder
from togi.core.record_streams import read_range
from togi.core.records import Match, Record
from togi.core.seeds import make_id
from togi.core.settings import refs_of
from togi.data.compared import turns
from togi.data.contamination import Contamination, Sought
from togi.stages.context import Context
from togi.stages.data.decontaminate import Decontaminate
from togi.stages.endpoints import embedder
from togi.stages.held_against import FILE, Held
from togi.stages.shards import SHARD_ROWS

EXCERPT = 400
"""Maximum length of the matched text in `.matches`, in characters."""

REASON = {"ngrams": "in_evaluation_set", "embedding": "like_evaluation_set"}

Told = dict[str, Any]
"""A match as stored by a unit of work."""


def run(settings: Decontaminate, context: Context) -> None:
    count = context.records_count(settings.input)
    context.count_in(count)
    search = Search.of(settings, context)
    found = dict.fromkeys(search.names, 0)
    units = context.stream_units(-(-count // SHARD_ROWS), search.shard, "shard")
    with context.writer(settings.kind or "") as kept, context.writer("matches", "matches") as matches:
        for batch, told in zip(context.batches(settings.input, SHARD_ROWS), units, strict=True):
            matched = {each["row"]: each for each in reversed(told)}
            kept.write([record for row, record in enumerate(batch) if row not in matched])
            matches.write([_match(context, batch[each["row"]], each, index) for index, each in enumerate(told)])
            for row in sorted(matched):
                context.drop(batch[row], REASON[matched[row]["how"]])
            for where in dict.fromkeys((each["row"], each["where"]) for each in told):
                found[where[1]] += 1
    context.summary |= {"records that matched": found}
    held = [Held(context.name, where, search.marks[where], number, count) for where, number in found.items()]
    write_json(context.folder / FILE, [each.to_json() for each in held])
    _tell(context, found, count)


def _tell(context: Context, found: dict[str, int], count: int) -> None:
    told = ", ".join(f"{number} in {where}" for where, number in found.items())
    context.log(f"of {count} records, matched an evaluation set: {told}")


@dataclass(frozen=True, slots=True)
class Search:
    """The evaluation texts to compare records with. `names` are the sets as the recipe refers to them; `marks` identify
    their content for the stages that measure on them; `vectors_EW` are the embeddings of the questions in `sought`."""

    settings: Decontaminate
    context: Context
    sought: list[Sought]
    texts: Contamination
    names: list[str]
    marks: dict[str, str]
    asked: Embedder | None
    vectors_EW: np.ndarray

    @classmethod
    def of(cls, settings: Decontaminate, context: Context) -> "Search":
        """Reads the evaluation sets."""
        refs = [] if settings.against is None else refs_of(settings.against)
        sought: list[Sought] = []
        for ref in refs:
            context.log(f"reading evaluation set {ref}")
            for batch in context.batches(ref):
                sought += [Sought(ref, record.id, text) for record in batch for text in _questions(record, settings)]
        texts = Contamination(sought, settings.words, settings.characters, settings.share)
        asked = None if settings.embedder is None else embedder(context, settings.embedder)
        vectors_EW = np.zeros((0, 1)) if asked is None else asked.embed([each.text for each in sought])
        marks = {str(ref): context.output_mark(ref) for ref in refs}
        return cls(settings, context, sought, texts, list(refs), marks, asked, vectors_EW)

    def shard(self, number: int) -> list[Told]:
        """The matches of the records of one shard, by their row in the shard."""
        path = self.context.records_file(self.settings.input)
        records = read_range(path, number * SHARD_ROWS, SHARD_ROWS)
        texts, owners = [], []
        for row, record in enumerate(records):
            said = turns(record, self.settings.part)
            texts += said
            owners += [row] * len(said)
        found = {
            (owners[match.row], match.sought.where, match.sought.id): _told(
                owners[match.row], match.sought, "ngrams", match.share, match.text
            )
            for match in self.texts.find(texts)
        }
        for told in self._close(records):
            found.setdefault((told["row"], told["where"], told["other"]), told)
        return [found[key] for key in sorted(found, key=lambda key: (key[0], self.names.index(key[1])))]

    def _close(self, records: list[Record]) -> list[Told]:
        """Matches of records whose question embedding is close to that of an evaluation text; for each record the
        closest one."""
        if self.asked is None or not len(self.vectors_EW):
            return []
        texts = ["\n".join(turns(record, "question")) for record in records]
        cosine_NE = self.asked.embed(texts) @ self.vectors_EW.T
        best_N = cosine_NE.argmax(axis=1)
        closest_N = np.take_along_axis(cosine_NE, best_N[:, None], axis=1)[:, 0]
        return [
            _told(row, self.sought[best_N[row]], "embedding", float(closest_N[row]), texts[row])
            for row in np.flatnonzero(closest_N > self.settings.max_cosine).tolist()
        ]


def _questions(record: Record, settings: Decontaminate) -> list[str]:
    """The texts of an evaluation record to search for: each long user turn, else all turns as one text."""
    asked = turns(record, "question")
    long = [text for text in asked if len(text) >= 2 * settings.characters]
    return long or ["\n".join(asked)]


def _told(row: int, sought: Sought, how: str, similarity: float, text: str) -> Told:
    return {
        "row": row,
        "where": sought.where,
        "other": sought.id,
        "how": how,
        "similarity": similarity,
        "text": text[:EXCERPT],
    }


def _match(context: Context, record: Record, told: Told, index: int) -> Match:
    return Match(
        id=make_id(context.folder.name, (record.id, told["other"]), index),
        parents=(record.id, told["other"]),
        record=record.id,
        **{name: told[name] for name in ("where", "other", "how", "similarity", "text")},
    )
