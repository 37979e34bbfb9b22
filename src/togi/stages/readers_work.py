"""Tokenizers and templates of models whose weights are not needed here."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from togi.core.sources import HUB_ID, ModelSource
from togi.model.load import bare_tokenizer, load_tokenizer
from togi.text.template import Template

ANY = "chatml-nobos"
"""A template that fits every tokenizer, for a tokenizer that is read alone."""


def read_words(source: ModelSource, cache: Path, kind: str) -> tuple[Any, Template]:
    """The tokenizer and the template of a model. For a model on a server, the recipe names the folder or hub id of its
    tokenizer. Raises InputError as loading them does."""
    if source.kind != "endpoint":
        return load_tokenizer(source, cache, kind)
    is_folder = Path(source.tokenizer).is_dir()
    where = "path" if is_folder or not HUB_ID.fullmatch(source.tokenizer) else "hub"
    return bare_tokenizer(replace(source, kind=where, name=source.tokenizer, revision="main"))


def read_counter(source: ModelSource, cache: Path) -> tuple[Any, Template | None]:
    """`read_words` for a model on a server, without a template if neither the recipe nor the tokenizer has one."""
    if source.template is None and not source.template_file:
        tokenizer, _ = read_words(replace(source, template=ANY), cache, "causal")
        if not tokenizer.chat_template:
            return tokenizer, None
    return read_words(source, cache, "causal")
