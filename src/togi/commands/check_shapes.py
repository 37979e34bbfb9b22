"""Compares the shapes that recipes state for `togi plan` (`shape:`) with the models' own configurations."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from togi.core.errors import InputError
from togi.core.outside import read_object
from togi.core.sources import ModelSource
from togi.core.strangers import run_stranger
from togi.model.inspect import Facts, context_of, inspect_model
from togi.model.sizes import Shape

KEYS = {
    "family": "model_type",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "key_heads": "num_key_value_heads",
    "head_width": "head_dim",
    "ffn": "intermediate_size",
    "tied": "tie_word_embeddings",
    "attention_bias": "attention_bias",
    "experts": "num_local_experts",
    "active": "num_experts_per_tok",
}
"""The key of a configuration for each of the sizes that must be equal. Rows of embeddings may differ by padding."""


@dataclass(slots=True)
class ShapeChecks:
    """`problems` are shapes of another model, `notes` are about padded embeddings and shapes that are not compared."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_shapes(models: Mapping[str, tuple[ModelSource, str]]) -> ShapeChecks:
    """Compares the shape of each model with its configuration, if that is on this machine or its hub can be reached.
    `models` are sources that have a shape, with its place in the recipe, by name.

    Raises InputError for a shape that is not a configuration, as a plan does.
    """
    found = ShapeChecks()
    for name, (source, where) in models.items():
        if source.kind == "endpoint":
            found.notes.append(f"models.{name}.shape is not compared with the model, which is on a server")
            continue
        try:
            facts = inspect_model(source, weights=False, bare=True)
            own = Shape.of(facts.config)
        except InputError:
            continue  # the model is not here, or damaged, as its own check reports
        brought = read_object(Path(source.shape))
        shape, tokens = Shape.of(brought), _tokens(facts)
        if wrong := [*_differences(shape, own), *_context(brought, facts), *_rows(shape, own, tokens)]:
            found.problems.append(
                f"{where}: models.{name}.shape: {source.shape} does not describe {source.name} at revision "
                f"{source.revision}: {'; '.join(wrong)}. Correct the file, because togi plan uses it, or name "
                "the model that it describes"
            )
        elif note := _padding(shape, own, tokens):
            found.notes.append(f"models.{name}: {note}")
    return found


def _differences(shape: Shape, own: Shape) -> Iterator[str]:
    for each in fields(Shape):
        told, real = getattr(shape, each.name), getattr(own, each.name)
        if each.name in KEYS and told != real:
            yield _differs(KEYS[each.name], told, real)


def _context(brought: Mapping[str, Any], facts: Facts) -> Iterator[str]:
    told = context_of(brought.get("text_config") or brought)
    if told != facts.context:
        yield _differs("max_position_embeddings", told, facts.context)


def _rows(shape: Shape, own: Shape, tokens: int | None) -> Iterator[str]:
    """A message if one of the two has fewer rows of embeddings than tokens; more rows are padding."""
    if shape.vocabulary != own.vocabulary and min(shape.vocabulary, own.vocabulary) < _used(shape, own, tokens):
        yield _differs("vocab_size", shape.vocabulary, own.vocabulary)


def _used(shape: Shape, own: Shape, tokens: int | None) -> int:
    """The rows of embeddings that belong to tokens."""
    return shape.unpadded or tokens or min(shape.vocabulary, own.vocabulary)


def _differs(key: str, told: object, real: object) -> str:
    said, found = ("not set" if value is None else json.dumps(value) for value in (told, real))
    return f"{key} is {said}, in the model's config.json {found}"


def _padding(shape: Shape, own: Shape, tokens: int | None) -> str:
    """A note on rows of embeddings that belong to no token; empty if there are none."""
    used = _used(shape, own, tokens)
    if own.vocabulary <= used and shape.vocabulary == own.vocabulary:
        return ""
    said = f"its embeddings have {own.vocabulary:,} rows for {used:,} tokens; {own.vocabulary - used:,} are padding"
    if tokens is not None and tokens != used:
        said += f" (its tokenizer has {tokens:,} tokens)"
    if shape.vocabulary != own.vocabulary:
        said += f". Its shape has {shape.vocabulary:,} rows; togi plan computes the memory of these"
    return said


def _tokens(facts: Facts) -> int | None:
    """The number of tokens of the model's tokenizer; None if it has no tokenizer.json that can be read."""
    path = None if facts.tokenizer is None else facts.tokenizer / "tokenizer.json"
    if path is None or not path.exists():
        return None
    try:
        words = run_stranger(lambda: Tokenizer.from_file(str(path)).get_vocab(), InputError)
    except InputError:
        return None
    return max(words.values(), default=-1) + 1
