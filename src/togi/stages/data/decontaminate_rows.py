"""The row-wise part of `decontaminate`: finds the n-grams of evaluation sets in a shard of records."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from togi.core.record_streams import read_batches
from togi.core.records import Record
from togi.data.compared import turns
from togi.data.contamination import Contamination, Sought
from togi.stages.data.decontaminate import Decontaminate
from togi.stages.shards import SHARD_ROWS, Shard

EXCERPT = 400
"""Maximum length of the matched text in `.matches`, in characters."""

Told = dict[str, Any]
"""A match as stored by a unit of work."""

Sets = tuple[tuple[str, str, str], ...]
"""The evaluation sets: the reference, the file of records and its hash of each."""


def value_of(settings: Decontaminate, shard: Shard, more: dict[str, Any]) -> dict[str, Any]:
    """`found`: the matches of the shard's records by n-grams. `more` has the evaluation `sets`, as `Sets`."""
    texts, owners = [], []
    for row, record in enumerate(shard.records):
        said = turns(record, settings.part)
        texts += said
        owners += [row] * len(said)
    sets = tuple(map(tuple, more["sets"]))
    search = _search(sets, settings.words, settings.characters, settings.share)
    found = {
        (owners[match.row], match.sought.where, match.sought.id): told(
            owners[match.row], match.sought, "ngrams", match.share, match.text
        )
        for match in search.find(texts)
    }
    return {"found": list(found.values())}


@lru_cache(maxsize=1)
def _search(sets: Sets, words: int, characters: int, share: float) -> Contamination:
    """The index of the evaluation sets, made once by each process that does shards."""
    return Contamination(list(sought(sets, characters)), words, characters, share)


def sought(sets: Sets, characters: int) -> Iterable[Sought]:
    """The texts of evaluation sets to search for: each long user turn of a record, else all its turns as one text."""
    for ref, file, _ in sets:
        for batch in read_batches(Path(file), SHARD_ROWS):
            yield from (Sought(ref, record.id, text) for record in batch for text in _questions(record, characters))


def _questions(record: Record, characters: int) -> list[str]:
    asked = turns(record, "question")
    long = [text for text in asked if len(text) >= 2 * characters]
    return long or ["\n".join(asked)]


def told(row: int, found: Sought, how: str, similarity: float, text: str) -> Told:
    """A match of the record at `row` of its shard."""
    return {
        "row": row,
        "where": found.where,
        "other": found.id,
        "how": how,
        "similarity": similarity,
        "text": text[:EXCERPT],
    }
