"""Checks that a stage's input files have not changed since the run hashed them: at its start, and before it is done.

Otherwise results of a file that was edited during the run would be stored under the fingerprint of the old content.
"""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from togi.core.errors import InputError
from togi.core.hashing import HashedFiles, change, known, learn
from togi.recipe.graph import Node
from togi.recipe.store import contents


def sources_to_json(node: Node, folders: Iterable[Path]) -> dict[str, Any]:
    """The files that a stage reads, with their hashes: those from outside, and the outputs of earlier stages, which are
    in `folders`. Known sizes and times save the worker a second read."""
    made = [
        HashedFiles(str(folder), "made", {str(folder / name): found for name, found in contents(folder).items()})
        for folder in dict.fromkeys(folders)
    ]
    sources = [*node.sources, *made]
    return {
        "sources": [asdict(source) for source in sources],
        "known": known(name for source in sources for name in source.files),
    }


def learn_known(found: dict[str, Any]) -> None:
    """Takes over, in a worker, the hashes that the run's parent computed."""
    learn(found["known"])


def source_change(found: dict[str, Any]) -> str | None:
    """The first file of a stage's inputs that has changed, and how; None if none has."""
    return next((told for value in found["sources"] if (told := change(HashedFiles(**value)))), None)


def hold_sources(stage: str, found: dict[str, Any]) -> None:
    """Raises InputError if a file that the stage reads has changed."""
    told = source_change(found)
    if told is not None:
        raise InputError(
            f"stage {stage}: {told} during the run, so results from it cannot be stored. Do not change it while a run "
            "reads it, and run the same command again: the stages that depend on it will use its new "
            "content"
        )
