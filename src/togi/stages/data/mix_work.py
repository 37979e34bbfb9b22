"""The work of `mix`: each set is read once to count it, then as often as it occurs in the mixture, in batches."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from togi.core.errors import InputError
from togi.core.records import Record
from togi.core.seeds import derive, digest, make_id
from togi.core.settings import Ref
from togi.data.compared import compared
from togi.data.mix import Cursor, Stream, ledger, next_stream, whole_parts
from togi.stages.context import Context
from togi.stages.data.mix import Mix
from togi.stages.rehearsal_work import weightless


@dataclass(slots=True)
class Source:
    """A set of the mixture. `size_N` (N,) is the size of each record in tokens or rows, and `mark_N` identifies the
    records. `whole` is how often the whole set occurs in the mixture; `also_N` flags the records that occur once more.
    `known_N` flags the records whose id an earlier set has too."""

    ref: Ref
    size_N: np.ndarray
    mark_N: np.ndarray
    whole: int = 0
    also_N: np.ndarray | None = None
    known_N: np.ndarray | None = None

    @property
    def total(self) -> int:
        """Tokens or rows of the set."""
        return int(self.size_N.sum())


def run(settings: Mix, context: Context) -> None:
    sources = [_measured(settings, context, ref) for ref in settings.passes]
    context.count_in(sum(len(source.size_N) for source in sources))
    amount, shares = _amount(settings, context, sources), settings.shares
    goals = [amount * share for share in shares] if settings.by == "tokens" else whole_parts(shares, int(amount + 1e-9))
    streams = [_drawn(context, source, share, goal) for source, share, goal in zip(sources, shares, goals, strict=True)]
    _know_again(context, sources)
    for source in sources:
        _drop_rest(context, source)
    with context.writer(settings.kind or "") as writer:
        for record in _mixed(context, sources, streams):
            writer.write([record])
    _tell(settings, context, streams)


def _measured(settings: Mix, context: Context, ref: Ref) -> Source:
    """Reads a set once: the size of each record, and a number that identifies it."""
    total = context.records_count(ref)
    size_N, mark_N = np.ones(total, dtype=np.int64), np.zeros(total, dtype=np.uint64)
    words = None if settings.model is None else weightless(context, settings.model).tokenizer
    first = 0
    for batch in context.batches(ref):
        rows = slice(first, first + len(batch))
        mark_N[rows] = [int(digest(record.id)[:16], 16) for record in batch]
        if words is not None:
            texts = [compared(record, "whole") for record in batch]
            size_N[rows] = [max(1, len(ids)) for ids in words(texts, add_special_tokens=False)["input_ids"]]
        first += len(batch)
        context.progress(first, total, f"counting {ref}")
        context.check_stop()
    return Source(ref, size_N, mark_N)


def _amount(settings: Mix, context: Context, sources: list[Source]) -> float:
    """The tokens or rows of the mixture. Raises InputError if a set is too small for its share."""
    most = [settings.epochs * source.total / share for source, share in zip(sources, settings.shares, strict=True)]
    if settings.amount is None:
        return min(most)
    for source, share, limit in zip(sources, settings.shares, most, strict=True):
        if settings.amount > limit:
            needed = share * settings.amount
            raise InputError(
                f"stage {context.name}: {source.ref} has {source.total:,} {settings.by}, but its share of the "
                f"mixture is {needed:,.0f}; set epochs to {needed / source.total:.2f} or more, or amount to "
                f"{int(limit):,} or less"
            )
    return settings.amount


def _drawn(context: Context, source: Source, share: float, goal: float) -> Stream:
    """Decides which records of a set the mixture uses: the whole set as often as it fits, then a random part of it, up
    to the record that comes nearest to the goal."""
    cursor = Cursor(len(source.size_N), derive(context.seed, source.ref.name))
    cursor.epoch = source.whole = int(goal / source.total + 1e-9)
    left = goal - source.whole * source.total
    source.also_N = np.zeros(len(source.size_N), dtype=bool)
    while (size := int(source.size_N[cursor.item()])) / 2 <= left and cursor.epoch == source.whole:
        source.also_N[cursor.item()] = True
        left -= size
        cursor.advance()
    return Stream(source.ref, share, cursor)


def _know_again(context: Context, sources: list[Source]) -> None:
    """Flags the records whose id an earlier set has too, and raises an alarm with their number."""
    earlier = np.zeros(0, dtype=np.uint64)
    for source in sources:
        source.known_N = np.isin(source.mark_N, earlier)
        earlier = np.concatenate([earlier, source.mark_N])
        if shared := int(source.known_N.sum()):
            context.alarm(
                "same_records",
                f"{shared} records of {source.ref} are in an earlier set of the mixture too, so they occur twice in "
                "the mixture, the second time with new ids",
                value=shared,
                threshold=0,
            )


def _drop_rest(context: Context, source: Source) -> None:
    """Notes the drops: records that the mixture does not use at all."""
    assert source.also_N is not None
    if source.whole or source.also_N.all():
        return
    row = 0
    for batch in context.batches(source.ref):
        for record in batch:
            if not source.also_N[row]:
                context.drop(record, "over_share")
            row += 1


def _mixed(context: Context, sources: list[Source], streams: list[Stream]) -> Iterator[Record]:
    """Yields the records of the mixture, each from the set furthest behind its share."""
    rows = {stream.name: _rows(context, source) for source, stream in zip(sources, streams, strict=True)}
    heads = {name: head for name, each in rows.items() if (head := next(each, None)) is not None}
    while left := [stream for stream in streams if stream.name in heads]:
        stream = next_stream(left)
        record, size = heads.pop(stream.name)
        stream.tokens += size
        stream.pieces += 1
        yield record
        if (head := next(rows[stream.name], None)) is not None:
            heads[stream.name] = head


def _rows(context: Context, source: Source) -> Iterator[tuple[Record, int]]:
    """Yields the records of one set in the order of the mixture, with their sizes."""
    assert source.also_N is not None and source.known_N is not None
    for epoch in range(source.whole + bool(source.also_N.any())):
        row = 0
        for batch in context.batches(source.ref):
            for record in batch:
                if epoch < source.whole or source.also_N[row]:
                    copy = epoch > 0 or bool(source.known_N[row])
                    yield _copied(context, source.ref, record, epoch) if copy else record, int(source.size_N[row])
                row += 1


def _copied(context: Context, ref: Ref, record: Record, epoch: int) -> Record:
    """A repeated record, under a new id."""
    return replace(record, id=make_id(context.folder.name, (record.id, ref), epoch), parents=(record.id,))


def _tell(settings: Mix, context: Context, streams: list[Stream]) -> None:
    """Reports the exact shares in the log and the summary."""
    rows: dict[str, dict[str, Any]] = {}
    for name, row in ledger(streams).items():
        rows[name] = {
            "records": row["pieces"],
            settings.by: row["tokens"],
            "share": row["share"],
            "asked": row["asked"],
            "epochs": row["epochs"],
        }
        context.log(
            f"{name}: {row['tokens']:,} {settings.by}, {row['share']:.2%} of the mixture ({row['asked']:.2%} "
            f"requested), {row['epochs']:.2f} epochs"
        )
    context.summary["mixture"] = rows
