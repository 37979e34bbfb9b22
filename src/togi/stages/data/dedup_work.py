"""The work of `dedup`. The records are read in batches, several times; only a few numbers per record stay in memory."""

import hashlib

import numpy as np

from togi.core.records import Match, Record
from togi.core.seeds import make_id
from togi.data.compared import compared, has
from togi.data.duplicates import Copies, NgramCopies, copies_by_cosine
from togi.stages.context import Context
from togi.stages.data.alike_work import best_first, embedded, ids_of, scores_of
from togi.stages.data.dedup import Dedup
from togi.stages.endpoints import embedder
from togi.text.compare import comparable

EXCERPT = 400
"""Maximum length of a dropped record's text in `.matches`, in characters."""

HOW = {"exact": "text", "minhash": "ngrams", "embeddings": "embedding"}


def run(settings: Dedup, context: Context) -> None:
    count = context.records_count(settings.input)
    context.count_in(count)
    order = np.arange(count) if settings.by is None else best_first(scores_of(context, settings.input, settings.by))
    found = FIND[settings.method](settings, context, _with_part(settings, context, order))
    keepers = ids_of(context, settings.input, found.of[~found.kept])
    _write(settings, context, found, keepers)


def _with_part(settings: Dedup, context: Context, order: np.ndarray) -> np.ndarray:
    """`order` without the rows that lack the part to compare: they resemble nothing."""
    if settings.part == "whole":
        return order
    batches = context.batches(settings.input)
    has_N = np.fromiter((has(record, settings.part) for batch in batches for record in batch), dtype=bool)
    return order[has_N[order]]


def _exact(settings: Dedup, context: Context, order: np.ndarray) -> Copies:
    """Compares 128-bit hashes of the comparable texts."""
    marks_N = np.zeros((context.records_count(settings.input), 2), dtype=np.uint64)
    row = 0
    for batch in context.batches(settings.input):
        for record in batch:
            text = comparable(compared(record, settings.part)).encode("utf-8", "surrogatepass")
            marks_N[row] = np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), dtype=np.uint64)
            row += 1
    found = Copies.none(len(marks_N))
    sort = order[np.lexsort((marks_N[order, 1], marks_N[order, 0]))]  # stable: among equals the first stays first
    same = np.zeros(len(sort), dtype=bool)
    same[1:] = (marks_N[sort[1:]] == marks_N[sort[:-1]]).all(axis=1)
    firsts = sort[np.maximum.accumulate(np.where(same, 0, np.arange(len(sort))))]
    found.of[sort[same]] = firsts[same]
    found.similarity[sort[same]] = 1.0
    return found


def _minhash(settings: Dedup, context: Context, order: np.ndarray) -> Copies:
    count = context.records_count(settings.input)
    finder = NgramCopies(count, settings.limit, settings.ngram)
    for batch in context.batches(settings.input):
        finder.add([compared(record, settings.part) for record in batch])
        context.progress(len(finder.texts), count, "signature")
        context.check_stop()
    return finder.copies(order, lambda done: context.progress(done, count, "comparison"))


def _embeddings(settings: Dedup, context: Context, order: np.ndarray) -> Copies:
    rows = np.sort(order)
    has_N = np.zeros(context.records_count(settings.input), dtype=bool)
    has_N[rows] = True
    vectors_RW = embedded(embedder(context, settings.embedder), context, settings.input, settings.part, has_N)
    among = copies_by_cosine(vectors_RW, settings.limit, np.searchsorted(rows, order))
    found, copy_R = Copies.none(len(has_N)), ~among.kept
    found.of[rows[copy_R]] = rows[among.of[copy_R]]
    found.similarity[rows] = among.similarity
    return found


FIND = {"exact": _exact, "minhash": _minhash, "embeddings": _embeddings}


def _write(settings: Dedup, context: Context, found: Copies, keepers: dict[int, str]) -> None:
    """Writes the kept records in their order, and for each other record a match with the one that it is a copy of."""
    first = 0
    with context.writer(settings.kind or "") as kept, context.writer("matches", "matches") as matches:
        for batch in context.batches(settings.input):
            of = found.of[first : first + len(batch)].tolist()
            kept.write([record for record, other in zip(batch, of, strict=True) if other < 0])
            for place, (record, other) in enumerate(zip(batch, of, strict=True)):
                if other >= 0:
                    context.drop(record, "copy" if settings.method == "exact" else "near_copy")
                    alike = float(found.similarity[first + place])
                    matches.write([_match(settings, context, record, keepers[other], alike)])
            first += len(batch)


def _match(settings: Dedup, context: Context, record: Record, other: str, similarity: float) -> Match:
    return Match(
        id=make_id(context.folder.name, (record.id,), 0),
        parents=(record.id, other),
        record=record.id,
        other=other,
        where=settings.input,
        how=HOW[settings.method],
        similarity=similarity,
        text=compared(record, settings.part)[:EXCERPT],
    )
