"""The Python API, available as `togi.NAME`. See docs/api.md; everything else may change without notice.

Names of tensors end with their shapes: N scored tokens, S sequences, T rows of a packed batch.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from togi.core.errors import GraderError, InputError, RecipeError
from togi.core.records import Message
from togi.core.sources import HUB_ID, PACKAGE, ModelSource, missing_path, no_model_folder
from togi.model.forest import Forest, plant
from togi.model.forest import Sequence as TokenSequence
from togi.model.load import LoadedModel
from togi.model.load import load as load_model
from togi.model.policy import Policy
from togi.model.reward_model import ModelScorer, load_reward_model
from togi.objectives.base import Batch, Output
from togi.objectives.dpo import DPO
from togi.objectives.grpo import GRPO
from togi.objectives.reward import BradleyTerry
from togi.objectives.sft import SFT
from togi.objectives.smpo import SMPO
from togi.recipe.display import Display, Silent
from togi.recipe.graph import build
from togi.recipe.options import Options
from togi.recipe.run import Run
from togi.recipe.schema import validate
from togi.recipe.source import read_tree
from togi.recipe.store import store_folder
from togi.report.collect import collect
from togi.report.view import RunView

SHOWN = 100  # characters of a value in a message
Turn = Message | Mapping[str, str]
"""A turn of a conversation: {"role": ..., "content": ...}."""

__all__ = [
    "DPO",
    "GRPO",
    "SFT",
    "SMPO",
    "Batch",
    "BradleyTerry",
    "Forest",
    "LoadedModel",
    "Output",
    "Policy",
    "TokenSequence",
    "load",
    "plant",
    "run",
    "score",
]


def load(name: str | Path, *, template: str | None = None, revision: str = "main") -> LoadedModel:
    """Loads a causal model with its tokenizer and chat template, from a folder, a package of weights, or a hub id.

    It is in float32, on the CPU, in evaluation mode. Raises InputError if the model does not exist or its files do not
    match.
    """
    return load_model(_source(name, template, revision), store_folder())


def score(
    scorer: str | Path | ModelScorer,
    conversations: Sequence[tuple[Sequence[Turn] | str, str]],
    *,
    revision: str = "main",
) -> list[float]:
    """The scores of a reward model, one for each (messages, answer), in order; higher is better. A text in place of the
    messages is one turn of the user.

    `scorer` is a folder, a hub id, or a `ModelScorer` of a model in memory. Raises InputError for a model that is not a
    reward model and for conversations of another form, GraderError for an answer that is too long for it.
    """
    asked = [_conversation(index, each) for index, each in enumerate(conversations)]
    if not isinstance(scorer, ModelScorer):
        scorer = ModelScorer(load_reward_model(_source(scorer, None, revision), store_folder()))
    found = scorer.score(asked)
    for value in found:
        if isinstance(value, GraderError):
            raise value
    return [value for value in found if not isinstance(value, GraderError)]


def run(
    recipe: str | Path,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    *,
    until: str | None = None,
    display: Display | None = None,
) -> RunView:
    """Runs the unfinished stages of a recipe, as `togi run RECIPE KEY=VALUE ... --until STAGE` does, and returns the
    run: its stages with their metrics, its before/after rows, its alarms. `overrides` are texts KEY=VALUE, or values by
    their keys. Shows nothing without a `display`.

    Call it under `if __name__ == "__main__"` or at the top of a notebook, and only from the main thread, because it
    handles signals while it works. Raises the TogiError that ended the run.
    """
    given = _overrides(overrides)
    if not isinstance(until, str | None):
        raise RecipeError(f"until: found {_shown(until)}; give the name of one stage")
    graph = build(validate(read_tree(_path(recipe, "recipe", "the path of a recipe (.yaml)"), given)))
    work = Run(graph, Options(recipe=str(recipe), overrides=given, until=until), display or Silent())
    work.run()
    return collect(work.folder)


def _source(name: str | Path, template: str | None, revision: str) -> ModelSource:
    path = _path(name, "model", "a model folder, package:NAME or a hub id")
    text = str(name)
    if path.is_file():
        raise InputError(f"{path}: {no_model_folder(path)}")
    if text.startswith(PACKAGE) and not Path(text).exists():
        return ModelSource(kind="package", name=text.removeprefix(PACKAGE), template=template)
    if Path(text).exists() or missing_path(text) or not (HUB_ID.fullmatch(text) or _is_package(text)):
        return ModelSource(kind="path", name=str(Path(text).resolve()), template=template)
    if HUB_ID.fullmatch(text):
        return ModelSource(kind="hub", name=text, revision=revision, template=template)
    return ModelSource(kind="package", name=text, template=template)


def _path(value: Any, what: str, wanted: str) -> Path:
    """An argument as a path. Raises InputError for a value that is neither text nor a path."""
    if not isinstance(value, str | Path) or not str(value):
        raise InputError(f"{what}: found {_shown(value)}; give {wanted}")
    return Path(value)


def _is_package(name: str) -> bool:
    return any(distribution.name == name for distribution in metadata.distributions())


def _conversation(index: int, given: Any) -> tuple[tuple[Message, ...], str]:
    """The messages and the answer of a conversation. Raises InputError if it has another form."""
    wanted = "a pair of messages and an answer; messages are a text, or a list of {'role': ..., 'content': ...}"
    if not isinstance(given, tuple | list) or len(given) != 2 or not isinstance(given[1], str):
        raise InputError(f"conversation {index}: found {_shown(given)}, which is not {wanted}")
    turns = [{"role": "user", "content": given[0]}] if isinstance(given[0], str) else given[0]
    try:
        return tuple(map(_message, turns)), given[1]
    except (TypeError, KeyError, AttributeError):
        raise InputError(f"conversation {index}: found {_shown(given)}, which is not {wanted}") from None


def _message(turn: Turn) -> Message:
    return turn if isinstance(turn, Message) else Message(turn["role"], turn["content"])


def _overrides(given: Iterable[str] | Mapping[str, Any]) -> tuple[str, ...]:
    """Overrides as words of the command line."""
    if isinstance(given, Mapping):
        return tuple(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items())
    words = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (given,)
    if not all(isinstance(word, str) for word in words):
        raise RecipeError(f"overrides: found {_shown(given)}; give {{key: value}}, or texts KEY=VALUE")
    return words


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
