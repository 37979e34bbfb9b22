"""Questions about adapters that need no peft: peft takes seconds to import, so `lora` is imported only if a model has
or gets an adapter."""

import importlib
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from togi.core.errors import InputError

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """The settings of an adapter. `targets` are names of linear layers (the last part of their path, or more of it), or
    "all-linear": all but the heads. The adapter is scaled by alpha / rank, with `rslora` by alpha / sqrt(rank). `full`
    names modules that are trained entirely, such as a scalar head ("score"). `token_rows` are token ids whose rows in
    the embeddings, and in the output head if there is one, are trained too; tied rows stay tied. `new_rows` are the
    same for tokens that were just added, except that an adapter on the head then trains the head's rows."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    rslora: bool = False
    full: tuple[str, ...] = ()
    token_rows: tuple[int, ...] = ()
    new_rows: tuple[int, ...] = ()


def matches(name: str, target: str) -> bool:
    """Whether the layer with this full name is a target of an adapter."""
    return name == target or name.endswith(f".{target}")


def refuse_targets(targets: Sequence[str], layers: Sequence[str]) -> None:
    """Raises InputError for a target that is none of the linear `layers` of a network, given by their full names."""
    for target in targets:
        if target != ALL_LINEAR and not any(matches(name, target) for name in layers):
            short = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in layers))
            raise InputError(f"no linear layer is called {target!r}; this model has {short}, or use {ALL_LINEAR!r}")


def token_ids(tokenizer: Any, tokens: Sequence[str]) -> tuple[int, ...]:
    """The ids of tokens given by their text. Raises InputError for a text that is not exactly one token."""
    found = []
    for token in tokens:
        ids = tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise InputError(
                f"token_rows: {token!r} is {len(ids)} tokens of this tokenizer, but must be exactly one. "
                "Leave it out, name a token of the vocabulary (many have unused ones), or add it to the model with "
                "tokens: {add: [...]}, which trains the rows of added tokens without token_rows"
            )
        found.append(int(ids[0]))
    return tuple(found)


def lora_library() -> Any:
    """The module that adds, merges, reads and saves adapters."""
    return importlib.import_module("togi.model.lora")


def is_adapted(net: Any) -> bool:
    """Whether `net` is a network with an adapter. Only peft makes one, so peft must have been imported."""
    library: Any = sys.modules.get("peft")
    return library is not None and isinstance(net, library.PeftModel)


def beneath(net: Any) -> Any:
    """The base network of the adapter; without an adapter, `net` itself."""
    return net.get_base_model() if is_adapted(net) else net


def without_adapter(net: Any) -> AbstractContextManager[None]:
    """A context in which the adapter is off, so that `net` is exactly its base model."""
    return net.disable_adapter() if is_adapted(net) else nullcontext()
