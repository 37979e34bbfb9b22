"""The work of `diversify`. The records are read in batches, several times. Memory holds the text of each record for the
n-grams, then its embedding in float16."""

import numpy as np

from togi.core.protocols import Embedder
from togi.core.settings import EmbedderRef
from togi.core.sources import ModelSource
from togi.data.compared import compared, has
from togi.data.diversify import facility_location, farthest_points
from togi.data.duplicates import NgramCopies, copies_by_cosine
from togi.model.embed import SentenceEmbedder
from togi.stages.context import Context
from togi.stages.data.alike_work import best_first, embedded, scores_of
from togi.stages.data.diversify import REASONS, Diversify
from togi.stages.endpoints import embedder

LACKS, NGRAMS, EMBEDDING, OVER, CHOSEN = range(5)
"""Outcomes of a record: the index of one of the REASONS, or chosen."""


def run(settings: Diversify, context: Context) -> None:
    count = context.records_count(settings.input)
    context.count_in(count)
    scores_N = None if settings.by is None else scores_of(context, settings.input, settings.by)
    batches = context.batches(settings.input)
    has_N = np.fromiter((has(record, settings.part) for batch in batches for record in batch), dtype=bool)
    fate_N = np.where(has_N, np.uint8(OVER), np.uint8(LACKS))
    fate_N[has_N & ~_different_texts(settings, context, scores_N, np.flatnonzero(has_N))] = NGRAMS
    chosen = _chosen(settings, context, scores_N, fate_N)
    _tell_shortage(settings, context, int(has_N.sum()), len(chosen))
    _write(settings, context, fate_N, chosen)


def _chosen(settings: Diversify, context: Context, scores_N: np.ndarray | None, fate_N: np.ndarray) -> np.ndarray:
    """The chosen rows in the order of selection; notes the outcome for all remaining rows in `fate_N`."""
    left = np.flatnonzero(fate_N == OVER)
    vectors_KW = embedded(chosen_embedder(settings, context), context, settings.input, settings.part, fate_N == OVER)
    different_K = copies_by_cosine(vectors_KW, settings.max_cosine, _order(scores_N, left)).kept
    fate_N[left[~different_K]] = EMBEDDING
    left = left[different_K]
    chosen = left[_select(settings, context, compressed(vectors_KW, different_K), scores_N, left)]
    fate_N[chosen] = CHOSEN
    return chosen


def _different_texts(
    settings: Diversify, context: Context, scores_N: np.ndarray | None, rows: np.ndarray
) -> np.ndarray:
    """(N,) bool: the rows that are no near-duplicate by n-grams of one of `rows`."""
    count = context.records_count(settings.input)
    finder = NgramCopies(count, settings.max_jaccard, settings.ngram)
    for batch in context.batches(settings.input):
        finder.add([compared(record, settings.part) for record in batch])
        context.progress(len(finder.texts), count, "signature")
        context.check_stop()
    order = rows if scores_N is None else rows[best_first(scores_N[rows])]
    return finder.copies(order, lambda done: context.progress(done, count, "comparison")).kept


def _order(scores_N: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    """The order in which rows are considered: best score first."""
    return None if scores_N is None else best_first(scores_N[rows])


def compressed(vectors_NW: np.ndarray, kept_N: np.ndarray) -> np.ndarray:
    """The kept rows, moved together within their own memory."""
    rows = np.flatnonzero(kept_N)
    for first in range(0, len(rows), 4096):
        part = rows[first : first + 4096]
        vectors_NW[first : first + len(part)] = vectors_NW[part]
    return vectors_NW[: len(rows)]


def _select(
    settings: Diversify, context: Context, vectors_KW: np.ndarray, scores_N: np.ndarray | None, left: np.ndarray
) -> list[int]:
    """Selects among the rows `left`; returns positions in `left`, in the order of selection."""
    start = None if scores_N is None or not len(left) else int(np.argmax(scores_N[left]))

    def tell(done: int) -> None:
        if done % 64 == 0 or done == settings.keep:
            context.progress(done, min(settings.keep, len(left)), "selection")

    if settings.method == "k_centre":
        return farthest_points(vectors_KW, settings.keep, start, tell)
    return facility_location(vectors_KW, settings.keep, settings.neighbours, start, tell)


def _tell_shortage(settings: Diversify, context: Context, count: int, chosen: int) -> None:
    if chosen < settings.keep:
        context.alarm(
            "under_budget",
            f"only {chosen} of {count} records are sufficiently different, but {settings.keep} were asked for: make "
            "more drafts upstream, or lower keep",
            value=chosen,
            threshold=settings.keep,
        )


def _write(settings: Diversify, context: Context, fate_N: np.ndarray, chosen: np.ndarray) -> None:
    first = 0
    for batch in context.batches(settings.input):
        for record, fate in zip(batch, fate_N[first : first + len(batch)].tolist(), strict=True):
            if fate != CHOSEN:
                context.drop(record, REASONS[fate])
        first += len(batch)
    with context.writer(settings.kind or "") as writer:
        for batch in context.picked(settings.input, chosen):
            writer.write(batch)


def chosen_embedder(settings: Diversify, context: Context) -> Embedder:
    """Returns the embedder: a model that the recipe names, or n-grams."""
    chosen = settings.embedder
    if chosen is None or isinstance(chosen, EmbedderRef):
        return embedder(context, chosen)
    kind = "package" if chosen.path is None else "path"
    source = ModelSource(kind=kind, name=str(chosen.path or chosen.package))
    return SentenceEmbedder(source, context.cache, prefix=chosen.prefix)
