"""The keys of a `models:` entry that say how a model on a server is reached, and how a server for it is started."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from togi.client import endpoint
from togi.core.hashing import file_hash, unreadable
from togi.core.seeds import digest
from togi.core.settings import Located, RecipePath, Settings, absolute, runtime_setting

STORED_JUDGE = "replay"
"""The name under which the judge whose verdicts are stored is served."""


class Budget(Settings):
    """What may be spent on one model in one run, across kills."""

    tokens: int | None = runtime_setting(None, "tokens read and written", ge=1)
    money: float | None = runtime_setting(None, "in the currency of `price`", gt=0)


class Price(Settings):
    """What a million tokens cost."""

    input: float = runtime_setting(0.0, "of prompts", ge=0)
    output: float = runtime_setting(0.0, "of answers", ge=0)


class Serve(Settings):
    """A server that a run starts before the first stage that needs the model, watches, and stops after the last."""

    engine: Literal["vllm", "sglang", "togi", "replay"] = runtime_setting(
        "vllm", "what serves the model; replay says again what is stored, and needs no model"
    )
    python: str = runtime_setting("", "the Python of the environment that holds the engine; togi's own when empty")
    args: tuple[str, ...] = runtime_setting((), "further arguments of the engine")
    ready_seconds: float = runtime_setting(300.0, "how long it may take until it answers", gt=0)
    verdicts: tuple[RecipePath, ...] = Field(default=(), description="replay: files of what a judge said")
    answers: tuple[RecipePath, ...] = Field(
        default=(), description="replay: files of what models answered; `model` names the one that this entry is"
    )

    @property
    def stored(self) -> tuple[RecipePath, ...]:
        """The files whose words are said again."""
        return self.verdicts + self.answers

    @model_validator(mode="after")
    def _says_what_it_has(self) -> Self:
        if self.engine != "replay" and self.stored:
            raise ValueError(f"verdicts and answers are read with engine: replay, found engine: {self.engine}")
        if self.engine == "replay" and not self.stored:
            raise ValueError("engine replay needs `verdicts`, files of what a judge said, or `answers` of models")
        if self.engine == "replay" and (self.python or self.args):
            raise ValueError("engine replay is togi's own, and takes no `python` and no `args`; remove them")
        return self

    def content(self) -> str:
        """What names the words that are said again: the hash of their files. Raises InputError for one that cannot be
        read."""
        found = []
        for path in self.stored:
            try:
                found.append(file_hash(Path(path)))
            except OSError as error:
                raise unreadable(Path(path), error) from None
        return digest([len(self.verdicts), *found])[:12]


class EndpointKeys(Settings):
    """A model behind a URL. Its answers are named by model and revision; everything else says where and how fast."""

    url: str | tuple[str, ...] | None = runtime_setting(None, "base URL of the server, or of several with one model")
    model: str | None = Field(
        default=None, min_length=1, description="url: the model's name on the server; replay: in the files"
    )
    tokenizer: str | None = Field(
        default=None, min_length=1, description="url: a folder or hub id whose tokenizer is the model's"
    )
    key_env: str | None = runtime_setting(
        None, "url: the environment variable that holds the key", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"
    )
    protocol: Literal["auto", "openai", "vllm", "sglang", "togi"] = runtime_setting(
        "auto", "url: what the server speaks; auto asks it"
    )
    concurrency: int = runtime_setting(64, "url: requests under way at once", ge=1)
    requests_per_minute: int | None = runtime_setting(None, "url: at most so many", ge=1)
    tokens_per_minute: int | None = runtime_setting(None, "url: at most so many", ge=1)
    deadline: float = runtime_setting(600.0, "url: seconds in which an answer is there, or the request is lost", gt=0)
    budget: Budget = runtime_setting(Budget(), "url: what may be spent on it in one run")
    price: Price = runtime_setting(Price(), "url: what a million tokens cost")
    batch: bool = runtime_setting(
        False, "url: ask through the provider's batch endpoint, which answers within a day at a lower price"
    )
    serve: Serve | None = runtime_setting(None, "a server that the run starts for this model")

    @field_validator("tokenizer", mode="before")
    @classmethod
    def _folder_beside_the_recipe(cls, value: Any) -> Any:
        """A folder by its absolute path: like every path, it starts at the file that names it. Else a hub id."""
        if not isinstance(value, Located) or not value:
            return value
        folder = absolute(value, value.folder)
        return str(folder) if folder.is_dir() else value

    @model_validator(mode="after")
    def _money_is_counted(self) -> Self:
        if self.budget.money is not None and not (self.price.input or self.price.output):
            raise ValueError("budget.money is counted by `price`, which is not said; add price: {input: A, output: B}")
        return self


URL_KEYS = tuple(name for name in EndpointKeys.model_fields if name not in ("url", "serve"))
"""Keys that are read with `url` alone."""

SERVED_KEYS = ("concurrency", "deadline")
"""Those of them that are read with `serve` too."""


def replayed(keys: EndpointKeys) -> bool:
    """Whether an entry is a model whose words are stored."""
    return keys.serve is not None and keys.serve.engine == "replay"


def read_here(keys: EndpointKeys, name: str) -> bool:
    """Whether a key is read without `url`."""
    return keys.serve is not None and (name in SERVED_KEYS or (name == "model" and replayed(keys)))


SPEAKS: dict[str, Literal["vllm", "sglang", "togi"]] = {"vllm": "vllm", "sglang": "sglang", "togi": "togi"}
"""What a server speaks that a run starts; replay speaks as OpenAI does."""


def endpoint_of(name: str, keys: EndpointKeys, model: str, revision: str) -> endpoint.Endpoint:
    """The endpoint of the entry `name`, whose answers are named by `model` and `revision`. One that a run serves itself
    has no URL yet."""
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
