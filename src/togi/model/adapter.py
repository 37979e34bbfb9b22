"""What the rest of togi asks about adapters, without their library: peft takes seconds to import, so `lora` is imported
only where a model has an adapter or gets one."""

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
    """`targets` are names of linear layers (the last part of their path, or more of it), or "all-linear": all but the
    heads. The adapter is scaled by alpha / rank, with `rslora` by alpha / sqrt(rank). `full` are modules that are
    trained whole, such as a scalar head ("score"). `token_rows` are ids whose rows of the embeddings, and of the output
    head where there is one, are trained too; tied ones stay tied. `new_rows` are ids of tokens that were just
    added: the same, but where the head has an adapter, which reaches its rows."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    rslora: bool = False
    full: tuple[str, ...] = ()
    token_rows: tuple[int, ...] = ()
    new_rows: tuple[int, ...] = ()


def token_ids(tokenizer: Any, tokens: Sequence[str]) -> tuple[int, ...]:
    """The ids of tokens given by their text. Raises InputError for a text that is not exactly one token."""
    found = []
    for token in tokens:
        ids = tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise InputError(
                f"token_rows: {token!r} is {len(ids)} tokens of this tokenizer; only rows of tokens that it has can be "
                "trained. Leave it out, name one that it has (many have unused ones), or add it to the model with "
                "tokens: {add: [...]}, which trains the rows of added tokens without token_rows"
            )
        found.append(int(ids[0]))
    return tuple(found)


def lora_library() -> Any:
    """The module that puts adapters on, merges, reads and saves them."""
    return importlib.import_module("togi.model.lora")


def is_adapted(net: Any) -> bool:
    """Whether `net` is a network with an adapter around it: only peft makes one, and then it has been imported."""
    library: Any = sys.modules.get("peft")
    return library is not None and isinstance(net, library.PeftModel)


def beneath(net: Any) -> Any:
    """The network that the adapter lies on; without an adapter, `net` itself."""
    return net.get_base_model() if is_adapted(net) else net


def without_adapter(net: Any) -> AbstractContextManager[None]:
    """A context in which `net` is exactly the model that the adapter was put on; without an adapter, itself."""
    return net.disable_adapter() if is_adapted(net) else nullcontext()
