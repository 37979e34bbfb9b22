"""`togi serve`."""

import importlib
import os
from dataclasses import replace

import click

from togi.cli.models import named_model
from togi.core.errors import RecipeError
from togi.core.library_log import library_warnings_kept
from togi.recipe.store import home, store_folder


@click.command()
@click.argument("model")
@click.option("--reward", is_flag=True, help="MODEL is a reward model: serve its scores.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: all of them.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one.")
@click.option(
    "--api-key-env", metavar="NAME", help="Environment variable with the key that clients must send.  [default: no key]"
)
@click.option("--name", help="What clients call the model.  [default: the last part of MODEL]")
@click.option("--template", metavar="NAME", help="Chat template by name.  [default: the model's own]")
@click.option("--revision", help="Commit, tag or branch of a hub's model.  [default: main]")
def command(model: str, reward: bool, host: str, port: int, api_key_env: str | None, **more: str | None) -> None:
    """Serve a model over HTTP, in OpenAI's shape, until Ctrl-C or SIGTERM.

    MODEL is a model folder, RECIPE:STAGE, package:NAME, or a hub's id. It answers /v1/chat/completions and
    /v1/completions (texts or token ids); with --reward, /v1/scores and (no encoder) /classify give raw scores; an
    embedder answers /v1/embeddings, without a prefix. What a request asks and this server does not do is refused with
    status 400, never left out silently. Ended by a signal, it exits with 0.
    """
    source, called = named_model(model, *(("reward",) if reward else ("causal", "embedder")))
    if more["revision"] is not None and source.kind != "hub":
        raise RecipeError(f"command line: --revision goes with a hub's id, and {model!r} is none; leave it out")
    source = replace(source, **{key: value for key in ("template", "revision") if (value := more[key]) is not None})
    key = _key(api_key_env)
    work = importlib.import_module("togi.commands.serve")  # brings torch: a mistake above must not wait for it
    place = work.Place(host=host, port=port, key=key, name=more["name"] or called)
    with library_warnings_kept(home()):
        work.serve(source, store_folder(), reward, place)


def _key(variable: str | None) -> str:
    """The key that a variable of the environment holds. Raises RecipeError where it holds none."""
    if variable is None:
        return ""
    key = os.environ.get(variable, "")
    if not key:
        raise RecipeError(f"command line: --api-key-env {variable}: there is no such variable, or it is empty; set it")
    return key
