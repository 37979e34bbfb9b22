"""Forests: a layout of tokens in which a shared prompt is computed once.

Shapes: T rows of the packed batch, N scored tokens, S sequences.

A batch is one packed row of trees: a trunk (the longest common prefix of a group) and its branches. Row i sees row j if
both are in the same tree, j is on the trunk or on i's own branch, and j's position is not later. The first token of
every branch is predicted from the trunk's last row.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from togi.core.errors import InputError

PADDING = -1


@dataclass(frozen=True, slots=True)
class Sequence:
    """Token ids, and flags for those that are scored. The first id cannot be scored, because nothing precedes it.

    Raises InputError if the two differ in length, if there is no id, or if the first is scored.
    """

    ids: tuple[int, ...]
    scored: tuple[bool, ...]

    def __post_init__(self) -> None:
        if not self.ids or len(self.ids) != len(self.scored):
            raise InputError(
                f"a sequence has {len(self.ids)} ids and {len(self.scored)} flags; both must have the same, non-zero "
                "length"
            )
        if self.scored[0]:
            raise InputError("the first token of a sequence is scored, but there is no row before it to predict it")

    @property
    def first_scored(self) -> int:
        """Index of the first scored token; the length if there is none."""
        return self.scored.index(True) if True in self.scored else len(self.ids)


@dataclass(frozen=True, slots=True)
class Tree:
    """Rows [start, trunk_stop) are the trunk, each branch is [start, stop). A single branch is part of the trunk."""

    start: int
    trunk_stop: int
    branches: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """The row ranges of a forest's trees, as plain integers; equal layouts compare equal."""

    trees: tuple[Tree, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forest:
    """A packed batch. Scored tokens are in the order of their sequences, and sequences in the given order.

    `ids_T`, `position_T` (in the token's own sequence), `tree_T` (-1 on padding rows), `branch_T` (0 on the trunk),
    `source_N` (row whose hidden state predicts scored token n), `target_N` (its id), `sequence_N` (its sequence),
    `last_S` (row of each sequence's last token, from lengths). All int64. `cache` holds what attention computes once
    for all layers.
    """

    ids_T: torch.Tensor
    position_T: torch.Tensor
    tree_T: torch.Tensor
    branch_T: torch.Tensor
    source_N: torch.Tensor
    target_N: torch.Tensor
    sequence_N: torch.Tensor
    last_S: torch.Tensor
    num_sequences: int
    layout: Layout
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Groups that are computed together. `index_S[s]` is the index of sequence s among all sequences of the split."""

    groups: tuple[tuple[Sequence, ...], ...]
    index_S: tuple[int, ...]


def common_prefix(ids: Seq[tuple[int, ...]]) -> int:
    """Number of leading ids that all tuples share."""
    shortest, longest = min(ids), max(ids)  # only the lexicographic extremes need comparing
    for i, (a, b) in enumerate(zip(shortest, longest, strict=False)):
        if a != b:
            return i
    return min(len(shortest), len(longest))


def trunk_length(group: Seq[Sequence]) -> int:
    """The number of rows that all sequences of a group share: the common prefix, shortened to end before any scored
    token and to leave every branch at least one row. 0 if there is nothing to share."""
    prefix = common_prefix([s.ids for s in group])
    return min(prefix, *(min(s.first_scored, len(s.ids) - 1) for s in group))


def num_tokens(group: Seq[Sequence]) -> int:
    """The number of rows of a group in a forest."""
    if len(group) == 1:
        return len(group[0].ids)
    return sum(len(s.ids) for s in group) - (len(group) - 1) * trunk_length(group)


@dataclass(slots=True)
class _Rows:
    """The columns of a forest under construction."""

    ids: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    tree: list[int] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)
    source: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)

    def add(self, ids: tuple[int, ...], position: int, branch: int) -> None:
        self.ids += ids
        self.position += range(position, position + len(ids))
        self.tree += [len(self.trees)] * len(ids)
        self.branch += [branch] * len(ids)


def _plant_tree(rows: _Rows, group: Seq[Sequence], trunk: int) -> None:
    """Appends one tree whose first `trunk` ids are shared."""
    start = len(rows.ids)
    rows.add(group[0].ids[:trunk], 0, 0)
    stops = [start + trunk]
    for number, sequence in enumerate(group, 1):
        offset = len(rows.ids) - trunk  # row of this sequence's token i, for i on the branch
        rows.add(sequence.ids[trunk:], trunk, number)
        for i, scored in enumerate(sequence.scored):
            if scored:
                rows.source.append(start + trunk - 1 if i == trunk else offset + i - 1)
                rows.target.append(sequence.ids[i])
                rows.owner.append(len(rows.last))
        rows.last.append(len(rows.ids) - 1)
        stops.append(len(rows.ids))
    if len(group) == 1:
        rows.trees.append(Tree(start, stops[-1]))
    else:
        rows.trees.append(Tree(start, stops[0], tuple(pairwise(stops))))


def plant(groups: Iterable[Seq[Sequence]]) -> Forest:
    """Lays out groups of sequences, each group as a tree; a group that shares no row becomes one tree per sequence.

    Raises InputError if there is no sequence at all.
    """
    rows = _Rows()
    for group in groups:
        trunk = trunk_length(group)
        if trunk or len(group) == 1:
            _plant_tree(rows, group, trunk or 1)
        else:
            for sequence in group:
                _plant_tree(rows, [sequence], max(1, trunk_length([sequence])))
    if not rows.ids:
        raise InputError("a forest needs at least one sequence")
    columns = (rows.ids, rows.position, rows.tree, rows.branch, rows.source, rows.target, rows.owner, rows.last)
    ids_T, position_T, tree_T, branch_T, source_N, target_N, sequence_N, last_S = (
        torch.tensor(column, dtype=torch.int64) for column in columns
    )
    return Forest(
        ids_T=ids_T,
        position_T=position_T,
        tree_T=tree_T,
        branch_T=branch_T,
        source_N=source_N,
        target_N=target_N,
        sequence_N=sequence_N,
        last_S=last_S,
        num_sequences=len(rows.last),
        layout=Layout(tuple(rows.trees)),
    )


def _cut_group(group: Seq[Sequence], first: int, budget: int) -> Iterable[tuple[list[Sequence], list[int]]]:
    """Splits a group into parts of at most `budget` tokens, but at least one sequence, with the sequences' indices."""
    part: list[Sequence] = []
    for i, sequence in enumerate(group):
        if part and num_tokens([*part, sequence]) > budget:
            yield part, list(range(first + i - len(part), first + i))
            part = []
        part.append(sequence)
    yield part, list(range(first + len(group) - len(part), first + len(group)))


def split_by_tokens(groups: Seq[Seq[Sequence]], budget: int) -> list[MicroBatch]:
    """Micro-batches of at most `budget` tokens, in order. A tree over the budget is split between branches, and its
    trunk is computed again; a single sequence over the budget gets its own micro-batch."""
    batches: list[MicroBatch] = []
    held: list[tuple[Sequence, ...]] = []
    places: list[int] = []
    size = first = 0
    for group in groups:
        for part, index in _cut_group(group, first, budget):
            tokens = num_tokens(part)
            if held and size + tokens > budget:
                batches.append(MicroBatch(groups=tuple(held), index_S=tuple(places)))
                held, places, size = [], [], 0
            held.append(tuple(part))
            places += index
            size += tokens
        first += len(group)
    if held:
        batches.append(MicroBatch(groups=tuple(held), index_S=tuple(places)))
    return batches


def bucket(num_rows: int) -> int:
    """The padded size for a compiled kernel: the next of 128 x {4, 5, 6, 7} x 2^k, so at most a quarter is padding."""
    unit = 128
    while num_rows > 8 * unit:
        unit *= 2
    return -(-num_rows // unit) * unit


def _pad(forest: Forest, size: int) -> Forest:
    """Appends rows that see only themselves, up to `size` rows."""
    extra = size - len(forest.ids_T)
    number = torch.arange(extra, device=forest.ids_T.device)

    def grown(column_T: torch.Tensor, tail: torch.Tensor) -> torch.Tensor:
        return torch.cat([column_T, tail])

    return replace(
        forest,
        ids_T=grown(forest.ids_T, torch.zeros_like(number)),
        position_T=grown(forest.position_T, torch.zeros_like(number)),
        tree_T=grown(forest.tree_T, torch.full_like(number, PADDING)),
        branch_T=grown(forest.branch_T, number + 1),
        cache={},
    )


def move(forest: Forest, device: torch.device | str) -> Forest:
    """The forest on `device`; on CUDA it is padded to a bucket size, so that compiled kernels can be reused."""
    device = torch.device(device)
    if forest.ids_T.device == device:
        return forest
    if device.type == "cuda":
        forest = _pad(forest, bucket(len(forest.ids_T)))
    return replace(
        forest,
        ids_T=forest.ids_T.to(device, non_blocking=True),
        position_T=forest.position_T.to(device, non_blocking=True),
        tree_T=forest.tree_T.to(device, non_blocking=True),
        branch_T=forest.branch_T.to(device, non_blocking=True),
        source_N=forest.source_N.to(device, non_blocking=True),
        target_N=forest.target_N.to(device, non_blocking=True),
        sequence_N=forest.sequence_N.to(device, non_blocking=True),
        last_S=forest.last_S.to(device, non_blocking=True),
        cache={},
    )
