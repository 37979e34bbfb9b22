"""`togi serve`: serves models over HTTP."""

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from togi.cli.models import named_model, recommended_for
from togi.cli.speaking import safety_option, safety_text, sampling_option
from togi.client.endpoint import shown_name
from togi.commands.stored import TRAINING
from togi.core.errors import RecipeError
from togi.core.library_log import library_warnings_kept
from togi.core.sampling import NONE, Recommended
from togi.core.sources import ModelSource
from togi.recipe.store import home, store_folder

PREFIX_MIB = 512
DEVICE = "cpu|cuda(:[0-9]+)?"


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--reward", is_flag=True, help="MODEL is a reward model; serve its scores.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: all addresses.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen on; 0: any free one."
)
@click.option(
    "--api-key-env", metavar="NAME", help="Environment variable with the key that clients must send.  [default: no key]"
)
@click.option("--name", multiple=True, help="Name of the model for clients.  [default: the last part of MODEL]")
@click.option("--template", metavar="NAME", help="Chat template by name.  [default: the model's own]")
@click.option("--revision", help="Commit, tag or branch of a hub's model.  [default: main]")
@sampling_option(
    "Sampling settings for what a request leaves out: those of a published card, or none for OpenAI's defaults.  "
    "[default: those recommended for the model]",
    NONE,
)
@click.option(
    "--system",
    metavar=f"{TRAINING}|TEXT",
    help=f"System prompt of conversations without one; {TRAINING}: that of each model's training.  [default: none]",
)
@safety_option
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=600,
    show_default=True,
    help="Seconds for a whole answer, including streams.",
)
@click.option(
    "--client-timeout",
    type=click.FloatRange(min=0.1),
    default=30,
    show_default=True,
    help="Seconds in which a client must send its request, and read a part of its answer.",
)
@click.option(
    "--waiting",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Largest number of requests in flight per model.",
)
@click.option(
    "--body-mib", type=click.FloatRange(min=0.001), default=16, show_default=True, help="Largest request body, in MiB."
)
@click.option("--device", metavar="DEVICE", help="cpu, cuda or cuda:N.  [default: the accelerator, if there is one]")
@click.option(
    "--dtype",
    type=click.Choice(("float32", "bfloat16", "auto")),
    default="float32",
    show_default=True,
    help="Type of weights and computation; auto: that of a run on this machine, as a short test chooses it.",
)
@click.option("--threads", type=click.IntRange(0), default=0, help="Number of threads; 0: $OMP_NUM_THREADS, or all.")
@click.option(
    "--prefix-mib",
    type=click.FloatRange(min=0),
    help="Memory per language model for the keys of earlier requests, in MiB. A prompt that begins like one of them, "
    "such as the next turn of a chat, is computed from there on; this may change the last bits. 0: none.  [default: "
    "512; 0 with --updates]",
)
@click.option(
    "--updates",
    is_flag=True,
    help="Clients may replace the weights: POST /update_weights_from_disk or _from_distributed.",
)
def command(models: tuple[str, ...], reward: bool, host: str, port: int, **more: Any) -> None:
    """Serve models over HTTP, with OpenAI's API, until Ctrl-C or SIGTERM.

    MODEL is a model folder, RECIPE:STAGE, package:NAME, or a hub id; several MODELs must be language models. Language
    models answer /v1/chat/completions and /v1/completions (texts or token ids); the page at / is for talking to one of
    them, or to two side by side. With --reward, /v1/scores and (except for encoders) /classify return raw scores; an
    embedder answers /v1/embeddings, without a prefix. Unsupported parameters of a request are refused with status 400,
    never ignored. /openapi.json describes requests and answers; /metrics has metrics for Prometheus. A signal ends the
    server with exit code 0.
    """
    names: tuple[str, ...] = more["name"]
    if len(models) > 1 and reward:
        raise RecipeError("command line: --reward serves one model; start one server per model")
    if more["device"] is not None and not re.fullmatch(DEVICE, more["device"]):
        raise RecipeError(f"command line: --device: found {more['device']!r}; allowed: cpu, cuda, cuda:N")
    if more["updates"] and reward:
        raise RecipeError("command line: --updates is for language models; a reward model keeps its weights")
    if reward:
        _refuse_speaking(more)
    if more["safety_prompt"] and more["system"] not in (None, "", TRAINING):
        raise RecipeError("command line: --safety-prompt: --system is given; write all of it there, or leave one out")
    if names and len(names) != len(models):
        raise RecipeError(f"command line: --name: {len(names)} names for {len(models)} models; give one for each")
    sources = [_source(model, reward, more["template"], more["revision"]) for model in models]
    called = names or tuple(name for _, name in sources)
    if len(set(called)) < len(called):
        raise RecipeError(f"command line: {', '.join(called)}: models share a name; give each one with --name")
    key = _key(more["api_key_env"])
    work = importlib.import_module("togi.commands.serve")  # imports torch: errors above must not wait for it
    limits = work.Limits(
        body_bytes=int(more["body_mib"] * 2**20),
        client_seconds=more["client_timeout"],
        seconds=more["timeout"],
        waiting=more["waiting"],
    )
    place = work.Place(
        host=host, port=port, key=key, limits=limits, updates=more["updates"], dtype=more["dtype"],
        threads=more["threads"], preset=more["sampling"], recommended=_recommended(called, models),
        system=more["system"] or "", safety=safety_text(more["safety_prompt"]),
        prefix_bytes=int(_prefix_mib(more["prefix_mib"], more["updates"]) * 2**20),
    )  # fmt: skip
    with library_warnings_kept(home()):
        named = {
            name: replace(source, device=more["device"] or "")
            for name, (source, _) in zip(called, sources, strict=True)
        }
        work.serve(named, store_folder(), reward, place)


def _refuse_speaking(given: Mapping[str, Any]) -> None:
    """Raises RecipeError for an option of models that answer."""
    for name in ("sampling", "system", "safety_prompt"):
        if given[name]:
            option = "--" + name.replace("_", "-")
            raise RecipeError(f"command line: {option} is for language models; a reward model writes no answers")


def _recommended(names: Sequence[str], models: Sequence[str]) -> dict[str, Recommended]:
    """The sampling that recipes recommend for models that they train, by the names for clients."""
    found = {name: recommended_for(Path(model)) for name, model in zip(names, models, strict=True)}
    return {name: sampling for name, sampling in found.items() if sampling is not None}


def _source(model: str, reward: bool, template: str | None, revision: str | None) -> tuple[ModelSource, str]:
    """The model that an argument names, and its name for clients."""
    source, called = named_model(model, *(("reward",) if reward else ("causal", "embedder")))
    if revision is not None and source.kind != "hub":
        raise RecipeError(f"command line: --revision goes with a hub id, but {model!r} is not one; leave it out")
    given = {"template": template, "revision": revision}
    return replace(source, **{key: value for key, value in given.items() if value is not None}), called


def _prefix_mib(given: float | None, updates: bool) -> float:
    """The memory for earlier keys. An engine that a policy learns from must give the same bits when asked again, so it
    keeps none unless told to."""
    return (0 if updates else PREFIX_MIB) if given is None else given


def _key(variable: str | None) -> str:
    """The key in an environment variable. Raises RecipeError if there is none."""
    if variable is None:
        return ""
    key = os.environ.get(variable, "")
    if not key:
        raise RecipeError(
            f"command line: --api-key-env: the environment variable {shown_name(variable)} is not set, or empty; set "
            "it to the key that clients must send"
        )
    return key
