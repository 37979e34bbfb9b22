"""The keys of a `models:` entry for a model on a server: how to reach the server, and how to start one."""

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from togi.client import endpoint
from togi.core.hashing import file_hash, unreadable
from togi.core.seeds import digest
from togi.core.settings import Located, RecipePath, Settings, absolute, runtime_setting
from togi.text.template import TEMPLATES

VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
STORED_JUDGE = "replay"
"""The name under which a judge with stored verdicts is served."""


class Budget(Settings):
    """Spending limits for one model in one run. Spending before a kill counts too."""

    tokens: int | None = runtime_setting(None, "tokens read and written", ge=1)
    money: float | None = runtime_setting(None, "in the currency of `price`", gt=0)


class Price(Settings):
    """The price of a million tokens."""

    input: float = runtime_setting(0.0, "of prompts", ge=0)
    output: float = runtime_setting(0.0, "of answers", ge=0)


class Serve(Settings):
    """A server that a run starts before the first stage that needs the model, watches, and stops after the last."""

    engine: Literal["vllm", "sglang", "togi", "replay"] = runtime_setting(
        "vllm", "what serves the model; replay returns stored answers and needs no model"
    )
    python: str = runtime_setting("", "the Python of the environment with the engine; empty: togi's own")
    args: tuple[str, ...] = runtime_setting((), "additional arguments of the engine")
    ready_seconds: float = runtime_setting(300.0, "seconds that it may take to start answering", gt=0)
    verdicts: tuple[RecipePath, ...] = Field(default=(), description="replay: files with a judge's verdicts")
    answers: tuple[RecipePath, ...] = Field(
        default=(), description="replay: files with answers of models; `model` selects the model of this entry"
    )

    @property
    def stored(self) -> tuple[RecipePath, ...]:
        """The files whose answers are replayed."""
        return self.verdicts + self.answers

    @model_validator(mode="after")
    def _says_what_it_has(self) -> Self:
        if self.engine != "replay" and self.stored:
            raise ValueError(f"verdicts and answers are read only with engine: replay, found engine: {self.engine}")
        if self.engine == "replay" and not self.stored:
            raise ValueError("engine replay needs `verdicts`, files with a judge's verdicts, or `answers` of models")
        if self.engine == "replay" and (self.python or self.args):
            raise ValueError("engine replay is part of togi and takes no `python` and no `args`; remove them")
        if self.engine == "replay" and self.ready_seconds != type(self).model_fields["ready_seconds"].default:
            raise ValueError("ready_seconds is not read with engine: replay, which starts at once; remove it")
        return self

    def content(self) -> str:
        """The identity of the replayed answers: a hash of their files. Raises InputError for a file that cannot be
        read."""
        found = []
        for path in self.stored:
            try:
                found.append(file_hash(Path(path)))
            except OSError as error:
                raise unreadable(Path(path), error) from None
        return digest([len(self.verdicts), *found])[:12]


class EndpointKeys(Settings):
    """A model behind a URL. Model and revision identify its answers; the other keys control only where and how fast."""

    url: str | tuple[str, ...] | None = runtime_setting(None, "base URL of the server, or of several with one model")
    model: str | None = Field(
        default=None, min_length=1, description="url: the model's name on the server; replay: its name in the files"
    )
    tokenizer: str | None = Field(
        default=None, min_length=1, description="url: a folder or hub id with the model's tokenizer"
    )
    key_env: str | None = runtime_setting(None, "url: the environment variable with the API key", pattern=VARIABLE)
    protocol: Literal["auto", "openai", "vllm", "sglang", "togi"] = runtime_setting(
        "auto", "url: the server's protocol; auto detects it"
    )
    concurrency: int = runtime_setting(64, "url: maximum requests at the same time", ge=1)
    requests_per_minute: int | None = runtime_setting(None, "url: maximum requests per minute", ge=1)
    tokens_per_minute: int | None = runtime_setting(None, "url: maximum tokens per minute", ge=1)
    deadline: float = runtime_setting(600.0, "url: seconds after which an unanswered request fails", gt=0)
    budget: Budget = runtime_setting(Budget(), "url: spending limits for one run")
    price: Price = runtime_setting(Price(), "url: price of a million tokens")
    batch: bool = runtime_setting(
        False, "url: use the provider's batch endpoint, which answers within a day at a lower price"
    )
    serve: Serve | None = runtime_setting(None, "a server that the run starts for this model")

    @field_validator("url")
    @classmethod
    def _urls(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if any(map(endpoint.has_key, (value,) if isinstance(value, str) else value or ())):
            raise ValueError("must not contain a key; put the key in an environment variable and name it as key_env")
        if value is None or (value and all(value)):  # no text, and no list or item of one, is empty
            return value
        found = repr(value if isinstance(value, str) else list(value))
        raise ValueError(f"should be the base URL of a server (http://127.0.0.1:8000/v1), or several, found {found}")

    @field_validator("key_env", mode="before")
    @classmethod
    def _names_a_variable(cls, value: Any) -> Any:
        if value is not None and not (isinstance(value, str) and re.fullmatch(VARIABLE, value)):
            raise ValueError(
                "should be the name of an environment variable (letters, digits and _, no digit first) that holds the "
                "key; the value found is not shown, because it may be a key"
            )
        return value

    @field_validator("tokenizer", mode="before")
    @classmethod
    def _folder_beside_the_recipe(cls, value: Any) -> Any:
        """Makes the path of a folder absolute, relative to the file that names it. Other values are hub ids."""
        if not isinstance(value, Located) or not value:
            return value
        folder = absolute(value, value.folder)
        return str(folder) if folder.is_dir() else value

    @model_validator(mode="after")
    def _money_is_counted(self) -> Self:
        if self.budget.money is not None and not (self.price.input or self.price.output):
            raise ValueError("budget.money needs `price`, which is not set; add price: {input: A, output: B}")
        return self


URL_KEYS = tuple(name for name in EndpointKeys.model_fields if name not in ("url", "serve"))
"""Keys that are read only with `url`."""

SERVED_KEYS = ("concurrency", "deadline")
"""The URL_KEYS that are read with `serve` too."""


def replayed(keys: EndpointKeys) -> bool:
    """Whether an entry is a model whose stored answers are replayed."""
    return keys.serve is not None and keys.serve.engine == "replay"


def read_here(keys: EndpointKeys, name: str) -> bool:
    """Whether a key is read without `url`."""
    return keys.serve is not None and (name in SERVED_KEYS or (name == "model" and replayed(keys)))


def read_with(spec: BaseModel, name: str, place: str) -> None:
    """Raises ValueError for a setting without effect, because `place`, which it belongs to, is not set."""
    value = getattr(spec, name)
    if getattr(spec, place) is None and value != type(spec).model_fields[name].default:
        found = "" if name == "key_env" else f", found {value!r}"  # it may be a key
        raise ValueError(f"{name} is read only with {place}{found}; remove it")


def refuse_unread(keys: EndpointKeys, kind: str, device: str, tokens: Any, template: Any) -> None:
    """Raises ValueError for a key of a whole entry that a model on a server does not read. `tokens` and `template` are
    None if they are not set; a built-in template says how answers end, also without a tokenizer."""
    where = "url" if keys.url is not None else "engine: replay" if replayed(keys) else ""
    if not where:
        return
    if device:
        raise ValueError(f"device is not read with {where}, because the model does not run here; remove it")
    if tokens is not None:
        raise ValueError(f"tokens are not read with {where}: only a model that runs here can get more; remove them")
    ends = kind == "causal" and isinstance(template, str) and template in TEMPLATES
    if template is None or ends or keys.tokenizer is not None:
        return
    if where == "url":
        raise ValueError(
            f"template: {_short(template)} is read only with `tokenizer`, because the server renders conversations "
            "itself; set `tokenizer` to a folder or hub id, or remove the template"
        )
    names = ", ".join(TEMPLATES)
    raise ValueError(f"template: {_short(template)} is not read with engine: replay; use one of {names}, or remove it")


def _short(template: Any) -> str:
    """A template as the recipe writes it."""
    return template if isinstance(template, str) else f"{{file: {template.file}}}"


SPEAKS: dict[str, Literal["vllm", "sglang", "togi"]] = {"vllm": "vllm", "sglang": "sglang", "togi": "togi"}
"""The protocol of a server that a run starts, by engine; replay uses OpenAI's."""


def endpoint_of(name: str, keys: EndpointKeys, model: str, revision: str) -> endpoint.Endpoint:
    """The endpoint of the entry `name`, whose answers are identified by `model` and `revision`. An endpoint that the
    run itself serves has no URL yet."""
    urls = () if keys.url is None else (keys.url,) if isinstance(keys.url, str) else keys.url
    return endpoint.Endpoint(
        name=name,
        urls=urls,
        model=model,
        revision=revision,
        key_env=keys.key_env,
        protocol=keys.protocol if keys.serve is None else SPEAKS.get(keys.serve.engine, "openai"),
        concurrency=keys.concurrency,
        requests_per_minute=keys.requests_per_minute,
        tokens_per_minute=keys.tokens_per_minute,
        deadline=keys.deadline,
        budget=endpoint.Budget(tokens=keys.budget.tokens, money=keys.budget.money),
        price=endpoint.Price(input=keys.price.input, output=keys.price.output),
        batch=keys.batch,
    )
