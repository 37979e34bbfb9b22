"""Term: a user's own function, from a Python file, in one of two signatures.

`f(prompt, completion) -> number` is called once per answer. With `style: trl`, `f(prompts, completions,
completion_ids, **columns) -> list of numbers or None` is called once for all answers, as TRL's GRPOTrainer does.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

from togi.core.errors import GraderError, InputError
from togi.core.records import Message
from togi.core.seeds import digest
from togi.core.strangers import run_stranger
from togi.rewards.base import Attempt, Grade, Grader
from togi.rewards.blame import Blame
from togi.rewards.calls import Calls
from togi.rewards.columns import ANSWER, Columns, parameters, refuse_missing
from togi.rewards.neighbours import Neighbours


@dataclass(frozen=True, slots=True)
class UserFunction:
    """The function `name` in a user's file. While it runs, it can import the modules in that file's folder."""

    function: Callable[..., Any]
    beside: Neighbours
    name: str
    blame: Blame = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "blame", Blame(self.beside))

    @property
    def place(self) -> str:
        """Its name and that of its file, for messages."""
        return f"{self.name} of {self.beside.file.name}"

    def __call__(self, *args: Any, **named: Any) -> Any:
        with self.beside.importable():
            found = self.function(*args, **named)
        self.beside.check()
        return found


def load_function(file: Path, name: str, style: str = "togi") -> UserFunction:
    """Runs the Python file `file` once and returns its function `name`.

    Raises InputError if that fails, and if the function has TRL's signature but `style` is "togi"."""
    file = file.resolve()
    mark = f"togi_user_{file.stem}_{digest(str(file))[:8]}"
    spec = importlib.util.spec_from_file_location(mark, file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise InputError(f"reward function: {file} is not a Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look up their types here
    loader, beside = spec.loader, Neighbours(file)
    importlib.invalidate_caches()  # a file in its folder may be new
    with beside.importable():
        told = f"reward function: {file} does not load"
        Blame(beside).run(lambda: loader.exec_module(module), InputError, told, trace=False)
    beside.check()
    function = vars(module).get(name)
    if not callable(function):
        known = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise InputError(f"reward function: {file} has no function {name!r}; it has {', '.join(known) or 'none'}")
    if style == "togi" and "completions" in parameters(function):
        raise InputError(
            f"reward function: {file}: {name} takes `completions`, which is TRL's signature; set style: trl, or write "
            "it as f(prompt, completion)"
        )
    return UserFunction(function, beside, name)


def load_grader(
    file: Path, name: str, style: str, calls: Calls | None = None, columns: Sequence[Columns] = ()
) -> Grader:
    """The grader that calls the function `name` of `file` as `style` says; `calls` holds the running call, `columns`
    are those of the rows that it will grade, if they are known. Raises what `load_function` raises, and InputError for
    a function with TRL's signature that needs another column."""
    calls = calls or Calls()
    with calls.during(f"{name} of {file.name}", ()):
        function = load_function(file, name, style)
    if style == "togi":
        return FunctionGrader(function=function, calls=calls)
    refuse_missing(file, name, function.function, columns)
    names = None if not columns else tuple(dict.fromkeys(each for rows in columns for each in rows.names))
    return TrlGrader(function=function, calls=calls, plain=style == "trl-text", columns=names)


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionGrader:
    """Calls the function once per answer, with the completion's text cut before the terminator.

    An exception, or a result that is not a number, is a failure of that answer alone.
    """

    function: UserFunction
    calls: Calls = field(default_factory=Calls)

    def __call__(self, attempts: Sequence[Attempt]) -> list[Grade]:
        return [self._grade(attempt) for attempt in attempts]

    def _grade(self, attempt: Attempt) -> Grade:
        completion = replace(attempt.completion, text=attempt.answer)
        try:
            with self.calls.during(self.function.place, [attempt]):
                found = self.function.blame.run(lambda: self.function(attempt.prompt, completion), GraderError)
            return _number(found)
        except GraderError as error:
            return _of(error, attempt)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrlGrader:
    """Calls a function with TRL's signature once for all answers, with their texts before the terminator.

    A prompt is a list of messages, a completion a list of one message. With `plain`, both are texts; the prompt's
    is its last user turn. It also gets the rows' other columns and `answer`, one list each, with None for a row
    that lacks one. `columns` are the names of all of them; if None, these are unknown, and it gets those of the
    rows of a call. A result of None means, as in TRL, that the function does not apply to that answer; one that is
    not a number is a failure of that answer. An exception, or a wrong number of results, is a failure of all.
    """

    function: UserFunction
    calls: Calls = field(default_factory=Calls)
    plain: bool = False
    columns: tuple[str, ...] | None = None

    def __call__(self, attempts: Sequence[Attempt]) -> list[Grade]:
        try:
            with self.calls.during(self.function.place, attempts):
                call = self.function.blame.run
                found = call(lambda: _plain_list(self.function(**self._arguments(attempts))), GraderError)
            if len(found) != len(attempts):
                raise GraderError(f"it returned {len(found)} results for {len(attempts)} answers")
        except GraderError as error:
            return [_of(error, attempt) for attempt in attempts]
        return [_grade(value, attempt) for value, attempt in zip(found, attempts, strict=True)]

    def _arguments(self, attempts: Sequence[Attempt]) -> dict[str, Any]:
        """The function's arguments: all of them, or those it names if it takes no keywords."""
        here = (key for attempt in attempts for key in attempt.prompt.extra)
        names = dict.fromkeys((*((ANSWER,) if self.columns is None else self.columns), *here))
        given: dict[str, Any] = {key: [attempt.prompt.extra.get(key) for attempt in attempts] for key in names}
        if ANSWER in given:
            given[ANSWER] = [attempt.prompt.answer for attempt in attempts]
        given["prompts"] = [self._prompt(attempt) for attempt in attempts]
        given["completions"] = [self._completion(attempt) for attempt in attempts]
        given["completion_ids"] = [list(attempt.completion.token_ids) for attempt in attempts]
        taken = parameters(self.function.function)
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
            return given
        return {key: value for key, value in given.items() if key in taken}

    def _prompt(self, attempt: Attempt) -> Any:
        return attempt.prompt.text if self.plain else [_turn(message) for message in attempt.prompt.messages]

    def _completion(self, attempt: Attempt) -> Any:
        return attempt.answer if self.plain else [_turn(Message("assistant", attempt.answer))]


def _turn(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content}


def _plain_list(found: Any) -> list[Any]:
    """The items of an array, a tensor or any other sequence, as a list."""
    return list(found.tolist() if hasattr(found, "tolist") else found)


def _grade(value: Any, attempt: Attempt) -> Grade:
    try:
        return None if value is None else _number(value)
    except GraderError as error:
        return _of(error, attempt)


def _number(value: Any) -> float:
    number = run_stranger(lambda: float(value) if isinstance(value, Real) else None, GraderError)
    if number is None:
        raise GraderError(f"expected a number, got {type(value).__name__}")
    return number


def _of(error: GraderError, attempt: Attempt) -> GraderError:
    return GraderError(f"{error} (prompt {attempt.prompt.id})")
