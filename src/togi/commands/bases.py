"""Finds the base network of a trained model, if this machine still has it."""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from togi.commands.descent import Root
from togi.core.hub import in_cache
from togi.core.outside import read_object
from togi.core.sources import CARD, HUB_ID, ModelSource, adapter_base, hash_folder, is_model_folder
from togi.model.load import LoadedModel, inspect, load, read_network
from togi.stages.base import MODEL_FOLDER


def base_of(
    source: ModelSource, cache: Path, model: LoadedModel, root: Root | None = None
) -> Callable[[], Any] | str | None:
    """Returns a function that loads the base of a model. The base is `root`, if given; otherwise the model that the
    adapter or the card names or, if that was trained as well, the base of that model, and so on. Returns a message if
    the base is not available, and None if the folder shows no training."""
    called, found = (root.shown, _still(root)) if root is not None else _first(source, cache)
    if found == source:
        return None
    if found is None:
        return f"the base ({called}) is missing on this machine or has changed, so it was not asked"
    facts = inspect(found, cache)
    rows = (facts.text.get("vocab_size") or 0) - len(model.tokenizer)
    if rows < 0:
        return f"the base ({called}) has no embeddings for {-rows} of the model's tokens, so it was not asked"
    if facts.adapters:
        return lambda: load(found, cache).net
    return lambda: read_network(facts.folder, torch.float32, "causal").eval()  # its template is not needed


def _still(root: Root) -> ModelSource | None:
    """The root of a chain of trainings, if it still exists unchanged."""
    source = root.source
    if source.kind == "path":
        there = is_model_folder(Path(source.name)) and hash_folder(Path(source.name), source.beside) == root.revision
    elif source.kind == "package":
        there = _version(source.name) == root.revision
    else:
        there = in_cache(source.name, root.revision)
    return source if there else None


def _first(source: ModelSource, cache: Path) -> tuple[str, ModelSource | None]:
    """The model that a chain of trainings began with and its name, found from its last model: `source` itself if it
    shows no training. None if a base is not available; then the name is that of this base."""
    called = source.name
    while (named := _named(source)) is not None:
        called = named.name if isinstance(named, ModelSource) else named[0]
        found = named if isinstance(named, ModelSource) else _found(*named, cache)
        if found is None:
            return called, None
        source = found
    return called, source


def _named(source: ModelSource) -> ModelSource | tuple[str, str] | None:
    """The base that a folder names: by an adapter's configuration, or by name and revision in togi's card."""
    folder = Path(source.name)
    if source.kind != "path":
        return None
    if (beneath := adapter_base(folder, source.beside)) is not None:
        return beneath
    said = read_object(folder / CARD).get("base") if (folder / CARD).is_file() else None
    return (said["name"], said["revision"]) if said else None


def _found(name: str, revision: str, cache: Path) -> ModelSource | None:
    """The base with this name, if it is unchanged."""
    made = cache / name / MODEL_FOLDER
    if is_model_folder(made) and hash_folder(made) == revision:
        return ModelSource(kind="path", name=str(made))
    if _version(name) == revision:
        return ModelSource(kind="package", name=name)
    if HUB_ID.fullmatch(name) and in_cache(name, revision):
        return ModelSource(kind="hub", name=name, revision=revision)
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except (metadata.PackageNotFoundError, ValueError):  # ValueError: not a valid package name
        return None
