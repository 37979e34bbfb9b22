"""The dense blocks that make up the attention of a forest.

Shapes: T rows, B blocks, N trees.
"""

from functools import lru_cache
from itertools import pairwise

import torch

from togi.kernels import Block, Blocks, BlockTable
from togi.model.forest import Layout, Tree


def _own_blocks(start: int, stop: int, window: int | None) -> list[Block]:
    """The blocks in which a run of rows attends to itself; strips if the window is shorter than the run, so that the
    cost is linear."""
    if window is None or stop - start <= window:
        return [Block(start, stop, start, stop, "earlier")]
    blocks = []
    for q0 in range(start, stop, window):
        k0 = max(start, q0 - window + 1)
        blocks.append(Block(q0, min(stop, q0 + window), k0, min(stop, q0 + window), "window", q0 - k0))
    return blocks


def _trunk_blocks(tree: Tree, window: int | None) -> list[Block]:
    """The blocks in which the branches of a tree attend to its trunk."""
    trunk = tree.trunk_stop - tree.start
    if not tree.branches:
        return []
    if window is None or trunk + max(stop - start for start, stop in tree.branches) <= window:
        return [Block(tree.branches[0][0], tree.branches[-1][1], tree.start, tree.trunk_stop, "all", merge=True)]
    k0 = max(tree.start, tree.trunk_stop - window + 1)
    return [  # only the first window - 1 rows of a branch see any trunk
        Block(start, min(stop, start + window - 1), k0, tree.trunk_stop, "window", tree.trunk_stop - k0, merge=True)
        for start, stop in tree.branches
        if window > 1
    ]


@lru_cache(maxsize=64)
def plan(layout: Layout, window: int | None) -> tuple[Block, ...]:
    """The dense blocks of a forest's attention; blocks that set rows come before blocks that merge into them."""
    blocks: list[Block] = []
    for tree in layout.trees:
        for start, stop in ((tree.start, tree.trunk_stop), *tree.branches):
            blocks += _own_blocks(start, stop, window)
        blocks += _trunk_blocks(tree, window)
    return tuple(blocks)


@lru_cache(maxsize=64)
def blocks_of(layout: Layout, window: int | None) -> Blocks:
    """The blocks of `plan`, in the form that `togi.kernels.attend` needs."""
    rows, trees, starts = [], [0], []
    for tree in layout.trees:
        blocks = plan(Layout((tree,)), window)
        rows += [(b.q0, b.q1, b.k0, b.k1, b.see == "all", b.shift, b.merge) for b in blocks]
        trees.append(len(rows))
        starts.append(tree.start)
    ends = [max(row[1] for row in rows[first:last]) for first, last in pairwise(trees)]
    starts.append(ends[-1])
    as_index = lambda values: torch.tensor(values, dtype=torch.int64)  # noqa: E731
    table = BlockTable(
        as_index(rows),
        as_index(trees),
        as_index(starts),
        queries=max(row[1] - row[0] for row in rows),
        keys=max(row[3] - row[2] for row in rows),
        rows=max(end - start for start, end in zip(starts, ends, strict=False)),
        total=ends[-1],
    )
    return Blocks(plan(layout, window), table)
