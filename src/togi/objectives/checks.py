"""Raises errors for settings of an objective: not among the allowed values, out of range, or refused by `rules`."""

from collections.abc import Iterable, Mapping

from togi.core.errors import RecipeError


def check_choice(key: str, value: str, allowed: Iterable[str]) -> None:
    """Raises RecipeError unless `value` is one of `allowed`."""
    if value not in tuple(allowed):
        raise RecipeError(f"objective.{key}: found {value!r}; allowed: {', '.join(allowed)}")


def check_ranges(fits: Mapping[str, bool], allowed: str) -> None:
    """Raises RecipeError with the names of the settings that are out of range."""
    wrong = [name for name, fine in fits.items() if not fine]
    if wrong:
        raise RecipeError(f"objective: {', '.join(wrong)} out of range; allowed: {allowed}")


def refuse(problem: str) -> None:
    """Raises RecipeError with the problem that `togi.objectives.rules` found, if there is one."""
    if problem:
        raise RecipeError(f"objective: {problem}")
