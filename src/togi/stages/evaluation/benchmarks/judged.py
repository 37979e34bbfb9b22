"""Shared by benchmarks whose answers a judge grades: judge settings, rounds and cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from togi.core.judging import LONGEST_PROMPT
from togi.core.records import Prompt
from togi.core.sampling import Sampling
from togi.core.settings import PromptsRef, RecipePath, Ref
from togi.data.question_files import TURNS
from togi.stages.cost import Cost
from togi.stages.evaluation.benchmarks.base import Asked, BenchmarkSettings, longest_of, summed

REASONS = ("no_answer", "failed", "unreadable")
"""Why a grade is missing: the model gave no answer, the request to the judge failed, its text holds no grade."""
LLM_JP_SYSTEM = "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
"""The system prompt that llm-jp-judge puts before every conversation, even in English benchmarks."""


class JudgedSettings(BenchmarkSettings, Sampling):
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
    language: Literal["en", "ja", "ru"] = Field(default="en", description="language of togi's own prompt for the judge")
    prompt: RecipePath | None = Field(
        default=None,
        description="your own judge prompt: Jinja (.j2), FastChat's judge_prompts.jsonl or a .yaml of llm-jp-judge",
    )
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


def measures(settings: JudgedSettings) -> Sequence[Ref]:
    return [settings.questions]


def estimate(settings: JudgedSettings, asked: Asked) -> Cost:
    """Every model answers each turn of each question, and the judge reads each answer. Prompts are counted in bytes, an
    upper bound of their tokens."""
    came = asked.inputs[settings.questions]
    if came.records is None:
        return Cost(unknown=[came.why])
    questions = [record for record in came.samples if isinstance(record, Prompt)]
    turns = [len(record.extra.get(TURNS) or ()) or 1 for record in questions]
    most = max(turns, default=1)
    per_subject = settings.rounds * (sum(turns) if len(turns) == came.records else most * came.records)
    around = (
        Path(settings.prompt).stat().st_size if settings.prompt and Path(settings.prompt).is_file() else LONGEST_PROMPT
    )
    longest = longest_of(came, lambda prompt: len(str(prompt.extra.get(TURNS) or prompt.text).encode()))
    talk = longest + most * settings.max_tokens
    cost = Cost()
    for ref in asked.subjects:
        cost.ask(ref.name, per_subject, per_subject * talk, per_subject * settings.max_tokens)
    if asked.judge is not None:
        answers = len(asked.subjects) * per_subject
        cost.ask(asked.judge.name, answers, answers * (talk + around), answers * settings.judge_max_tokens)
    cost.notes.append("calls: one answer and one grade each, not counting repeats for unreadable grades")
    found = summed(cost)
    found.samples = len(asked.subjects) * per_subject
    return found
