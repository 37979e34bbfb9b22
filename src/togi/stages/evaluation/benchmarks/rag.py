"""`rag`: answers from documents: whether a judge finds them correct, and whether they name the right documents."""

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
"""The question has no documents; the model gave no answer; the request to the judge failed; the judge's text has no
verdict."""


class Rag(BenchmarkSettings, Sampling):
    """Every model answers questions from documents in two steps: it names the relevant documents, then it answers. A
    judge decides whether an answer is correct, and which of its sentences the named documents do not support. A
    question comes as a dialogue with a turn of documents, with its own text (SQuAD), or alone, with a folder of
    documents."""

    type: Literal["rag"] = "rag"
    questions: PromptsRef = Field(
        description="questions to answer: grounded dialogues, rows of SQuAD, or questions alone"
    )
    documents: RecipePath | None = Field(
        default=None, description="folder, file or list of documents, for questions that come without any"
    )
    embedder: EmbedderRef | None = Field(
        default=None, description="embedder that retrieves documents for questions without any; BM25 when absent"
    )
    shown: int = Field(default=6, ge=1, le=100, description="maximum documents shown with a question")
    chunk_chars: int = Field(default=LONGEST, ge=50, description="maximum length of a part of a file, in characters")
    out_of_domain: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of the questions with their own text (SQuAD) that are shown only texts of other articles, "
        "so that the right answer is that there is none",
    )
    one_step: tuple[NamedModelRef, ...] = Field(
        default=(),
        description="models without a grounded mode: they answer in one step, with the documents in the user's turn, "
        "and name no ids",
    )
    correct: bool = Field(default=True, description="ask the judge whether each answer is correct")
    read: Literal["text", "logprobs"] = Field(
        default="text",
        description="text: read the verdict on correctness from the judge's text; logprobs: compare the judge's "
        "log-probabilities of A and B, with each letter meaning correct once, which suits small judges",
    )
    support: bool = Field(default=True, description="ask the judge which sentences the named documents do not support")
    language: Literal["en", "ja", "ru"] = Field(
        default="en", description="language of the judge's prompts, and of ROUGE-L's word splitting"
    )
    temperature: float = Field(
        default=ANSWER.temperature, ge=0, le=2, description="temperature of the answers; document ids are named at 0"
    )
    max_tokens: int = Field(default=MAX_TOKENS, ge=1, description="maximum tokens of each of the two steps")
    judge_temperature: float = Field(default=0.0, ge=0, le=2, description="temperature of the judge")
    judge_max_tokens: int = Field(default=1024, ge=1, description="maximum tokens of the judge's text")
    retries: int = Field(default=1, ge=0, le=8, description="how often to ask again after an unreadable verdict")

    @model_validator(mode="after")
    def _read(self) -> Self:
        if self.embedder is not None and self.documents is None:
            raise ValueError("embedder retrieves from documents, but documents is not set")
        if self.read == "logprobs" and self.support:
            raise ValueError("read: logprobs cannot give a list of unsupported sentences; set support: false")
        return self


def judged(settings: Rag) -> bool:
    """Whether the judge is asked anything."""
    return settings.correct or settings.support


def measures(settings: Rag) -> Sequence[Ref]:
    return [settings.questions]


def estimate(settings: Rag, asked: Asked) -> Cost:
    """Every model answers each question in two steps, or in one, and the judge reads each answer once or twice. Prompts
    are counted in bytes, an upper bound of their tokens."""
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
    """The most bytes of a question with its documents."""
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
