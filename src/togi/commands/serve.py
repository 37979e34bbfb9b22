"""Serves models over HTTP until a signal arrives."""

import logging
import resource
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import uvicorn
from fastapi import FastAPI

from togi.commands.stored import TRAINING, Stored, read_stored
from togi.core.errors import InputError, RecipeError
from togi.core.ranks import ALONE
from togi.core.sampling import PresetName, Recommended
from togi.core.sources import ModelSource
from togi.core.terminal import say
from togi.model.embed import SentenceEmbedder, embeds
from togi.model.encoder_scorer import EncoderScorer, load_scorer_of
from togi.model.load import load
from togi.rollout.local import Sampler
from togi.rollout.prompt_logprobs import text_logprobs
from togi.rollout.transfer import Receiver
from togi.serve.app import Served
from togi.serve.chat import Speaker, chat_app
from togi.serve.connections import server_config
from togi.serve.embed import embed_app
from togi.serve.limits import Limits
from togi.serve.reward import reward_app
from togi.serve.transfer import add_transfers
from togi.stages.arithmetic import chosen_numerics, model_device, use_threads
from togi.text.safety import check_system, joined

log = logging.getLogger(__name__)

LAST_SECONDS = 5
"""Seconds that requests in flight may take after the server is asked to end."""

SHOWN = 300
"""Characters of a system prompt in a line of the log."""

MOST_FILES = 65536
OWN_FILES = 128
"""Open files that are not connections: the model's, the log, the event loop's."""

UNUSED = "chatml"
"""A template for folders from which only the weights are used, since they need not have one."""

OWN = ("127.0.0.1", "localhost", "::1")
Sources = Mapping[str, ModelSource]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The address and limits of a server; clients must send `key` unless it is empty. `updates`: clients may also load
    weights from a folder of this machine, or send them over a connection that the server opens to them. `dtype` is the
    type of weights and matrix multiplications (auto: that of a run on this machine); embedders keep float32. `threads`
    compute; 0: as many as the library takes. Each language model keeps the keys of earlier requests in `prefix_bytes`,
    and samples by default as `preset` says (None: as its folder recommends, else as in `recommended`). Conversations
    without a system prompt get `system` (TRAINING: that of each model's training), followed by `safety`."""

    host: str
    port: int
    key: str
    limits: Limits
    updates: bool = False
    dtype: str = "float32"
    threads: int = 0
    prefix_bytes: int = 0
    preset: PresetName | Literal["none"] | None = None
    recommended: Mapping[str, Recommended] = field(default_factory=dict)
    system: str = ""
    safety: str = ""


class _Server(uvicorn.Server):
    """Logs when it is ready."""

    ready = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            say(self.ready, err=True)


def serve(sources: Mapping[str, ModelSource], cache: Path, reward: bool, place: Place) -> None:
    """Serves models under their names; several must be language models. Returns after a signal has ended the server.

    Raises RecipeError for an unavailable address, InputError for a model that does not fit, and the engine's error if
    it failed.
    """
    with _bound(place) as listener:
        if place.threads:
            use_threads(place.threads)
        place = replace(place, dtype=chosen_numerics(cache, place.dtype, ALONE).compute_dtype)
        served_by: list[_Server] = []

        def died() -> None:
            for server in served_by:
                server.should_exit = True

        first = next(iter(sources.values()))
        kind = "reward" if reward else "embedder" if len(sources) == 1 and embeds(first, cache) else "causal"
        if kind == "embedder" and (place.preset or place.system or place.safety):
            raise RecipeError(
                "command line: --sampling, --system and --safety-prompt are for language models, not for embedders"
            )
        app = APPS[kind](sources, cache, place, died)
        limits = replace(place.limits, connections=_connections())
        config = server_config(app, limits, log_level="warning", timeout_graceful_shutdown=LAST_SECONDS)
        server = _Server(config)
        server.ready = _ready(place, listener, kind, list(sources))
        served_by.append(server)
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal that ended it again
            server.run(sockets=[listener])
        if kind == "causal":
            app.state.raise_failure()


def _chat(sources: Sources, cache: Path, place: Place, died: Callable[[], None]) -> FastAPI:
    if place.system == TRAINING and not any(read_stored(source).system for source in sources.values()):
        raise RecipeError(
            f"command line: --system {TRAINING}: no system prompt of training is stored with {' or '.join(sources)}; "
            "give its text, or leave the option out"
        )
    (served, speaker), *beside = [_speaking(name, source, cache, place) for name, source in sources.items()]
    app = chat_app(served, speaker, died, beside)
    if place.updates:
        assert isinstance(speaker.engine, Sampler)
        add_transfers(app, Receiver(dict(speaker.engine.net.named_parameters())), speaker.engine.publish)
    return app


def _speaking(name: str, source: ModelSource, cache: Path, place: Place) -> tuple[Served, Speaker]:
    model = load(source, cache, dtype=getattr(torch, place.dtype), device=model_device(source))
    engine = Sampler(model.net, model.tokenizer, model.template.terminator)
    engine.kept.size = place.prefix_bytes
    engine.pack()
    vocabulary = model.net.get_input_embeddings().num_embeddings
    stored = read_stored(source, place.recommended.get(name))
    system, added = _systems(name, stored, place)
    if added:
        check_system(model.template, added, "--system" if place.system else "--safety-prompt")
    served = Served(
        name=name, kind="causal", limit=engine.limit, vocabulary=vocabulary, key=place.key, limits=place.limits,
        sampling=_sampling(name, stored, place), system=system, default_system=added,
    )  # fmt: skip
    speaker = Speaker(
        engine=engine,
        tokenizer=model.tokenizer,
        template=model.template,
        end_of_text=model.tokenizer.eos_token_id,
        read=lambda ids, top: text_logprobs(model.net, ids, top),
        weights=partial(_weights, model.net, cache) if place.updates else None,
        reused=lambda: engine.kept.reused,
    )
    return served, speaker


def _systems(name: str, stored: Stored, place: Place) -> tuple[str, str]:
    """The system prompt that clients should send, and that of conversations without one; both are logged."""
    trained = stored.system or ""
    own = trained if place.system in ("", TRAINING) else place.system
    added = joined(own if place.system else "", place.safety)
    if trained and trained not in added:
        log.info(
            "%s: trained with the system prompt %s; a conversation without a system turn is answered without it "
            "(--system %s adds it)", name, _short(trained), TRAINING,
        )  # fmt: skip
    if added:
        log.info("%s: the system prompt of conversations without one: %s", name, _short(added))
    return joined(own, place.safety), added


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")


def _sampling(name: str, stored: Stored, place: Place) -> Recommended | None:
    """The sampling settings for what requests leave out, which are logged; None for OpenAI's."""
    found = stored.chosen(place.preset)
    if found is not None:
        named = f"sampling {found.preset}" if found.preset else "recommended sampling"
        log.info("%s: %s for what a request leaves out: %s", name, named, found.shown)
    return found


def _weights(net: Any, cache: Path, folder: str) -> dict[str, Any]:
    """The weights in a folder, of a model or of an adapter for it, by their names in `net`. Raises InputError if they
    do not fit the network."""
    source = ModelSource(kind="path", name=folder, template=UNUSED)
    found = dict(load(source, cache, dtype=net.dtype).net.named_parameters())
    own = dict(net.named_parameters())
    wrong = [name for name in own if name not in found or found[name].shape != own[name].shape]
    if wrong or len(found) != len(own):
        raise InputError(
            f"{folder}: its weights do not fit the served model"
            + (f" ({wrong[0]} is missing or has another shape)" if wrong else "")
        )
    return found


def _reward(sources: Sources, cache: Path, place: Place, died: Callable[[], None]) -> FastAPI:
    ((name, source),) = sources.items()
    scorer = load_scorer_of(source, cache, dtype=getattr(torch, place.dtype), device=model_device(source))
    encoder = isinstance(scorer, EncoderScorer)
    net, tokenizer = (scorer.net, scorer.tokenizer) if encoder else (scorer.model.net, scorer.model.tokenizer)
    vocabulary = net.get_input_embeddings().num_embeddings
    limit = None if scorer.limit == sys.maxsize else scorer.limit
    served = Served(name=name, kind="reward", limit=limit, vocabulary=vocabulary, key=place.key, limits=place.limits)
    return reward_app(served, scorer, tokenizer)


def _embed(sources: Sources, cache: Path, place: Place, died: Callable[[], None]) -> FastAPI:
    ((name, source),) = sources.items()
    embedder = SentenceEmbedder(source, cache, device=model_device(source))
    vocabulary = embedder.model.get_input_embeddings().num_embeddings
    served = Served(
        name=name,
        kind="embedder",
        limit=embedder.max_tokens,
        vocabulary=vocabulary,
        key=place.key,
        limits=place.limits,
    )
    return embed_app(served, embedder)


APPS = {"causal": _chat, "reward": _reward, "embedder": _embed}
PATHS = {"causal": ("/v1",), "reward": ("/v1/scores", "/classify"), "embedder": ("/v1/embeddings",)}
"""The paths of each kind of model."""


def _bound(place: Place) -> socket.socket:
    """The listening socket, bound before the model is loaded, which may take minutes."""
    try:
        family = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0][0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((place.host, place.port))
    except OSError as error:
        raise RecipeError(
            f"command line: cannot listen on {place.host}:{place.port}: {error.strerror or error}; choose another "
            "with --host and --port (0: a free port)"
        ) from None
    return found


def _connections() -> int:
    """The number of clients that the limit of open files allows; the limit is raised as far as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    return max((MOST_FILES if soft == resource.RLIM_INFINITY else soft) - OWN_FILES, 1)


def _ready(place: Place, listener: socket.socket, kind: str, names: Sequence[str]) -> str:
    host = f"[{place.host}]" if ":" in place.host else place.host
    url = f"http://{host}:{listener.getsockname()[1]}"
    open_to_all = (
        "" if place.key or place.host in OWN else "; anyone who reaches this machine can use it (--api-key-env)"
    )
    where = " and ".join(f"{url}{path}" for path in PATHS[kind])
    page = f"; talk to {'it' if len(names) == 1 else 'them'} at {url}" if kind == "causal" else ""
    verb = "is" if len(names) == 1 else "are"
    return f"{' and '.join(names)} {verb} served at {where}{page}{open_to_all}. Ctrl-C ends it"
