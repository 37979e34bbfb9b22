"""The description of a model on a server: address, name, rate limits, budget and price."""

import os
import re
from dataclasses import dataclass
from typing import Literal

from togi.core.errors import RecipeError

Speaks = Literal["auto", "openai", "vllm", "sglang", "togi"]
MILLION = 1_000_000
PLAIN_NAME = re.compile(r"[A-Z][A-Z0-9]{0,15}(_[A-Z0-9]{1,15})*|[a-z]{1,15}(_[a-z]{1,15})*")
"""Names of environment variables as people choose them; API keys mix cases and digits, or are one long word."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token counts: prompt tokens (`input`) and generated tokens (`output`)."""

    input: int = 0
    output: int = 0

    @property
    def total(self) -> int:
        """Input and output tokens together."""
        return self.input + self.output

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.input + other.input, self.output + other.output)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """The price of a million prompt tokens (`input`) and of a million generated tokens (`output`)."""

    input: float = 0.0
    output: float = 0.0

    def of(self, tokens: Tokens) -> float:
        """The cost of `tokens`."""
        return (tokens.input * self.input + tokens.output * self.output) / MILLION


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most that one run may spend, even if it is killed and restarted: input and output tokens together, and
    money as computed by `Price`. None means no limit."""

    tokens: int | None = None
    money: float | None = None


NO_TOKENS = Tokens()
FREE = Price()
NO_BOUND = Budget()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A model on a server. Stored answers are keyed by `model` and `revision`; the other fields affect no key.

    `name` is the name of the `models:` entry; messages and the budget's account use it. Several `urls` are replicas of
    one model. `key_env` names the environment variable that holds the key; it is read when the first request is sent
    and stored nowhere. `deadline` is the time in seconds for one request with all its retries. With `batch`, requests
    go through the provider's batch endpoint, which answers within a day at a lower price.
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
        """The URLs without trailing slashes."""
        return tuple(url.rstrip("/") for url in self.urls)


def root_of(base: str) -> str:
    """The server root of a base URL such as http://host:8000/v1; paths that are not OpenAI's are under the root."""
    return base.removesuffix("/v1")


def shown_name(variable: str) -> str:
    """The name of an environment variable for a message; hidden if it may be the key itself, pasted in its place."""
    return variable if PLAIN_NAME.fullmatch(variable) else "that it names (not shown, because it may be a key)"


def has_key(url: str) -> bool:
    """Whether a URL has a part before an @, which may contain a key."""
    return shown_url(url) != url


def shown_url(url: str) -> str:
    """A URL without the part before an @, which may contain a key."""
    return re.sub(r"//[^/@]*@", "//...@", url)


def read_key(endpoint: Endpoint) -> str | None:
    """The key of an endpoint, or None if it needs none. Raises RecipeError if the environment lacks it."""
    if endpoint.key_env is None:
        return None
    key = os.environ.get(endpoint.key_env, "").strip()
    if not key:
        raise RecipeError(
            f"model {endpoint.name}: key_env: the environment variable {shown_name(endpoint.key_env)} is not set; "
            f"set it to the key of {shown_url(endpoint.urls[0])}"
        )
    if not (key.isascii() and key.isprintable()):
        raise RecipeError(
            f"model {endpoint.name}: key_env: the key in {endpoint.key_env} contains characters that are not allowed "
            "in an HTTP header; set it again, on one line"
        )
    return key
