"""Access to models on servers, external ones or services of the run, for stages."""

import importlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from togi.client.answers import Failure, Whole
from togi.client.client import Client
from togi.client.endpoint import NO_BOUND, Endpoint
from togi.client.exchange import Counter
from togi.client.live import LiveClient
from togi.client.requests import AnyRequest
from togi.client.store import AnswerStore
from togi.client.transfer import Wire
from togi.core.errors import InputError, RecipeError
from togi.core.settings import EmbedderRef, ModelRef, Ref, ScorerRef
from togi.stages.context import Context
from togi.stages.prompt_tokens import PromptTokens
from togi.stages.remote import (
    END,
    RemoteChooser,
    RemoteCompleter,
    RemoteEmbedder,
    RemoteGenerator,
    RemoteScorer,
    rendering,
)
from togi.stages.spent import ANSWERS, spent_words
from togi.text.template import TEMPLATES, Template

TICK = 1.0
"""Seconds between two progress reports on the answers to a stage's requests."""


def generator(context: Context, ref: ModelRef, *, batch_rows: int, repeat: int = 0) -> RemoteGenerator:
    """See `togi.stages.endpoints`. Ignores `batch_rows`: the endpoint's `concurrency` limits the requests."""
    template = TEMPLATES.get(context.model(ref).template or "")
    if template is None:
        return RemoteGenerator(asker(context, ref), END, repeat=repeat)
    return RemoteGenerator(asker(context, ref), template.terminator, template.turn_starts, repeat)


def completer(context: Context, ref: ModelRef, *, batch_rows: int) -> RemoteCompleter:
    """See `togi.stages.endpoints`."""
    return RemoteCompleter(asker(context, ref))


def chooser(context: Context, ref: ModelRef) -> RemoteChooser:
    """See `togi.stages.endpoints`."""
    return RemoteChooser(asker(context, ref))


def tokenizer(context: Context, ref: ModelRef) -> Any:
    """See `togi.stages.endpoints`."""
    return _reader(context, ref)[0]


def reader(context: Context, ref: ModelRef) -> tuple[Any, Template]:
    """See `togi.stages.endpoints`."""
    return _reader(context, ref)


def scorer(context: Context, ref: ScorerRef) -> RemoteScorer:
    """See `togi.stages.endpoints`. togi's own server renders conversations; for other servers togi renders them with
    the tokenizer and template of the recipe, if it names them. Only the recipe decides this, so that stored scores need
    no server."""
    asked = asker(context, ref)
    protocol, source = asked.client.endpoint.protocol, context.model(ref)
    if protocol == "togi" or (protocol == "auto" and not source.tokenizer):
        return RemoteScorer(asked)
    words, template = _reader(context, ref)
    return RemoteScorer(asked, rendering(template, words))


def embedder(context: Context, ref: EmbedderRef) -> RemoteEmbedder:
    """See `togi.stages.endpoints`."""
    return RemoteEmbedder(asker(context, ref), context.model(ref).prefix)


class StageAsker:
    """A client that reports its progress, and stops when the stage must stop."""

    def __init__(self, context: Context, client: Client) -> None:
        self.name = client.endpoint.name
        self.client = client
        self._context = context

    def ask(self, requests: Iterable[AnyRequest]) -> Iterator[Whole | Failure]:
        """Yields answers in the order of the requests."""
        own = list(requests)
        told = time.monotonic()
        for done, found in enumerate(self.client.ask(own), 1):
            if time.monotonic() - told > TICK:
                told = time.monotonic()
                self._context.progress(done, len(own), "answers")
            yield found


def asker(context: Context, ref: Ref) -> StageAsker:
    """The client for the server of a model; one for each entry of `models:` while the stage runs."""
    endpoint = context.endpoint(ref)
    assert endpoint is not None
    if (found := context.clients.get(endpoint.name)) is None:
        found = context.clients[endpoint.name] = StageAsker(context, _client(context, endpoint, ref))
        context.spent = lambda: _words(context)
    return found


def _client(context: Context, endpoint: Endpoint, ref: Ref) -> Client:
    store = context.leaving.enter_context(closing(AnswerStore(Path(context.cache) / ANSWERS)))
    counter, tell, check = _counter(context, endpoint, ref), context.alarm, context.check_stop
    client = Client(endpoint, store, run=context.run, counter=counter, tell=tell, check=check)
    return context.leaving.enter_context(closing(client))


def _counter(context: Context, endpoint: Endpoint, ref: Ref) -> Callable[[], Counter] | None:
    """What makes the counter of prompt tokens, if the recipe names a tokenizer and sets a limit that needs it."""
    source = context.model(ref)
    limited = endpoint.budget != NO_BOUND or endpoint.tokens_per_minute is not None
    return partial(_prompt_tokens, context, ref) if limited and source.tokenizer else None


def _prompt_tokens(context: Context, ref: Ref) -> PromptTokens:
    work = importlib.import_module("togi.stages.readers_work")
    try:
        return PromptTokens(*work.read_counter(context.model(ref), context.cache))
    except (InputError, RecipeError) as error:
        raise type(error)(f"models.{ref.name}.tokenizer, which counts what requests may use: {error}") from error


@dataclass(frozen=True, slots=True)
class _Live:
    client: LiveClient


def live_client(context: Context, ref: Ref, wire: Wire | None = None) -> LiveClient:
    """The client for an engine, a server whose weights the stage replaces; its answers are not stored. `wire` carries
    weights that are sent without a folder. Raises RecipeError for a provider's batch endpoint."""
    endpoint = context.endpoint(ref)
    assert endpoint is not None
    if endpoint.batch:
        raise RecipeError(
            f"stage {context.name}: models.{ref.name}.batch: a policy cannot wait for a batch endpoint; remove it"
        )
    store = context.leaving.enter_context(closing(AnswerStore(Path(context.cache) / ANSWERS)))
    client = LiveClient(endpoint, store, run=context.run, check=context.check_stop, wire=wire)
    context.clients[f"{endpoint.name} (engine)"] = _Live(context.leaving.enter_context(closing(client)))
    context.spent = lambda: _words(context)
    return client


def _words(context: Context) -> str:
    """The run's spending on the servers of the stage so far."""
    clients: list[Client | LiveClient] = [found.client for found in context.clients.values()]
    return ", ".join(filter(None, (spent_words(each.endpoint, each.spending()) for each in clients)))


def _reader(context: Context, ref: Ref) -> tuple[Any, Any]:
    """The tokenizer and the template of a server's model, from the folder or hub id that the recipe names, or from the
    model itself if the run serves it. Raises RecipeError if there is neither."""
    source = context.model(ref)
    if source.kind == "endpoint" and not source.tokenizer:
        raise RecipeError(
            f"stage {context.name}: models.{ref.name}.tokenizer: this needs the model's tokens, which a server does "
            "not give; name a folder or a hub id with its tokenizer, and its template if the tokenizer has none"
        )
    work = importlib.import_module("togi.stages.readers_work")
    return work.read_words(source, context.cache, "scorer" if isinstance(ref, ScorerRef) else "causal")
