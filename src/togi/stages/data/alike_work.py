"""Reads embeddings, scores and ids in batches, for stages that compare records."""

from collections.abc import Sequence

import numpy as np

from togi.core.errors import InputError
from togi.core.protocols import Embedder
from togi.core.records import Record, Sample
from togi.core.settings import Ref
from togi.data.compared import Part, compared
from togi.stages.context import Context


def embedded(asked: Embedder, context: Context, ref: Ref, part: Part, rows: np.ndarray | None = None) -> np.ndarray:
    """(N, W) float16: the embeddings of the records of `ref` in their order, or only of those in the bool mask
    `rows`."""
    total = context.records_count(ref)
    wanted = np.ones(total, dtype=bool) if rows is None else rows
    count = int(wanted.sum())
    vectors_NW: np.ndarray | None = None
    first = done = 0
    for batch in context.batches(ref, 512):
        texts = [compared(record, part) for place, record in enumerate(batch, first) if wanted[place]]
        first += len(batch)
        if texts:
            found = asked.embed(texts)
            if vectors_NW is None:
                vectors_NW = np.zeros((count, found.shape[1]), dtype=np.float16)
            vectors_NW[done : done + len(texts)] = found
            done += len(texts)
            context.progress(done, count, "embedding")
        context.check_stop()
    return np.zeros((0, 1), dtype=np.float16) if vectors_NW is None else vectors_NW


def best_first(scores_N: np.ndarray) -> np.ndarray:
    """Rows from the best score to the worst; ties keep their order."""
    return np.argsort(-scores_N, kind="stable")


def scores_of(context: Context, ref: Ref, name: str) -> np.ndarray:
    """(N,) float64: the score `name` of each record. Raises InputError for a record without it."""
    return np.array([_score(context, record, name) for batch in context.batches(ref) for record in batch])


def _score(context: Context, record: Record, name: str) -> float:
    known = {**record.extra, **(record.scores if isinstance(record, Sample) else {})}
    value = known.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
        return float(value)
    there = ", ".join(key for key, found in known.items() if isinstance(found, int | float)) or "none"
    found = "has no" if value is None else f"has {value!r} as"
    raise InputError(
        f"stage {context.name}: record {record.id} {found} {name} (by: {name}); its numeric values: {there}"
    )


def ids_of(context: Context, ref: Ref, rows: Sequence[int] | np.ndarray) -> dict[int, str]:
    """The ids of the records in `rows`, by row."""
    wanted = np.zeros(context.records_count(ref), dtype=bool)
    wanted[np.asarray(rows, dtype=np.int64)] = True
    found: dict[int, str] = {}
    first = 0
    for batch in context.batches(ref):
        places = np.flatnonzero(wanted[first : first + len(batch)]).tolist()
        found |= {first + place: batch[place].id for place in places}
        first += len(batch)
    return found
