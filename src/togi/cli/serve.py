"""`togi serve`."""

import importlib
import os
import re
from dataclasses import replace
from typing import Any

import click

from togi.cli.models import named_model
from togi.core.errors import RecipeError
from togi.core.library_log import library_warnings_kept
from togi.core.sources import ModelSource
from togi.recipe.store import home, store_folder

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
    type=click.Choice(("float32", "bfloat16")),
    default="float32",
    show_default=True,
    help="Type of weights and computation.",
)
@click.option(
    "--prefix-mib",
    type=click.FloatRange(min=0),
    default=512,
    show_default=True,
    help="Memory per language model for the keys of earlier requests, in MiB: a prompt that begins like one of them, "
    "such as the next turn of a chat, is computed from there on. 0: none.",
)
@click.option("--updates", is_flag=True, help="Clients may replace the weights: POST /update_weights_from_disk.")
def command(models: tuple[str, ...], reward: bool, host: str, port: int, **more: Any) -> None:
    """Serve models over HTTP, with OpenAI's API, until Ctrl-C or SIGTERM.

    MODEL is a model folder, RECIPE:STAGE, package:NAME, or a hub's id; several MODELs must be language models. Language
    models answer /v1/chat/completions and /v1/completions (texts or token ids); the page at / is for talking to one of
    them, or to two side by side. With --reward, /v1/scores and (except for encoders) /classify return raw scores; an
    embedder answers /v1/embeddings, without a prefix. Unsupported parameters of a request are refused with status 400,
    never ignored. /openapi.json describes requests and answers; /metrics has metrics for Prometheus. A signal ends it
    with exit code 0.
    """
    names: tuple[str, ...] = more["name"]
    if len(models) > 1 and reward:
        raise RecipeError("command line: --reward serves one model; start one server per model")
    if more["device"] is not None and not re.fullmatch(DEVICE, more["device"]):
        raise RecipeError(f"command line: --device: found {more['device']!r}; allowed: cpu, cuda, cuda:N")
    if more["updates"] and reward:
        raise RecipeError("command line: --updates is for language models; a reward model keeps its weights")
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
        prefix_bytes=int(more["prefix_mib"] * 2**20),
    )  # fmt: skip
    with library_warnings_kept(home()):
        named = {
            name: replace(source, device=more["device"] or "")
            for name, (source, _) in zip(called, sources, strict=True)
        }
        work.serve(named, store_folder(), reward, place)


def _source(model: str, reward: bool, template: str | None, revision: str | None) -> tuple[ModelSource, str]:
    """The model that an argument names, and its name for clients."""
    source, called = named_model(model, *(("reward",) if reward else ("causal", "embedder")))
    if revision is not None and source.kind != "hub":
        raise RecipeError(f"command line: --revision goes with a hub's id, and {model!r} is none; leave it out")
    given = {"template": template, "revision": revision}
    return replace(source, **{key: value for key, value in given.items() if value is not None}), called


def _key(variable: str | None) -> str:
    """The key in an environment variable. Raises RecipeError if there is none."""
    if variable is None:
        return ""
    key = os.environ.get(variable, "")
    if not key:
        raise RecipeError(f"command line: --api-key-env {variable}: there is no such variable, or it is empty; set it")
    return key
