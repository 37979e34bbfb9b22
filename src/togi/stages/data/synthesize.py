"""Declares the stage `synthesize`: a model writes new records with one of seven methods. docs/synthesis.md names the
source of each."""

import math
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from togi.core.records import Document
from togi.core.settings import MAIN, DocumentsRef, EmbedderRef, ModelRef, PromptsRef, RecipePath, Ref
from togi.stages.base import StageSettings, StageType
from togi.stages.bounds import (
    LABEL,
    REQUEST,
    TURN,
    answered,
    beside,
    document_part_sizes,
    example_of_text,
    examples_shown,
    largest,
    last_turns,
    prompt_size,
    question,
    read,
    records_of,
    text_size,
    whole,
)
from togi.stages.cost import Cost, Inputs, Known, part_of
from togi.stages.data.synthesize_ways import WAYS, Method, Way

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

SOURCES = ("examples", "input", "documents")
GREEDY = "at temperature 0 the same question has the same answer"
SAME: tuple[Method, ...] = ("rewrite", "cot", "qa", "grounded")
"""The methods whose built-in prompts ask the same in each pass over the sources."""
_SPECIAL = {name for way in WAYS.values() for name in way.reads} | {*SOURCES}


class Synthesize(StageSettings):
    """A model writes new records. It writes questions from a few examples (`few_shot`), questions that an aligned model
    asks itself (`magpie`), or variations of given questions (`evolve`, `rewrite`). It also writes questions and answers
    about documents (`qa`), dialogues over documents (`grounded`), or answers with their reasoning (`cot`)."""

    lengths: ClassVar[tuple[str, ...]] = ("count",)

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
        description="maximum number of candidates; when absent: `count` with few_shot, else 4 x `count`; without "
        "`count` one for each input",
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

    @property
    def asks_once(self) -> bool:
        """Whether a second pass over the sources would ask the same again and get the same greedy answers. Other
        examples, other ways to evolve a question, and a prompt file that may read `number` make passes differ."""
        return self.temperature == 0 and self.method in SAME and self.examples is None and self.prompt is None

    def most(self, sources: int | None) -> int:
        """Returns the maximum number of candidates for `sources` source records; None: as many as needed."""
        if self.count is not None:
            most = self.max_candidates or self.way.tries * self.count
            return most if sources is None or not self.asks_once else min(most, sources)
        assert sources is not None, "without count the sources decide"
        return min(self.max_candidates or sources, sources)

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
    """At most `count` records. Without `count`, at most one per candidate; for documents that are split the number of
    candidates is unknown without `max_candidates`."""
    tokens = settings.max_tokens or settings.way.max_tokens
    cost = Cost(answer=max(tokens, settings.answer_tokens))
    came = Known() if settings.source is None else inputs[settings.source]
    split = isinstance(settings.source, DocumentsRef) and settings.long_documents == "split"
    sources = None if split else came.records
    known = settings.count is not None or sources is not None
    most = settings.most(sources) if known else settings.max_candidates
    if most is None:
        cost.unknown.append("documents are split into parts when the stage starts" if split else came.why)
        return cost
    cost.records = min(settings.count or most, most)
    _ask(settings, inputs, most, cost)
    cost.sampled = sum(each.written for each in cost.asked.values())
    cost.outputs[MAIN] = _written(settings, inputs, cost)
    if settings.asks_once and settings.count is not None and came.records is not None:
        _tell_count(settings.count, came.records, split, cost)
    return cost


def _tell_count(count: int, sources: int, split: bool, cost: Cost) -> None:
    """Adds an alarm, or a note, if a greedy model has fewer `sources` to be asked about than `count` asks for."""
    each = f"each part of the {sources:,} documents" if split else f"each of the {sources:,} records"
    what = f"count is {count:,}, but {each} is asked about once, because {GREEDY}"
    if count > sources and split:
        cost.notes.append(f"{what}; the number of parts is known when the stage starts")
    elif count > sources:
        cost.alarms.append(f"{what}: raise temperature, or remove count")


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


# --- what the requests read -------------------------------------------------------------------------------------------


def _ask(settings: Synthesize, inputs: Inputs, candidates: int, cost: Cost) -> None:
    """Adds the requests for at most `candidates` candidates."""
    name, tokens = settings.model.name, settings.max_tokens or settings.way.max_tokens
    if settings.method not in ("few_shot", "magpie"):
        choices = settings.pairs_per_text if settings.examples is not None and settings.method == "qa" else 1
        cost.ask(name, candidates, _read(settings, inputs, candidates), candidates * choices * tokens, choices)
        return
    choices = settings.samples_per_prompt
    calls = -(-candidates // choices)
    begun = text_size(settings.system) + 2 * TURN
    found: int | None = begun
    if settings.examples is not None:
        size, labels = (question, 1) if settings.style == "question" else (last_turns, 2)
        found = examples_shown(inputs[settings.examples], settings.shots, size, labels)
    cost.ask(name, calls, beside(calls * (LABEL + REQUEST), found, calls), calls * choices * tokens, choices)
    if settings.answer_tokens:
        cost.ask(name, candidates, candidates * (begun + tokens + REQUEST), candidates * settings.answer_tokens)


def _read(settings: Synthesize, inputs: Inputs, candidates: int) -> int | None:
    """The most tokens of the requests about given questions or documents."""
    if settings.documents is not None:
        return _read_documents(settings, inputs, inputs[settings.documents], candidates)
    assert settings.input is not None
    prompt = prompt_size(settings.prompt, "data", settings.method, settings.language)
    own, cot = settings.prompt is not None, settings.method == "cot"  # built-in prompts show no answer
    size = (answered if own else whole) if cot else (last_turns if own else question)
    return read(inputs[settings.input], candidates, prompt + text_size(settings.system) + 2 * TURN, size)


def _read_documents(settings: Synthesize, inputs: Inputs, came: Known, candidates: int) -> int | None:
    """The most tokens of the requests about parts of documents, each with the prompt or with examples."""
    chars, every = settings.chunk_chars, settings.long_documents == "split"
    texts = [each for each, _ in records_of(came) if isinstance(each, Document)]
    sizes = [size for each in texts for size in document_part_sizes(each, chars, every=every)]
    found: int | None = largest(sizes, candidates) if sizes else None
    if not sizes and came.tokens is not None:
        found = math.ceil(candidates * min(came.tokens + came.added, chars))
    around: int | None = prompt_size(settings.prompt, "data", "qa", settings.language) + TURN
    if settings.examples is not None:
        around = beside(2 * LABEL, examples_shown(inputs[settings.examples], settings.shots, example_of_text, 3), 1)
    return beside(found, None if around is None else around + REQUEST, candidates)


STAGE = StageType(
    "synthesize",
    Synthesize,
    outputs=outputs,
    work="togi.stages.data.synthesize_work",
    version=8,
    reasons=REASONS,
    model_rows="togi.stages.data.synthesize_rows",
    conserves=True,
    estimate=estimate,
)
