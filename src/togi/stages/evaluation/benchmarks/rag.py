"""Declares the benchmark `rag`: answers from documents: whether a judge finds them correct, and whether they name the
right documents."""

import json
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from togi.core.records import Record
from togi.core.sampling import Sampling
from togi.core.settings import EmbedderRef, NamedModelRef, PromptsRef, RecipePath, Ref
from togi.data.document_files import LONGEST
from togi.stages.bounds import TURN, answered, prompt_size, read, records_of, text_size
from togi.stages.cost import Cost, Known
from togi.stages.evaluation.benchmarks.base import Asked, BenchmarkSettings, BenchmarkType, summed
from togi.text.grounded import ANSWER, MAX_TOKENS, SYSTEM

FRAME = 64
"""The most bytes around a document that is shown, without its title."""
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
    """Every model answers each question in two steps, or in one, and the judge reads each answer once or twice. A
    character of a folder of documents counts as a token."""
    came = asked.inputs[settings.questions]
    if came.records is None:
        return Cost(unknown=[came.why])
    documents = settings.shown * (FRAME + max(_longest(came), settings.chunk_chars * (settings.documents is not None)))
    cost, one_step, answer = Cost(), [ref.name for ref in settings.one_step], settings.max_tokens
    for name in asked.everyone:
        steps = came.records * (1 if name in one_step else 2)
        around = documents + text_size(SYSTEM) + 2 * TURN + (0 if name in one_step else answer)
        cost.ask(name, steps, read(came, steps, around), steps * answer)
    if asked.judge is not None:
        _ask_judge(settings, asked, came, documents, cost)
    return summed(cost)


def _ask_judge(settings: Rag, asked: Asked, came: Known, documents: int, cost: Cost) -> None:
    """Adds the requests to the judge: whether an answer is correct, and which sentences, which it is shown numbered,
    are unsupported."""
    assert asked.judge is not None and came.records is not None
    chosen, answers = settings.read == "logprobs", len(asked.everyone) * came.records
    written = 1 if chosen else settings.judge_max_tokens
    for name, calls, times in (("correct", settings.correct * (1 + chosen), 1), ("support", int(settings.support), 2)):
        prompt = prompt_size(None, "judge", f"grounded-{name}", settings.language)
        shown = read(came, calls * answers, documents + prompt + times * settings.max_tokens + TURN, _referred)
        cost.ask(asked.judge.name, calls * answers, shown, calls * answers * written)


def _longest(came: Known) -> int:
    """The bytes of the longest text that comes with a question, with its title."""
    columns = [(each.extra.get("context"), each.extra.get("title")) for each, _ in records_of(came)]
    return max((text_size(*(one for one in own if isinstance(one, str))) for own in columns if own[0]), default=0)


def _referred(record: Record) -> int:
    """The bytes of a question with its reference answers."""
    return answered(record) + text_size(json.dumps(record.extra.get("answers"), ensure_ascii=False))


BENCHMARK = BenchmarkType(
    "rag",
    Rag,
    work="togi.stages.evaluation.benchmarks.rag_work",
    judged=judged,
    reasons=REASONS,
    estimate=estimate,
    measures=measures,
)
