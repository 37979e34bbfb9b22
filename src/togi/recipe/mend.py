"""Checks the finished work that a run will read, before the run begins: sets aside what does not match its hashes, so
that the run does it again."""

from collections.abc import Callable, Sequence
from pathlib import Path

from togi.core.errors import StageError
from togi.recipe.graph import Graph
from togi.recipe.store import contents, damage, deep_damage, is_done, made_from, outputs_digests, set_aside

Tell = Callable[[str], None]
LONG = 2e9  # bytes; reading more takes seconds and is announced


def mend(graph: Graph, names: Sequence[str], store: Path, tell: Tell) -> None:
    """Sets aside damaged stages among `names`: any with damaged bookkeeping or missing files, and those that others
    will read if any file has changed. Unfinished stages begin again."""
    for name in names:
        _aside(name, store / graph.nodes[name].folder_name, damage, tell)
    read: list[str] = []
    while fresh := [name for name in _to_read(graph, names, store) if name not in read]:
        size = sum(_size(store / graph.nodes[name].folder_name) for name in fresh)
        if size > LONG:
            tell(f"reading {size / 1e9:.1f} GB of finished work, to check that it is undamaged")
        for name in fresh:
            _aside(name, store / graph.nodes[name].folder_name, deep_damage, tell)
        read += fresh


def _aside(name: str, folder: Path, look: Callable[[Path], str | None], tell: Tell) -> None:
    wrong = look(folder)
    if wrong is None:
        return
    try:
        kept = set_aside(folder)
    except StageError:  # another run is working there and will handle it
        return
    tell(f"{name}: {wrong}, so it is done again; the old files are in {kept} until `togi clean`")


def _to_read(graph: Graph, names: Sequence[str], store: Path) -> list[str]:
    """The finished stages that are read by stages that are not done or may have to be done again."""
    undone: list[str] = []
    for name in names:
        node = graph.nodes[name]
        folder, reads = store / node.folder_name, graph.reads(node, store)
        again = any(parent in undone for parent in node.parents) or not is_done(folder)
        if again or made_from(folder) != outputs_digests(reads):
            undone.append(name)
    parents = (parent for name in undone for parent in graph.nodes[name].parents)
    return [name for name in dict.fromkeys(parents) if name not in undone]


def _size(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in contents(folder))
