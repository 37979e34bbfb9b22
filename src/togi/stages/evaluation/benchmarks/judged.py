"""Shared by benchmarks whose answers a judge grades: judge settings, rounds and cost."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from togi.core.judging import JudgePrompt
from togi.core.records import Prompt, Record
from togi.core.sampling import Sampling
from togi.core.settings import PromptsRef, Ref
from togi.data.question_files import CHOICES, TURNS
from togi.stages.bounds import REQUEST, TURN, largest, prompt_size, records_of, text_size, whole
from togi.stages.cost import Cost, Known
from togi.stages.evaluation.benchmarks.base import Asked, BenchmarkSettings, summed

REASONS = ("no_answer", "failed", "unreadable")
"""Why a grade is missing: the model gave no answer, the request to the judge failed, its text holds no grade."""
LLM_JP_SYSTEM = "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
"""The system prompt that llm-jp-judge puts before every conversation, even in English benchmarks."""


class JudgedSettings(JudgePrompt, BenchmarkSettings, Sampling):
    """Every model answers the questions, and a judge grades the answers. Each round repeats both."""

    questions: PromptsRef = Field(description="questions to answer; the judge is shown a question's reference answer")
    rounds: int = Field(default=1, ge=1, le=64, description="how often all questions are answered and judged")
    protocol: Literal["plain", "llm-jp"] = Field(
        default="plain",
        description="llm-jp: start every conversation with the Japanese system prompt of llm-jp-judge, as its "
        "published figures do; plain: start with nothing",
    )
    system: str | None = Field(
        default=None, min_length=1, description="with protocol plain: system prompt of every conversation"
    )
    max_tokens: int = Field(default=1024, ge=1, description="maximum tokens of an answer, terminator included")
    reads: Literal["togi", "llm-jp", "fastchat"] = Field(
        default="togi",
        description="how a grade is read if the prompt's file does not specify it: togi reads the grade that the "
        "whole text agrees on; llm-jp and fastchat read the first grade, as those benchmarks do",
    )
    judge_temperature: float = Field(default=0.0, ge=0, le=2, description="temperature of the judge")
    judge_top_p: float = Field(default=1.0, gt=0, le=1, description="nucleus sampling (top-p) of the judge")
    judge_max_tokens: int = Field(default=2048, ge=1, description="maximum tokens of the judge's text")
    retries: int = Field(default=1, ge=0, le=8, description="how often to ask again after an unreadable grade")

    @model_validator(mode="after")
    def _one_system(self) -> Self:
        if self.protocol == "llm-jp" and self.system is not None:
            raise ValueError("protocol: llm-jp has its own system prompt; remove system, or set protocol: plain")
        return self

    @property
    def spoken_system(self) -> str | None:
        """The system prompt of every conversation."""
        return LLM_JP_SYSTEM if self.protocol == "llm-jp" else self.system

    @property
    def systems(self) -> tuple[str | None, ...]:
        """The system prompts with each of which every model is measured."""
        return (self.spoken_system,)


def measures(settings: JudgedSettings) -> Sequence[Ref]:
    return [settings.questions]


def estimate(settings: JudgedSettings, asked: Asked) -> Cost:
    """Every model answers each turn of each question, and the judge reads each answer."""
    came = asked.inputs[settings.questions]
    if came.records is None:
        return Cost(unknown=[came.why])
    talks = _talks(settings, asked, came)
    rounds = settings.rounds * came.records
    calls = largest([talk.turns for talk in talks], rounds) or rounds
    cost = Cost()
    for system in settings.systems:
        around = TURN + REQUEST + text_size(system)
        spoken = [talk.spoken(settings.max_tokens) for talk in talks]
        read = largest(spoken, rounds) + calls * around if talks else None
        for name in asked.everyone:
            cost.ask(name, calls, read, calls * settings.max_tokens)
            _ask_judge(settings, asked, talks, rounds, cost)
    cost.notes.append("calls: one answer and one grade each, not counting repeats for unreadable grades")
    found = summed(cost)
    found.samples = len(settings.systems) * len(asked.everyone) * calls
    return found


def _ask_judge(settings: JudgedSettings, asked: Asked, talks: "Sequence[_Talk]", rounds: int, cost: Cost) -> None:
    """Adds the requests to the judge about all answers of one model in `rounds` conversations."""
    if asked.judge is None:
        return
    name = "safety" if settings.type == "safety" else "graded"
    around = prompt_size(settings.prompt, "judge", name, settings.language) + text_size(settings.spoken_system)
    calls = largest([talk.turns for talk in talks], rounds) or rounds
    shown = [talk.judged(settings.max_tokens) for talk in talks]
    read = largest(shown, rounds) + calls * (around + 2 * TURN + REQUEST) if talks else None
    cost.ask(asked.judge.name, calls, read, calls * settings.judge_max_tokens)


@dataclass(frozen=True, slots=True)
class _Talk:
    """A question: its turns, their tokens, and those of what the judge is shown besides at each turn."""

    turns: int
    size: int
    beside: int = 0

    def spoken(self, answer: int) -> int:
        """The most tokens that a model reads to answer all turns with at most `answer` tokens each."""
        return self.turns * self.size + self.turns * (self.turns - 1) // 2 * answer

    def judged(self, answer: int) -> int:
        """The most tokens that a judge reads of all answers."""
        return self.turns * (self.size + self.beside) + self.turns * (self.turns + 1) // 2 * answer


def _talks(settings: JudgedSettings, asked: Asked, came: Known) -> list[_Talk]:
    """The questions as far as they are known. One question of mean length stands for them if only the recipe states
    their length; there are none if nothing is known."""
    if not came.samples and came.tokens is not None and came.beside is not None:
        return [_Talk(turns=1, size=math.ceil(came.tokens) + came.added)]
    beside, found = _references(settings, asked), []
    for record, more in records_of(came):
        turns = record.extra.get(TURNS)
        later = turns[1:] if isinstance(turns, list) else []
        size = whole(record) + came.added + more + sum(TURN + text_size(_text(each)) for each in later)
        found.append(_Talk(1 + len(later), size, beside + _shown(settings, record)))
    return found


def _shown(settings: JudgedSettings, record: Record) -> int:
    """The bytes of the reference answers and of the rubric in a question's row."""
    own = record.answer if isinstance(record, Prompt) else None
    names = ("reference", getattr(settings, "rubric", None))
    return text_size(own, *(_text(record.extra.get(name)) for name in names if name))


def _references(settings: JudgedSettings, asked: Asked) -> int:
    """The most bytes of the reference answers to a question that come in a file of their own."""
    ref = getattr(settings, "references", None)
    known = [] if ref is None else asked.inputs[ref].samples
    return max((text_size(_text(each.extra.get(CHOICES))) for each in known), default=0)


def _text(value: Any) -> str:
    """A value of a column as text."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
