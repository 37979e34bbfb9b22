"""Finds togi's built-in prompts, the Jinja files `prompts/NAME.LANGUAGE.j2`; each lists its variables at the top."""

from pathlib import Path

from togi.text.prompt_file import PromptFile, read_prompt

FOLDER = Path(__file__).parent / "prompts"


def shipped_prompt(name: str, language: str) -> PromptFile:
    """The built-in prompt of a name (evolve, rewrite, qa, qa-text, cot, curate) in a language (en, ja, ru)."""
    return read_prompt(FOLDER / f"{name}.{language}.j2")


def prompt_of(own: str | Path | None, name: str, language: str) -> PromptFile:
    """The user's prompt file if given, else the built-in one. Raises InputError if the file cannot be read."""
    return shipped_prompt(name, language) if own is None else read_prompt(Path(own))
