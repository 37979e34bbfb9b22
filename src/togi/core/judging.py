"""Settings of a judge, shared by the stage `label`, the reward term `judge` and the benchmarks that ask a judge."""

from typing import Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import ModelRef, RecipePath, Settings


class JudgePrompt(Settings):
    """The prompt that asks a judge: one of togi's own, or the user's."""

    language: Literal["en", "ja", "ru"] = Field(default="en", description="language of togi's own prompt for the judge")
    prompt: RecipePath | None = Field(
        default=None,
        description="your own judge prompt: Jinja (.j2), FastChat's judge_prompts.jsonl or a .yaml of llm-jp-judge",
    )

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if self.prompt is not None and self.language != "en":
            raise ValueError("language selects one of togi's own prompts, but prompt is set too; remove one of them")
        return self


class NamedJudgePrompt(JudgePrompt):
    """A prompt that may be one of several in a file."""

    prompt_name: str | None = Field(default=None, description="which prompt to use from a file that holds several")

    @model_validator(mode="after")
    def _has_a_file(self) -> Self:
        if self.prompt is None and self.prompt_name is not None:
            raise ValueError("prompt_name selects from the file under prompt, but prompt is not set; set prompt too")
        return self


class JudgeSettings(NamedJudgePrompt):
    """Which model judges, with which prompt, and how it is sampled."""

    judge: ModelRef = Field(description="the model that judges")
    reference: bool = Field(default=True, description="show the judge the prompt's reference answer, if there is one")
    scale: tuple[int, int] = Field(default=(1, 10), description="lowest and highest grade")
    temperature: float = Field(default=0.0, ge=0, le=2, description="0 is greedy; a repeated question uses 0.5")
    max_tokens: int = Field(default=512, ge=1, description="maximum tokens of the judge's answer, reasoning included")
    retries: int = Field(
        default=1, ge=0, le=8, description="how often to ask again for an unreadable verdict, with the next index"
    )

    @model_validator(mode="after")
    def _scale_rises(self) -> Self:
        if self.scale[0] >= self.scale[1]:
            raise ValueError(f"scale is {list(self.scale)}: the lowest grade comes first")
        return self
