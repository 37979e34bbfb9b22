"""Judges for stages: the prompt from the settings, and the model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from togi.core.errors import GraderError, InputError
from togi.core.judging import JudgeSettings
from togi.core.records import Message, Prompt, SamplingParams
from togi.core.seeds import content_id, derive
from togi.judge.asking import Answered, Asker
from togi.judge.prompts import Case, JudgePrompt, Method, load_prompt, own_prompt
from togi.judge.reading import read_grade
from togi.stages.context import Context
from togi.stages.endpoints import ChatGenerator, generator

Value = TypeVar("Value")


def judge_prompt(settings: JudgeSettings, method: Method) -> JudgePrompt:
    """The judge's prompt. Raises InputError for a file without such a prompt."""
    if settings.prompt is None:
        return own_prompt(method, settings.language)
    return load_prompt(Path(settings.prompt), method, settings.prompt_name)


def questioned(prompt: JudgePrompt, case: Case, name: str) -> Prompt:
    """A case as a question to the judge; `name` identifies its random stream. Raises InputError with the name."""
    try:
        return Prompt(id=name, messages=prompt.messages(case))
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def asker(
    settings: JudgeSettings, context: Context, read: Callable[[str], Value | None], *, batch_rows: int
) -> Asker[Value]:
    """The judge, whose text `read` parses; it computes `batch_rows` questions together."""
    return asker_of(settings, context.seed, generator(context, settings.judge, batch_rows=batch_rows), read)


def asker_of(
    settings: JudgeSettings, seed: int, speaker: ChatGenerator, read: Callable[[str], Value | None]
) -> Asker[Value]:
    """`asker` with a judge that is there already; `seed` is that of the stage."""
    params = SamplingParams(
        temperature=settings.temperature, max_tokens=settings.max_tokens, seed=derive(seed, "judge")
    )
    return Asker(generator=speaker, read=read, params=params, retries=settings.retries, terminator=speaker.terminator)


def grade_reader(settings: JudgeSettings, prompt: JudgePrompt) -> Callable[[str], float | None]:
    """A function that reads a grade on the scale of the settings, with the method of the prompt's file if it has
    one."""
    low, high = settings.scale

    def read(text: str) -> float | None:
        if prompt.read is None:
            return read_grade(text, low, high)
        grade = prompt.read(text)
        return grade if grade is not None and low <= grade <= high else None

    return read


def graded_case(settings: JudgeSettings, messages: Sequence[Message], answer: str, reference: str | None) -> Case:
    """One answer to be graded."""
    low, high = settings.scale
    shown = reference if settings.reference else None
    return Case(messages=tuple(messages), answers=(answer,), reference=shown, low=low, high=high)


def judges_own(context: Context, settings: JudgeSettings) -> list[str]:
    """The names under which the judge's own answers may appear: its name in the recipe, and at its source (for a
    folder, only the folder's name, as in licences)."""
    source = context.model(settings.judge)
    names = (settings.judge.name, source.name, *([Path(source.name).name] if source.kind == "path" else []))
    return list(dict.fromkeys(names))


class JudgeScorer:
    """A judge as a `Scorer`: gives each answer a grade. An unreadable grade is a failure, never a number."""

    def __init__(self, settings: JudgeSettings, context: Context, *, batch_rows: int) -> None:
        self.settings = settings
        self.prompt = judge_prompt(settings, "graded")
        self.asker = asker(settings, context, grade_reader(settings, self.prompt), batch_rows=batch_rows)

    def score(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[float | GraderError]:
        """The grades of answers, in order, without reference answers, because a reward has none."""
        questions = [self._question(messages, answer) for messages, answer in items]
        return [self._grade(answered) for answered in self.asker.ask(questions)]

    def _question(self, messages: tuple[Message, ...], answer: str) -> Prompt:
        case = graded_case(self.settings, messages, answer, None)
        name = content_id([[turn.role, turn.content] for turn in messages] + [answer])
        return questioned(self.prompt, case, name)

    def _grade(self, answered: Answered[float]) -> float | GraderError:
        if answered.values:
            return answered.values[0]
        last = answered.attempts[-1]
        if last.failed:
            return GraderError(f"judge {self.settings.judge}: the request failed")
        return GraderError(f"judge {self.settings.judge}: cannot read a grade in {last.text[:200]!r}")
