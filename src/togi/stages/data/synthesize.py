"""`synthesize`: a model writes new records with one of seven methods. docs/synthesis.md names the source of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import MAIN, DocumentsRef, EmbedderRef, ModelRef, PromptsRef, RecipePath, Ref
from togi.stages.base import StageSettings, StageType
from togi.stages.cost import Cost, Inputs, Known, part_of

Method = Literal["few_shot", "magpie", "evolve", "rewrite", "qa", "grounded", "cot"]

REASONS = (
    *("failed", "no_end", "empty", "no_answer", "label_inside"),
    *("too_short", "too_long", "wrong_language", "copy_of_seed", "repeated_ngrams"),
    *(
        "over_context",
        "unchanged",
        "not_a_question",
        "duplicate",
        "unsupported_answer",
        "echo",
        "answer_elsewhere",
        "wrong_answer",
    ),
)
"""Drop reasons of a candidate: unreadable answers first, then broken rules."""


@dataclass(frozen=True, slots=True)
class Way:
    """A method: the settings that only some methods read, the kinds of records it can produce (the first is the
    default), and its sampling defaults."""

    reads: tuple[str, ...]
    kinds: tuple[str, ...]
    source: str = ""
    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 256
    max_chars: int = 2000
    tries: int = 4
    batch: int = 64


_FEW = ("samples_per_prompt",)
_ASKED = ("prompt",)
_TEXTS = (*_ASKED, "examples", "shots", "chunk_chars", "long_documents", "min_support")
WAYS: Mapping[Method, Way] = {
    "few_shot": Way((*_FEW, "style", "shots"), ("prompts",), "examples", 0.9, 0.95, 48, 400, 1, 8),
    "magpie": Way(
        (*_FEW, "system", "answer_tokens", "one_line"), ("prompts", "chats"), "", 1.0, 1.0, 128, 400, batch=8
    ),
    "evolve": Way(_ASKED, ("prompts",), "input"),
    "rewrite": Way(_ASKED, ("prompts",), "input"),
    "qa": Way((*_TEXTS, "pairs_per_text", "layout"), ("documents", "chats"), "documents"),
    "grounded": Way((*_TEXTS, "distractors", "unanswerable", "no_answer", "embedder"), ("chats",), "documents"),
    "cot": Way((*_ASKED, "system", "check_answer"), ("chats", "prompts"), "input", max_tokens=512),
}
SOURCES = ("examples", "input", "documents")
_SPECIAL = {name for way in WAYS.values() for name in way.reads} | {*SOURCES}


class Synthesize(StageSettings):
    """A model writes new records: questions from a few examples (`few_shot`), questions that an aligned model asks
    itself (`magpie`), variations of given questions (`evolve`, `rewrite`), questions and answers about documents
    (`qa`), dialogues over documents (`grounded`), or answers with their reasoning (`cot`)."""

    type: Literal["synthesize"] = "synthesize"
    method: Method = "few_shot"
    model: ModelRef
    examples: PromptsRef | None = Field(
        default=None,
        description="few_shot: the examples to imitate; qa, grounded: rows of text, question and answer that the "
        "model continues, instead of `prompt` and the chat template; for base models and small ones",
    )
    input: PromptsRef | None = Field(default=None, description="evolve, rewrite, cot: the questions to start from")
    documents: DocumentsRef | None = Field(default=None, description="qa, grounded: the texts to ask about")
    count: int | None = Field(
        default=None,
        ge=1,
        description="number of records to accept; when absent (only with an input or documents): one attempt for "
        "each of them",
    )
    max_candidates: int | None = Field(
        default=None,
        ge=1,
        description="maximum number of candidates for `count` records; when absent: `count` with few_shot, else 4 "
        "x `count`",
    )
    kind: Literal["prompts", "chats", "documents"] | None = Field(
        default=None,
        description="kind of the output; magpie: prompts or chats; qa: documents or chats; cot: chats, or prompts "
        "with the final answer as reference answer",
    )
    style: Literal["question", "question_answer"] = Field(
        default="question", description="few_shot: write only questions, or questions with answers"
    )
    language: Literal["en", "ja", "ru"] = Field(
        default="en", description="language of the labels, the built-in prompts and the language filter"
    )
    shots: int = Field(default=5, ge=1, le=32, description="examples shown before each draft")
    samples_per_prompt: int = Field(
        default=8,
        ge=1,
        description="few_shot, magpie: drafts sampled from one prompt, that is, from one choice of examples "
        "(few_shot) or one request (magpie)",
    )
    system: str = Field(default="", description="magpie, cot: system turn put before the conversation")
    answer_tokens: int = Field(
        default=0,
        ge=0,
        description="magpie: also answer each question, greedily, with at most this many tokens; 0: only questions",
    )
    one_line: bool = Field(default=True, description="magpie: end each question at the first line break")
    prompt: RecipePath | None = Field(default=None, description="your own Jinja file instead of the built-in prompt")
    chunk_chars: int = Field(
        default=1500, ge=50, description="qa, grounded: maximum length of one part of a document, in characters"
    )
    long_documents: Literal["split", "cut", "drop"] = Field(
        default="split",
        description="qa, grounded: how to treat a document longer than chunk_chars: split it into parts, keep "
        "only the first part (cut), or drop it",
    )
    pairs_per_text: int = Field(default=2, ge=1, le=16, description="qa: number of questions to ask for about one part")
    layout: RecipePath | None = Field(
        default=None,
        description="qa: a Jinja file that lays out text and pairs as a document; three built-in layouts when absent",
    )
    min_support: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="qa, grounded: minimum share of an answer's words (ja: character pairs) that must occur in "
        "the text",
    )
    distractors: int = Field(
        default=3,
        ge=0,
        le=15,
        description="grounded: related but unhelpful documents shown next to the one with the answer",
    )
    unanswerable: float = Field(
        default=0.2, ge=0, le=1, description="grounded: share of dialogues in which no document contains the answer"
    )
    no_answer: str | None = Field(
        default=None,
        min_length=1,
        description="grounded: the answer given when no document helps; a built-in one when absent",
    )
    embedder: EmbedderRef | None = Field(
        default=None, description="grounded: embedder that finds related documents; character n-grams when absent"
    )
    check_answer: bool = Field(
        default=False,
        description="cot: keep an answer only if it ends with the reference answer of its prompt; numbers are "
        "compared by value, with their sign",
    )
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="when absent: 0.9 with few_shot, 1 with magpie, else 0.7"
    )
    top_p: float | None = Field(default=None, gt=0, le=1, description="when absent: 1 with magpie, else 0.95")
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="maximum tokens of one candidate; when absent: 48 with few_shot, 128 with magpie, 512 with "
        "cot, else 256",
    )
    min_chars: int = Field(default=8, ge=1, description="minimum length of a question, in characters")
    max_chars: int | None = Field(
        default=None,
        ge=1,
        description="maximum length of a question, in characters; when absent: 400 with few_shot and magpie, else 2000",
    )
    max_repeated_ngrams: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="maximum share of repeated word or character n-grams in a question or an answer",
    )
    batch_prompts: int | None = Field(
        default=None,
        ge=1,
        description="prompts in one unit of work, asked together; when absent: 8 with few_shot and magpie, else 64",
    )

    def limited(self, rows: int) -> Self:
        """Limits the stage to `rows` records; the number of candidates for each record stays the same."""
        if self.count is None:
            return self.model_copy(update={"max_candidates": min(self.max_candidates or rows, rows)})
        count = min(self.count, rows)
        most = None if self.max_candidates is None else -(-self.max_candidates * count // self.count)
        return self.model_copy(update={"count": count, "max_candidates": most})

    @property
    def way(self) -> Way:
        """The properties of the method."""
        return WAYS[self.method]

    @property
    def gives(self) -> str:
        """The kind of the output records."""
        return self.kind or self.way.kinds[0]

    @property
    def source(self) -> Ref | None:
        """The records that the candidates are made from."""
        return getattr(self, self.way.source) if self.way.source else None

    @property
    def longest_question(self) -> int:
        """Maximum length of a question, in characters."""
        return self.max_chars or self.way.max_chars

    @property
    def batch(self) -> int:
        """Prompts in one unit of work."""
        return self.batch_prompts or self.way.batch

    def most(self, sources: int) -> int:
        """Returns the maximum number of candidates for `sources` source records."""
        if self.count is None:
            return min(self.max_candidates or sources, sources)
        return self.max_candidates or self.way.tries * self.count

    @model_validator(mode="after")
    def _reads_what_it_is_given(self) -> Self:
        way = self.way
        wanted = way.source
        if wanted and getattr(self, wanted) is None:
            raise ValueError(f"method: {self.method} needs `{wanted}`")
        fields = type(self).model_fields
        unread = [
            name
            for name in fields
            if name in _SPECIAL - {*way.reads, wanted} and getattr(self, name) != fields[name].default
        ]
        if unread:
            raise ValueError(
                f"method: {self.method} does not read {', '.join(unread)}; remove it, or change the method "
                f"(it reads {', '.join(filter(None, (wanted, *way.reads)))})"
            )
        if self.examples is not None and self.prompt is not None:
            raise ValueError("with examples the model continues a list and does not read `prompt`: remove one of them")
        if self.kind is not None and self.kind not in way.kinds:
            raise ValueError(f"method: {self.method} produces {' or '.join(way.kinds)}, found kind: {self.kind}")
        return self

    @model_validator(mode="after")
    def _some_candidate_fits(self) -> Self:
        if self.count is None and self.method in ("few_shot", "magpie"):
            raise ValueError(f"method: {self.method} needs `count`, the number of records to accept")
        if self.count is not None and self.max_candidates is not None and self.max_candidates < self.count:
            raise ValueError(
                f"max_candidates is {self.max_candidates} and count {self.count}: count could never be reached"
            )
        if self.min_chars > self.longest_question:
            raise ValueError(
                f"min_chars is {self.min_chars} and max_chars {self.longest_question}: no draft could pass"
            )
        if self.method == "magpie" and self.gives == "chats" and not self.answer_tokens:
            raise ValueError("kind: chats needs answers: set answer_tokens, the maximum tokens of an answer")
        return self


def outputs(settings: Synthesize) -> dict[str, str]:
    """One output, of the kind that the method and the recipe define."""
    return {MAIN: settings.gives}


def estimate(settings: Synthesize, inputs: Inputs) -> Cost:
    """At most `count` records. Without `count`, at most one per input record; for documents the number is unknown,
    since they are first split into parts."""
    tokens = settings.max_tokens or settings.way.max_tokens
    cost = Cost(answer=max(tokens, settings.answer_tokens))
    if settings.count is not None:
        most = settings.most(0)
        cost.records, cost.calls = settings.count, _calls(settings, most)
        cost.sampled = most * (tokens + settings.answer_tokens)
        cost.outputs[MAIN] = _written(settings, inputs, cost)
        return cost
    assert settings.source is not None, "a method without a source needs count"
    came = inputs[settings.source]
    if isinstance(settings.source, DocumentsRef):
        cost.unknown.append("documents are split into parts when the stage starts")
    elif came.records is None:
        cost.unknown.append(came.why)
    else:
        most = settings.most(came.records)
        cost.records, cost.sampled, cost.calls = came.records, most * tokens, _calls(settings, most)
        cost.outputs[MAIN] = _written(settings, inputs, cost)
    return cost


def _written(settings: Synthesize, inputs: Inputs, cost: Cost) -> Known:
    """Size of the new records: a question is what is sampled; an answer with its reasoning is appended to its input
    question. The length of documents asked about is unknown."""
    assert cost.answer is not None
    if settings.source is not None and settings.method == "cot":
        return part_of(inputs[settings.source], cost.records, cost.answer)
    if isinstance(settings.source, DocumentsRef):
        return Known(records=cost.records)
    written = (settings.max_tokens or settings.way.max_tokens) + settings.answer_tokens
    return Known(records=cost.records, tokens=0, longest=0, added=written)


def _calls(settings: Synthesize, candidates: int) -> int:
    """Returns the maximum number of requests for `candidates` candidates."""
    if "samples_per_prompt" not in settings.way.reads:
        return candidates
    return -(-candidates // settings.samples_per_prompt) + (candidates if settings.answer_tokens else 0)


STAGE = StageType(
    "synthesize",
    Synthesize,
    outputs=outputs,
    work="togi.stages.data.synthesize_work",
    version=7,
    reasons=REASONS,
    model_rows="togi.stages.data.synthesize_rows",
    conserves=True,
    estimate=estimate,
)
