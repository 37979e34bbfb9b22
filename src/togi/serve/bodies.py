"""The bodies of requests. A parameter that this server does not support is refused by name, never ignored: a client
that asks for JSON and gets prose might not notice.

Names and meanings are OpenAI's; `top_k`, `min_p`, `repetition_penalty`, `stop_token_ids`, `ignore_eos` and
`return_token_ids` are vLLM's.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from togi.core.errors import InputError
from togi.core.records import Message, SamplingParams
from togi.core.sampling import Drawing
from togi.data.values import HALF

MAX_TOKENS = 1024
"""The default for `max_tokens`; less if the context has less room."""

SEEDS = 2**64
MOST = 2**31
STOPS = 64
"""The most stop strings in a request."""

TOP = 100
"""The most top tokens reported at each position."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "chat_template_kwargs": ({},),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "skip_special_tokens": (True, False),
    "store": (False,),
    "suffix": ("",),
    "best_of": (1,),
}
"""Parameters of other servers, with the values that have no effect here; each may also be null."""

UNREAD = ("user", "metadata", "safety_identifier", "prompt_cache_key")
"""Parameters that describe the client and change no answer."""


def _whole(value: Any) -> Any:
    """Refuses half of a surrogate pair, which JSON allows but no tokenizer can read."""
    if isinstance(value, str) and HALF.search(value):
        raise ValueError("half of a surrogate pair is not valid Unicode; send whole characters")
    return value


Text = Annotated[str, BeforeValidator(_whole)]


class Body(BaseModel):
    """Base of all requests: unknown parameters are refused, numbers and texts are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Text

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, value: Any) -> Any:
        """Drops unknown parameters that have no effect; the others are then refused."""
        if not isinstance(value, dict):
            return value
        known = cls.model_fields
        return {key: item for key, item in value.items() if key in known or not _is_neutral(key, item)}


def _is_neutral(name: str, value: Any) -> bool:
    return value is None or name in UNREAD or any(value == each for each in NEUTRAL.get(name, ()))


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False


class Sampled(Body):
    """The common parameters of chat and completions. Without `seed` the server chooses one, so repeating a question
    gives different answers. Sample i of a request has the random stream `seed + i`."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = Field(default=None, le=MOST)
    n: int | None = Field(default=None, ge=1, le=1024)
    seed: int | None = None
    stop: Text | list[Text] | None = None
    stop_token_ids: list[int] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None

    @field_validator("top_k")
    @classmethod
    def _off(cls, value: int | None) -> int | None:
        return 0 if value == -1 else value  # vLLM writes "off" as -1

    def params(self, room: int, logprobs: int, default: Drawing | None = None) -> SamplingParams:
        """The sampling parameters; `room` is the number of tokens that the context leaves for an answer. `default` is
        for what the request leaves out; it may allow longer answers than MAX_TOKENS, not shorter ones."""
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "n": self.n,
        }
        known = {} if default is None else default.model_dump(include=set(given))
        usual = MAX_TOKENS if default is None else max(MAX_TOKENS, default.max_tokens)
        longest = self.longest
        return SamplingParams(
            **known | {name: value for name, value in given.items() if value is not None},
            max_tokens=max(min(usual, room), 1) if longest is None else longest,
            stop=self.stops,
            logprobs=logprobs,
        )

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings. Raises InputError for too many, since the engine checks all of them at each token."""
        found = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(found) > STOPS:
            raise InputError(f"stop: {len(found)} strings; at most {STOPS} are allowed")
        return found

    @property
    def longest(self) -> int | None:
        """The most tokens of an answer, if the request sets it."""
        return self.max_tokens

    def seeds(self, own: int, count: int) -> tuple[int, ...]:
        """The random streams of `count` samples; `own` is the server's seed for a request without one."""
        first = own if self.seed is None else self.seed
        return tuple((first + index) % SEEDS for index in range(count))


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]
    text: Text


class Turn(BaseModel):
    """A message; its role may be any that the model's template accepts."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Text
    content: Text | list[TextPart]

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, value: Any) -> Any:
        return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value

    @property
    def message(self) -> Message:
        """The turn as a record."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(self.role, text)


class ChatBody(Sampled):
    """POST /v1/chat/completions"""

    messages: list[Turn] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, le=MOST)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=TOP)

    @property
    def longest(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionBody(Sampled):
    """POST /v1/completions: one or several texts, or their token ids. An answer also ends at the model's end-of-text
    token, unless `ignore_eos`. With `echo` the answer begins with the prompt, including the log-probabilities of its
    tokens, and `max_tokens` may be 0."""

    prompt: Text | list[int] | list[Text] | list[list[int]]
    logprobs: int | None = Field(default=None, ge=0, le=TOP)
    ignore_eos: bool | None = None
    echo: bool | None = None

    @property
    def writes(self) -> bool:
        """Whether to generate tokens, rather than only read the prompt."""
        return not (self.echo and self.max_tokens == 0)


class TokenizeBody(Body):
    """POST /tokenize: a plain text, or a conversation as the prompt for its next answer."""

    prompt: Text | None = None
    messages: list[Turn] | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _one(self) -> "TokenizeBody":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class WeightsBody(BaseModel):
    """POST /update_weights_from_disk, as in SGLang: a folder with a model of the same shape, or with an adapter for it.
    Answers of these weights include `weight_version`; in a stream, every chunk that the engine has computed does.
    `model` selects one of several served models."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model_path: Text = Field(min_length=1)
    weight_version: Text | None = None
    model: Text | None = None
    flush_cache: Literal[True] = True
    abort_all_requests: Literal[False] = False


class ScoredItem(BaseModel):
    """An item to score: a conversation that ends with the answer, its rendered text, or the token ids of that text."""

    model_config = ConfigDict(extra="forbid", strict=True)
    messages: list[Turn] | None = None
    text: Text | None = None
    ids: list[int] | None = None

    @model_validator(mode="after")
    def _one(self) -> "ScoredItem":
        if [self.messages, self.text, self.ids].count(None) != 2:
            raise ValueError("give one of messages, text and ids")
        if self.messages is not None and (len(self.messages) < 2 or self.messages[-1].role != "assistant"):
            raise ValueError("messages must be a question and, last, the assistant's answer to score")
        return self


class ScoreBody(Body):
    """POST /v1/scores"""

    items: list[ScoredItem] = Field(min_length=1)

    @model_validator(mode="after")
    def _alike(self) -> "ScoreBody":
        if len({item.messages is None for item in self.items}) > 1:
            raise ValueError("items must be all conversations, or all texts and ids")
        return self


class EmbedBody(Body):
    """POST /v1/embeddings: one text or several."""

    input: Text | list[Text] = Field(min_length=1)
    encoding_format: Literal["float", "base64"] | None = None


class ClassifyBody(Body):
    """POST /classify, as in SGLang: one or several rendered texts, or their token ids."""

    text: Text | list[Text] | None = None
    input_ids: list[int] | list[list[int]] | None = None

    @model_validator(mode="after")
    def _one(self) -> "ClassifyBody":
        if (self.text is None) == (self.input_ids is None):
            raise ValueError("give either text or input_ids")
        return self
