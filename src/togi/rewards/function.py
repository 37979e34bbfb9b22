"""Term: a user's own function `f(prompt, completion) -> number`, from a Python file."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, cast

from togi.core.errors import GraderError, InputError
from togi.core.records import Completion, Prompt
from togi.core.strangers import run_stranger
from togi.rewards.base import Attempt, Grade

RewardFunction = Callable[[Prompt, Completion], float]


def load_function(file: Path, name: str) -> RewardFunction:
    """The function `name` of the Python file `file`, which is run once. Raises InputError."""
    spec = importlib.util.spec_from_file_location(f"togi_user_{file.stem}", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise InputError(f"reward function: {file} is not a Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look up their types
    loader = spec.loader
    run_stranger(lambda: loader.exec_module(module), InputError, f"reward function: {file} does not load")
    function = vars(module).get(name)
    if not callable(function):
        known = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise InputError(f"reward function: {file} has no function {name!r}; it has {', '.join(known) or 'none'}")
    return cast(RewardFunction, function)


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionGrader:
    """Asks the function answer by answer. It sees the completion with its text cut before the terminator.

    What it raises, and anything but a number, is a failure of that answer alone.
    """

    function: RewardFunction
    name: str

    def __call__(self, attempts: Sequence[Attempt]) -> list[Grade]:
        return [self._grade(attempt) for attempt in attempts]

    def _grade(self, attempt: Attempt) -> Grade:
        try:
            return self._call(attempt)
        except GraderError as error:
            return GraderError(f"{error} (prompt {attempt.prompt.id})")

    def _call(self, attempt: Attempt) -> float:
        completion = replace(attempt.completion, text=attempt.answer)
        value: Any = run_stranger(lambda: self.function(attempt.prompt, completion), GraderError)
        if isinstance(value, Real):
            return float(value)
        raise GraderError(f"expected a number, got {type(value).__name__}")
