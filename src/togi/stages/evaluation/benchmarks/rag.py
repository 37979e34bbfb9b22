"""`rag`: answers from documents, correct or not by a judge, with the right documents named or not."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from togi.core.judging import LONGEST_PROMPT
from togi.core.records import Prompt
from togi.core.sampling import Sampling
from togi.core.settings import EmbedderRef, NamedModelRef, PromptsRef, RecipePath, Ref
from togi.data.document_files import LONGEST
from togi.stages.cost import Cost
from togi.stages.evaluation.benchmarks.base import Asked, BenchmarkSettings, BenchmarkType, longest_of, summed
from togi.text.grounded import ANSWER, MAX_TOKENS

REASONS = ("no_documents", "no_answer", "failed", "unreadable")
"""A question without documents; an answer that did not come; a request to the judge that failed; a text of the judge
without a verdict."""


class Rag(BenchmarkSettings, Sampling):
    """Every model answers questions from documents in two steps: it names the documents that help, then it answers. A
    judge says whether an answer is correct, and which of its sentences the documents that it names do not support.
    Questions come as dialogues with a turn of documents, with a text of their own (SQuAD), or to a folder."""

    type: Literal["rag"] = "rag"
    questions: PromptsRef = Field(description="what is asked: grounded dialogues, rows of SQuAD, or questions alone")
    documents: RecipePath | None = Field(
        default=None, description="a folder, a file or a list of documents, for questions that come without any"
    )
    embedder: EmbedderRef | None = Field(
        default=None, description="what finds the documents of a folder that fit a question; BM25 when absent"
    )
    shown: int = Field(default=6, ge=1, le=100, description="documents that a question is shown with, at most")
    chunk_chars: int = Field(default=LONGEST, ge=50, description="longest part of a file, in characters")
    out_of_domain: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of the questions with a text of their own (SQuAD) that are shown texts of other articles "
        "alone, where the right answer is that there is none",
    )
    one_step: tuple[NamedModelRef, ...] = Field(
        default=(),
        description="models without a grounded mode: they answer at once, with the documents inside the user's turn, "
        "and have no ids",
    )
    correct: bool = Field(default=True, description="ask the judge whether each answer is correct")
    read: Literal["text", "logprobs"] = Field(
        default="text",
        description="read a verdict on correctness in the judge's text, or its log-probabilities of A and B, with each "
        "letter for correct once, as a small judge needs",
    )
    support: bool = Field(default=True, description="ask the judge which sentences the named documents do not support")
    language: Literal["en", "ja", "ru"] = Field(
        default="en", description="language of the judge's prompts, and of the words that ROUGE-L counts"
    )
    temperature: float = Field(
        default=ANSWER.temperature, ge=0, le=2, description="randomness of answers; ids are named at 0"
    )
    max_tokens: int = Field(default=MAX_TOKENS, ge=1, description="most tokens of each of the two answers")
    judge_temperature: float = Field(default=0.0, ge=0, le=2, description="randomness of the judge")
    judge_max_tokens: int = Field(default=1024, ge=1, description="most tokens of what the judge says")
    retries: int = Field(default=1, ge=0, le=8, description="how often an unreadable verdict is asked for again")

    @model_validator(mode="after")
    def _read(self) -> Self:
        if self.embedder is not None and self.documents is None:
            raise ValueError("embedder finds documents of a folder, and none is named under documents")
        if self.read == "logprobs" and self.support:
            raise ValueError("log-probabilities tell no list of sentences: with read: logprobs, say support: false")
        return self


def judged(settings: Rag) -> bool:
    """Whether the judge is asked anything."""
    return settings.correct or settings.support


def measures(settings: Rag) -> Sequence[Ref]:
    return [settings.questions]


def estimate(settings: Rag, asked: Asked) -> Cost:
    """Every model answers each question in two steps, or in one, and the judge reads each answer once or twice; of
    prompts, the bytes, which are more than the tokens."""
    came = asked.inputs[settings.questions]
    if came.records is None:
        return Cost(unknown=[came.why])
    longest = longest_of(came, lambda prompt: _bytes(prompt, settings))
    cost = Cost()
    for ref in asked.subjects:
        steps = came.records * (1 if ref in settings.one_step else 2)
        cost.ask(ref.name, steps, steps * (longest + settings.max_tokens), steps * settings.max_tokens)
    if asked.judge is not None:
        chosen = settings.read == "logprobs"
        verdicts = len(asked.subjects) * came.records * (settings.correct * (1 + chosen) + settings.support)
        read = verdicts * (LONGEST_PROMPT + longest + settings.max_tokens)
        cost.ask(asked.judge.name, verdicts, read, verdicts * (1 if chosen else settings.judge_max_tokens))
    return summed(cost)


def _bytes(prompt: Prompt, settings: Rag) -> int:
    """How long a question with its documents may be."""
    own = sum(len(message.content.encode()) for message in prompt.messages)
    context: Any = prompt.extra.get("context")
    if isinstance(context, str):
        return own + settings.shown * len(context.encode())
    return own if settings.documents is None else own + settings.shown * settings.chunk_chars


BENCHMARK = BenchmarkType(
    "rag",
    Rag,
    work="togi.stages.evaluation.benchmarks.rag_work",
    judged=judged,
    reasons=REASONS,
    estimate=estimate,
    measures=measures,
)
