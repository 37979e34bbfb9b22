"""`arena`: models in pairwise battles against a baseline, as arena-hard and Ru-Arena hold them."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from togi.core.judging import LONGEST_PROMPT
from togi.core.sampling import Sampling
from togi.core.settings import PromptsRef, RecipePath, Ref
from togi.stages.cost import Cost
from togi.stages.evaluation.benchmarks.base import Asked, BenchmarkSettings, BenchmarkType, longest_of, summed

REASONS = ("no_answer", "failed", "no_verdict", "unknown_label")
"""An answer that did not come, of the model or of the baseline; a request to the judge that failed; a text of the judge
without one of the five labels, or with several; another label."""


class Arena(BenchmarkSettings, Sampling):
    """Every model answers the questions, and a judge compares each answer with the baseline's in two games, one in each
    order, by five labels: win rates against the baseline, with a leaderboard. The answers, judgments and battles are
    kept in arena-hard's file layouts."""

    type: Literal["arena"] = "arena"
    questions: PromptsRef = Field(description="what is asked")
    rules: Literal["v0.1", "v2"] = Field(
        default="v0.1",
        description="how labels are read: v0.1 drops a game without a clear one, as Ru-Arena does too; v2 drops the "
        "question, and takes the last label",
    )
    length_control: bool = Field(default=False, description="show the win rate under Ru-Arena's length control too")
    style_control: Literal["length", "markdown", "both"] | None = Field(
        default=None, description="show the win rate under arena-hard's style control too"
    )
    temperature: float = Field(default=0.0, ge=0, le=2, description="randomness of answers; 0 is greedy")
    max_tokens: int = Field(default=2048, ge=1, description="most tokens of an answer, terminator included")
    language: Literal["en", "ja", "ru"] = Field(default="en", description="language of togi's own prompt for the judge")
    read: Literal["text", "logprobs"] = Field(
        default="text",
        description="read a label in the judge's text, or its log-probabilities of A and B in both games together, as "
        "a small judge needs; there is no clear win then",
    )
    prompt: RecipePath | None = Field(
        default=None,
        description="a prompt for the judge that asks for five labels: Jinja (.j2), .jsonl of FastChat",
    )
    prompt_name: str | None = Field(default=None, description="which prompt of a file that holds several")
    judge_temperature: float = Field(default=0.0, ge=0, le=2, description="randomness of the judge")
    judge_max_tokens: int = Field(default=4096, ge=1, description="most tokens of what the judge says")
    retries: int = Field(default=1, ge=0, le=8, description="how often a text without any label is asked for again")


def measures(settings: Arena) -> Sequence[Ref]:
    return [settings.questions]


def estimate(settings: Arena, asked: Asked) -> Cost:
    """Every model answers each question, and the judge reads each answer of all but the baseline in two games; of
    prompts, the bytes, which are more than the tokens."""
    came = asked.inputs[settings.questions]
    if came.records is None:
        return Cost(unknown=[came.why])
    longest = longest_of(came, lambda prompt: len(prompt.text.encode()))
    cost = Cost()
    for ref in asked.subjects:
        cost.ask(ref.name, came.records, came.records * longest, came.records * settings.max_tokens)
    games = 2 * (len(asked.subjects) - 1) * came.records
    if asked.judge is not None:
        read = games * (LONGEST_PROMPT + longest + 2 * settings.max_tokens)
        written = settings.judge_max_tokens if settings.read == "text" else 1
        cost.ask(asked.judge.name, games, read, games * written)
    cost.notes.append(f"{games:,} games are judged; without those that are asked again")
    return summed(cost)


BENCHMARK = BenchmarkType(
    "arena",
    Arena,
    work="togi.stages.evaluation.benchmarks.arena_work",
    judged=lambda settings: True,
    reasons=REASONS,
    estimate=estimate,
    measures=measures,
)
