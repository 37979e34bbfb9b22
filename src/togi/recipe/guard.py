"""What a stage reads is held to what it was when the run read it: when the stage begins, and before it is called done.

Else a file that is edited while a run goes on would be kept under the fingerprint of what it was, for good.
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
    """The files that a stage reads, with their hashes: those from outside, and what the stages before made, which lie
    in `folders`. What is known of their sizes and times spares the worker a second reading."""
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
    """Takes over, in a worker, what the run's parent hashed."""
    learn(found["known"])


def source_change(found: dict[str, Any]) -> str | None:
    """Which file that a stage reads is not what it was, and how; None where all are."""
    return next((told for value in found["sources"] if (told := change(HashedFiles(**value)))), None)


def hold_sources(stage: str, found: dict[str, Any]) -> None:
    """Raises InputError where a file that the stage reads is not what it was."""
    told = source_change(found)
    if told is not None:
        raise InputError(
            f"stage {stage}: {told} while the run went on, so what is made of it cannot be kept under its name. Leave "
            "it alone while a run reads it, and run the same command again: what depends on it is done with what it "
            "holds then"
        )
