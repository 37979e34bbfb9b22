"""`togi export`: writes a model or data for other programs."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from togi.cli.models import beside, named_either, named_model, named_records, trained_by
from togi.cli.speaking import sampling_option
from togi.core.errors import RecipeError
from togi.core.library_log import library_warnings_kept
from togi.core.sampling import Recommended
from togi.recipe.store import home, store_folder


@click.command()
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(("merged", "adapter", "gguf", "parquet")),
    help="Safetensors in the hub's layout with adapters merged; only the adapter; one file for llama.cpp; records as "
    "Parquet.  [default: merged; parquet for a stage that outputs records]",
)
@click.option(
    "--type",
    "kept",
    type=click.Choice(("f32", "f16", "bf16", "q8_0")),
    help="Type of the matrices in a GGUF.  [default: their stored type]",
)
@click.option("--reward", is_flag=True, help="MODEL is a reward model; detected for a folder or a stage.")
@click.option(
    "--question",
    default="Who are you, and what can you do?",
    show_default=True,
    help="Question for the base, trained and exported model, whose greedy answers are shown; '' asks nothing.",
)
@sampling_option("Store this card's sampling settings as recommended.  [default: those of the recipe's `card:`]")
@click.option("--template", metavar="NAME", help="Chat template by name.  [default: the model's own]")
@click.option("--revision", help="Commit, tag or branch of a hub's model.  [default: main]")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the written files and their differences from the model as JSON."
)
def command(model: str, folder: Path, form: str | None, kept: str | None, reward: bool, **more: Any) -> None:
    """Write a model or data for other programs: safetensors, an adapter, GGUF, Parquet.

    MODEL is a model folder, RECIPE:STAGE, package:NAME, or a hub id; FOLDER must be new or empty. The export is read
    back and compared with the model before it is moved to FOLDER: tokens of probe texts in several scripts,
    log-probabilities, greedy answers. A GGUF is read back by transformers; networks and tokenizers that llama.cpp would
    handle differently are refused by name.

    If MODEL is RECIPE:STAGE of a stage that outputs records, its outputs become splits of a data set, with a data card.
    """
    sampling = None if more["sampling"] is None else Recommended.of(more["sampling"])
    if (records := named_records(model)) is not None:
        if sampling is not None:
            raise RecipeError(f"command line: --sampling is for models, and {model!r} outputs records; leave it out")
        _export_data(Path(model.rpartition(":")[0]).parent, records, folder, form, more["as_json"])
        return
    if form == "parquet":
        raise RecipeError(f"command line: --format parquet is for the records of a stage, and {model!r} is a model")
    source, _, scores = (*named_model(model, "reward"), True) if reward else named_either(model)
    if more["revision"] is not None and source.kind != "hub":
        raise RecipeError(f"command line: --revision goes with a hub id, but {model!r} is not one; leave it out")
    source = replace(source, **{key: value for key in ("template", "revision") if (value := more[key]) is not None})
    work = importlib.import_module("togi.commands.export")  # imports torch: errors above must not wait for it
    trained = None if (known := trained_by(model)) is None else work.Trained(**known)
    form, question, kind = form or "merged", more["question"] or None, "reward" if scores else "causal"
    source = beside(model, source) if form == "adapter" else source
    wanted = work.Wanted(
        folder=folder, format=form, kept=kept, kind=kind, question=question, trained=trained, sampling=sampling
    )
    with library_warnings_kept(home()):
        work.export(source, store_folder(), wanted, more["as_json"])


def _export_data(recipe: Path, records: tuple[Path, str, Any], folder: Path, form: str | None, as_json: bool) -> None:
    run, stage, files = records
    if form not in (None, "parquet"):
        raise RecipeError(f"command line: stage {stage} outputs records, which are written as parquet, not as {form}")
    work = importlib.import_module("togi.commands.export_data")
    work.export_data(work.Records(run=run, stage=stage, files=files, recipe=recipe), folder, as_json)
