"""`togi ground`: answers a question from documents."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from togi.cli.common import json_option
from togi.cli.models import named_endpoint, named_model
from togi.cli.speaking import safety_option, safety_text, sampling_option
from togi.core.errors import RecipeError
from togi.core.library_log import library_warnings_kept
from togi.core.sampling import Recommended
from togi.recipe.store import home, store_folder


@click.command()
@click.argument("model")
@click.argument("question")
@click.option(
    "--documents",
    type=click.Path(path_type=Path),
    required=True,
    metavar="PATH",
    help="A JSON list of {title, content}, or a folder of HTML, Markdown and text files.",
)
@click.option(
    "--most",
    type=click.IntRange(1, 64),
    default=6,
    show_default=True,
    help="Largest number of documents shown to the model.",
)
@click.option(
    "--chunk-chars", type=click.IntRange(100), default=4000, show_default=True, help="Longest document, in characters."
)
@click.option(
    "--embedder", metavar="MODEL", help="Select documents by this model's embeddings.  [default: by words, BM25]"
)
@sampling_option("Sampling settings of a published card for the answer.  [default: temperature 0.3]")
@safety_option
@click.option(
    "--max-tokens", type=click.IntRange(1), default=2048, show_default=True, help="Longest answer, in tokens."
)
@click.option("--template", metavar="NAME", help="Chat template by name.  [default: the model's own]")
@click.option("--revision", help="Revision of a hub's or a server's model.  [default: main]")
@click.option("--key-env", metavar="NAME", help="Environment variable with the key of a server.  [default: no key]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the random answer.")
@json_option
def command(model: str, question: str, documents: Path, embedder: str | None, as_json: bool, **more: Any) -> None:
    """Answer a question from documents, and name the relevant ones.

    MODEL is a model folder, RECIPE:STAGE, package:NAME, a hub id, or URL#NAME of a server. It must be trained for
    grounded answers. Under the system prompt of that training it first names the relevant documents (at temperature 0),
    then answers (at 0.3). The files of a folder are split into parts; those that match the question best get the ids 0,
    1 and so on. A JSON list of up to --most documents is shown whole and in order. --sampling and --safety-prompt
    change only the second step; the safety prompt follows the system prompt of the training.
    """
    if not question.strip():
        raise RecipeError("command line: QUESTION is empty; ask something")
    source = _model(model, more["template"], more["revision"], more["key_env"])
    finder = None if embedder is None else named_model(embedder, "embedder")[0]
    work = importlib.import_module("togi.commands.ground")  # imports torch: errors above must not wait for it
    wanted = work.Wanted(
        documents=documents,
        question=question,
        most=more["most"],
        longest=more["chunk_chars"],
        embedder=finder,
        max_tokens=more["max_tokens"],
        seed=more["seed"],
        sampling=None if more["sampling"] is None else Recommended.of(more["sampling"]),
        safety=safety_text(more["safety_prompt"]),
    )
    with library_warnings_kept(home()):
        work.ground(source, store_folder(), wanted, as_json)


def _model(model: str, template: str | None, revision: str | None, key_env: str | None) -> Any:
    """The model in this process, or on a server. Raises RecipeError for an option that does not apply to it."""
    there = named_endpoint(model, revision, key_env)
    if there is not None:
        if template is not None:
            raise RecipeError(
                f"command line: --template: the server of {model!r} has its own template; leave the option out"
            )
        return there
    if key_env is not None:
        raise RecipeError(
            f"command line: --key-env goes with a server's URL#NAME, but {model!r} is not one; leave it out"
        )
    source, _ = named_model(model, "causal")
    if revision is not None and source.kind != "hub":
        raise RecipeError(f"command line: --revision goes with a hub id, but {model!r} is not one; leave it out")
    given = {"template": template, "revision": revision}
    return replace(source, **{key: value for key, value in given.items() if value is not None})
