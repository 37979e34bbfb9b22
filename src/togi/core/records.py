"""The values that stages exchange: prompts, samples, pairs and other records.

Every record is a frozen value. `id` identifies it and `parents` are the ids it was made from. `source` is the data set
that it was read from, `inherited` are the data sets and models that it was made from. `extra` contains columns that
togi keeps but never reads.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Stop = Literal["terminator", "stop_string", "length", "error"]
Outcome = Literal["winner", "tie", "grade", "unreadable", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """A data set or a model that something was made from: its name, its revision, its licence, and its terms in
    addition to the licence. `inherit`: its terms bind everything made from it, directly or indirectly."""

    dataset: str
    revision: str = ""
    licence: str = ""
    terms: str | None = None
    inherit: bool = False
    kind: Literal["data", "model"] = "data"

    @property
    def says(self) -> str:
        """The licence and the terms in one line; empty if neither is known."""
        bound = "binds what is made from it" if self.inherit else ""
        return "; ".join(part for part in (self.licence, self.terms, bound) if part)

    @property
    def passed_on(self) -> "Provenance":
        """The part of it that derived records keep: always the licence, the terms only if they bind."""
        return self if self.inherit or self.terms is None else replace(self, terms=None)


def joined(sources: Iterable[Provenance]) -> tuple[Provenance, ...]:
    """Each source once, in order. A source without terms is left out if the same source with terms is present."""
    found = list(dict.fromkeys(sources))
    full = {replace(each, terms=None, inherit=False) for each in found if each.inherit or each.terms is not None}
    return tuple(each for each in found if each not in full)


TOOLS = "tools"
CALLS = ("tool_calls", "function_call")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `train=False` keeps an assistant turn out of the loss.

    `extra` contains values that chat templates read and togi does not, such as `tool_calls` and `reasoning_content`, as
    JSON values. The available tools are under "tools" in the `extra` of a conversation's first message.
    """

    role: str
    content: str
    train: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def silent(self) -> bool:
        """Whether the turn has neither text nor a tool call."""
        return not (self.content.strip() or any(self.extra.get(key) for key in CALLS))


def led_by_system(text: str, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation with a system turn put first; the tools move to it, since they belong to the first message."""
    first, *rest = messages
    if TOOLS not in first.extra:
        return (Message("system", text), *messages)
    own = {key: value for key, value in first.extra.items() if key != TOOLS}
    return (Message("system", text, extra={TOOLS: first.extra[TOOLS]}), replace(first, extra=own), *rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The fields that all records share."""

    id: str
    parents: tuple[str, ...] = ()
    source: Provenance | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    inherited: tuple[Provenance, ...] = ()

    @property
    def sources(self) -> tuple[Provenance, ...]:
        """Its own source, if there is one, and the inherited ones."""
        return self.inherited if self.source is None else (self.source, *self.inherited)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt(Record):
    """A conversation without the assistant's answer. `answer` is a reference answer, if there is one."""

    messages: tuple[Message, ...]
    answer: str | None = None

    @property
    def text(self) -> str:
        """The last user message, that is the question."""
        return next(m.content for m in reversed(self.messages) if m.role == "user")


def with_system(prompt: Prompt, text: str) -> Prompt:
    """The prompt with a system turn put first, unless it has one."""
    if prompt.messages[0].role == "system":
        return prompt
    return replace(prompt, messages=led_by_system(text, prompt.messages))


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A model's answer: the sampled ids and how they ended.

    `text` includes the terminator. `logprobs` are in nats, one per token, with only the temperature applied, over the
    whole vocabulary; `sampled_logprobs` have all sampling settings applied. `top_logprobs` are, per token, the
    `SamplingParams.logprobs` likeliest ids with their `logprobs`, best first; they are not stored in files. `refused`:
    the request failed because the server will not answer this prompt; it is not stored either.
    """

    text: str
    stop: Stop
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    sampled_logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(Record):
    """A prompt with one completion and its scores by component name (None: not scored by that component).

    `model` names the model that answered, and `index` counts the answers to one prompt; None if unknown.
    """

    prompt: Prompt
    completion: Completion
    scores: Mapping[str, float | None] = field(default_factory=dict)
    model: str | None = None
    index: int | None = None

    @property
    def text(self) -> str:
        """The answer."""
        return self.completion.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(Record):
    """A preference: after `prompt`, `chosen` is better than `rejected`, by `margin` if it is known."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    margin: float | None = None

    @property
    def text(self) -> str:
        """The last message of the chosen side."""
        return self.chosen[-1].content


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat(Record):
    """A whole conversation."""

    messages: tuple[Message, ...]

    @property
    def text(self) -> str:
        """The last message."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True, kw_only=True)
class Document(Record):
    """Plain text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(Record):
    """A judge's verdict on answers to one prompt, in one order.

    `prompt` and `answers` are ids; the answers are in the order in which the judge read them. `order` is the index of
    that order, `attempt` the number of earlier requests with it. `outcome` is the result: a winner, a tie, a grade,
    nothing (`unreadable`), or a failed request. `winner` is the id of the better answer, `score` a grade, `probability`
    that the first answer is better, if log-probabilities were read. `text` is the judge's output.
    """

    prompt: str
    answers: tuple[str, ...]
    judge: str
    text: str
    order: int = 0
    winner: str | None = None
    score: float | None = None
    probability: float | None = None
    outcome: Outcome = "winner"
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure(Record):
    """One number of a table: a metric of a subject, such as a model, with its interval.

    With `against` it is the paired difference from that subject. `count` is the number of prompts that it is computed
    from. `higher_is_better` is None if neither direction is better. `value` is None if there is no number, as for a
    failed benchmark.
    """

    benchmark: str
    metric: str
    subject: str
    against: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    count: int | None = None
    higher_is_better: bool | None = None
    note: str = ""

    @property
    def text(self) -> str:
        """The figure as one line."""
        of = f"{self.subject} - {self.against}" if self.against else self.subject
        number = "-" if self.value is None else f"{self.value:.4g}"
        interval = "" if self.low is None or self.high is None else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.metric}, {of}: {number}{interval}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Match(Record):
    """A record that was removed because it is similar to another one.

    `record` and `other` are their ids; `where` refers to the set of the other one. `how` is the kind of similarity
    (text, ngrams, embedding), `similarity` its value. `text` is the record's, or the part that both share.
    """

    record: str
    other: str
    where: str
    how: str
    similarity: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """A dropped record, with its stage and the reason, a short constant by which drops are counted."""

    id: str
    stage: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to sample. `top_k=0`, `top_p=1`, `min_p=0` and `repetition_penalty=1` switch their filter off;
    `temperature=0` is greedy. `stop` are strings that end an answer, in addition to the terminator. `logprobs` is how
    many of the likeliest tokens are reported at each position."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 128
    n: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All samples of one prompt at one step."""

    prompt: Prompt
    samples: tuple[Sample, ...]


KINDS: dict[str, type[Record]] = {
    "prompts": Prompt,
    "samples": Sample,
    "pairs": Pair,
    "chats": Chat,
    "documents": Document,
    "verdicts": Verdict,
    "tables": Figure,
    "matches": Match,
}
"""Every kind of records that a stage can output. core/codec.py defines how each is stored."""
