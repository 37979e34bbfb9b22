"""Prompt templates as Jinja files, rendered with the values of one record.

Built-in prompts and users' prompts are rendered in the same sandbox with limits, in which an undefined name is an
error. White space around the text is removed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from togi.core.errors import InputError
from togi.core.strangers import run_stranger
from togi.text.jinja import render_values


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A prompt template: its file and its Jinja source."""

    where: str
    source: str

    def render(self, values: Mapping[str, Any]) -> str:
        """The prompt rendered with `values`. Raises InputError, with the file and the available names, if the template
        cannot be rendered or writes nothing."""
        found = run_stranger(
            lambda: render_values(self.source, values), InputError, f"{self.where}: the prompt cannot be rendered"
        )
        if isinstance(found, TemplateError):
            line = getattr(found, "lineno", None)
            raise InputError(
                f"{self.where}{f':{line}' if line else ''}: the prompt cannot be rendered: {found.message}; it may use "
                f"{', '.join(values)}"
            ) from found
        if not found.strip():
            raise InputError(f"{self.where}: the prompt is empty for a record; it may use {', '.join(values)}")
        return found.strip()


def read_prompt(path: Path) -> PromptFile:
    """The prompt template in a file. Raises InputError if it cannot be read."""
    try:
        return PromptFile(str(path), path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text: save the prompt as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: the prompt cannot be read: {error.strerror or error}") from None
