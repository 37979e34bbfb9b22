"""A model on a server, as a value: where it is, what it is called, how fast it may be asked and what it may cost."""

import os
from dataclasses import dataclass
from typing import Literal

from togi.core.errors import RecipeError

Speaks = Literal["auto", "openai", "vllm", "sglang", "togi"]
MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens read (`input`) and written (`output`)."""

    input: int = 0
    output: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.input + self.output

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.input + other.input, self.output + other.output)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a million tokens cost, of prompts and of answers."""

    input: float = 0.0
    output: float = 0.0

    def of(self, tokens: Tokens) -> float:
        """What `tokens` cost."""
        return (tokens.input * self.input + tokens.output * self.output) / MILLION


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be spent in one run, across kills: tokens read and written, money by `Price`. None: no bound."""

    tokens: int | None = None
    money: float | None = None


NO_TOKENS = Tokens()
FREE = Price()
NO_BOUND = Budget()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A model on a server. Its answers are named by `model` and `revision`; everything else says where and how fast.

    `name` is what messages call it, and what its budget is kept under: the name of the `models:` entry. Several `urls`
    are replicas of one model. `key_env` names the environment variable that holds the key, which is read when the
    first request is sent and stored nowhere. `deadline` is in seconds, for one request with all its retries. `batch`:
    requests go through the provider's batch endpoint, which answers within a day at a lower price.
    """

    name: str
    urls: tuple[str, ...]
    model: str
    revision: str = ""
    key_env: str | None = None
    protocol: Speaks = "auto"
    concurrency: int = 64
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    deadline: float = 600.0
    budget: Budget = NO_BOUND
    price: Price = FREE
    batch: bool = False

    @property
    def bases(self) -> tuple[str, ...]:
        """The URLs without a slash at the end."""
        return tuple(url.rstrip("/") for url in self.urls)


def root_of(base: str) -> str:
    """The server itself of a base URL such as http://host:8000/v1, under which paths lie that are not OpenAI's."""
    return base.removesuffix("/v1")


def read_key(endpoint: Endpoint) -> str | None:
    """The key of an endpoint, None where it needs none. Raises RecipeError if the environment does not hold it."""
    if endpoint.key_env is None:
        return None
    key = os.environ.get(endpoint.key_env, "").strip()
    if not key:
        raise RecipeError(
            f"model {endpoint.name}: key_env: the environment variable {endpoint.key_env} is not set; set it to the "
            f"key of {endpoint.urls[0]}"
        )
    if not (key.isascii() and key.isprintable()):
        raise RecipeError(
            f"model {endpoint.name}: key_env: the key in {endpoint.key_env} holds characters that no HTTP header can; "
            "set it again, on one line"
        )
    return key
