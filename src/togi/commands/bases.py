"""The base network of a trained model, if this machine still has it."""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from togi.core.hub import in_cache
from togi.core.outside import read_object
from togi.core.sources import CARD, HUB_ID, ModelSource, adapter_base, hash_folder, is_model_folder
from togi.model.load import LoadedModel, inspect, load, read_network
from togi.stages.base import MODEL_FOLDER


def base_of(source: ModelSource, cache: Path, model: LoadedModel) -> Callable[[], Any] | str | None:
    """A function that loads the base of a model, named by its adapter or card; a message if the base is not available;
    None if the folder shows no training."""
    named = _named(source)
    if named is None:
        return None
    found = named if isinstance(named, ModelSource) else _found(*named, cache)
    called = named.name if isinstance(named, ModelSource) else named[0]
    if found is None:
        return f"the base ({called}) is missing on this machine or has changed, so it was not asked"
    facts = inspect(found, cache)
    rows = (facts.text.get("vocab_size") or 0) - len(model.tokenizer)
    if rows < 0:
        return f"the base ({called}) has no embeddings for {-rows} of the model's tokens, so it was not asked"
    if facts.adapters:
        return lambda: load(found, cache).net
    return lambda: read_network(facts.folder, torch.float32, "causal").eval()  # its template is not needed


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
