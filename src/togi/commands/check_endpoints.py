"""The requests of `togi check` to servers: are they up, do they accept the key, have the model and support the run?

Each is one tiny request whose answer is not stored, since a stored answer would prove nothing the next time.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from togi.client.answers import Failure
from togi.client.client import Client
from togi.client.endpoint import Endpoint
from togi.client.requests import AnyRequest, ChatRequest, EmbedRequest, ScoreRequest
from togi.client.store import AnswerStore
from togi.core.errors import InputError
from togi.core.records import Message, SamplingParams
from togi.core.settings import Ref
from togi.stages.base import StageSettings
from togi.stages.cost import Cost, Known
from togi.stages.table import STAGES

HELLO = Message("user", "Say yes.")
REQUESTS: Mapping[str, AnyRequest] = {
    "causal": ChatRequest(messages=(HELLO,), params=SamplingParams(max_tokens=4, n=2), seed=1),
    "reward": ScoreRequest(items=((HELLO, Message("assistant", "Yes.")),)),
    "embedder": EmbedRequest(texts=("yes",)),
}
TEXTS: AnyRequest = ScoreRequest(items=("Say yes. Yes.",))
"""The request to a reward model whose server does not render conversations."""


@dataclass(slots=True)
class EndpointCheck:
    """The findings about a server: `facts` of the client, `alarms` as sentences; `verified` is False if it was not
    asked."""

    url: str
    model: str
    verified: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)


def check_endpoint(endpoint: Endpoint, kind: str, rendered: bool) -> EndpointCheck:
    """Sends a server a request for a model of `kind`; `rendered`: it scores texts, not conversations.

    Raises InputError and StageError, with advice, if a run could not use it.
    """
    found = EndpointCheck(endpoint.urls[0], endpoint.model)
    with (
        tempfile.TemporaryDirectory(prefix="togi-check-") as folder,
        closing(AnswerStore(Path(folder) / "answers.sqlite")) as store,
        closing(Client(endpoint, store, run="check", tell=lambda name, text: found.alarms.append(text))) as client,
    ):
        request = TEXTS if kind == "reward" and rendered else REQUESTS[kind]
        (answer,) = client.ask([request])
        if isinstance(answer, Failure) and answer.reason == "filtered":  # it is up, and has the model
            found.alarms.append(f"model {endpoint.name}: {answer.message} when it was asked {HELLO.content!r}")
        elif isinstance(answer, Failure):
            raise InputError(f"model {endpoint.name}: {endpoint.urls[0]}: {answer.message}")
        found.verified, found.facts = True, client.facts()
    return found


class _Nothing:
    """The inputs of an estimate before anything is read: nothing is known."""

    takers: Mapping[str, Sequence[str]] = MappingProxyType({})

    def __getitem__(self, ref: Ref, /) -> Known:
        return Known()

    def lengths(self, refs: Sequence[Ref], model: Known, cost: Cost) -> tuple[float, int] | None:
        return None


def small_budgets(endpoint: Endpoint, stages: Sequence[tuple[str, StageSettings]]) -> list[str]:
    """A problem for each stage of which one answer can exceed the budget of its endpoint."""
    budget = endpoint.budget
    found = []
    for name, settings in stages:
        written = _longest_answer(endpoint.name, settings)
        money = written * endpoint.price.output / 1_000_000
        over = (budget.tokens is not None and written > budget.tokens) or (
            budget.money is not None and money > budget.money
        )
        if over:
            found.append(
                f"models.{endpoint.name}.budget: one answer of stage {name} may have {written:,} tokens, which exceeds "
                "the budget; raise it, or lower max_tokens of the stage"
            )
    return found


def _longest_answer(model: str, settings: StageSettings) -> int:
    """The largest number of tokens in an answer that a stage requests from a model, by the stage's estimate."""
    estimate = STAGES[settings.type].estimate
    cost = Cost() if estimate is None else estimate(settings, _Nothing())
    if (asked := cost.asked.get(model)) is not None:
        return asked.written // max(asked.calls, 1)
    return 0 if cost.asked else cost.answer or 0


def unverified(name: str, url: str) -> str:
    """The note about a server that was not asked."""
    return (
        f"models.{name}: {url} was not asked (--offline): whether it is up, accepts the key, has the model and "
        "supports what the stages need is not verified"
    )
