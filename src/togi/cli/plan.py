"""`togi plan`: shows the graph, what is done, and the cost of the rest."""

import importlib
from pathlib import Path
from typing import Any

import click

from togi.cli.common import compute_option, json_option, load_graph, print_json, recipe_arguments
from togi.cli.planned import costs
from togi.core.errors import InputError
from togi.core.settings import Ref
from togi.core.tables import say_table
from togi.core.terminal import say
from togi.recipe.graph import Graph
from togi.recipe.store import damage, is_done, manifest, store_folder
from togi.report.formatting import duration


@click.command()
@recipe_arguments
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Plan the trial of `togi run --limit N`.")
@compute_option("is the recipe's, or this machine's earlier choice, or float32")
@json_option
def command(recipe: Path, overrides: tuple[str, ...], limit: int | None, compute: str, as_json: bool) -> None:
    """Show the graph, what is done, and the tokens, memory and time of the rest.

    Tokens, operations and peak memory are computed from the settings, the data on disk and the sizes of the models;
    time from the speed of the last finished stage of the same type. If the recipe names its hardware, memory and time
    are those of its devices, and a stage that does not fit is an error that suggests settings that fit. For models on
    servers the plan shows calls, tokens and money, including answers that are already stored. It also lists what is not
    known yet, and settings that ask for something impossible.
    """
    graph = load_graph(recipe, overrides, limit)
    store = store_folder()
    rows = [_row(node, store / node.folder_name) for node in graph.nodes.values()]
    if any(row["state"] != "done" for row in rows):
        found = costs(graph, store, compute)
        for row in rows:
            row["estimate"] = None if row["state"] == "done" else found[row["stage"]].to_json()
    models = _models(graph, store)
    if as_json:
        print_json([{**row, "models": _of_stage(graph, row["stage"], models)} for row in rows])
    else:
        _print(rows, models)
    if problems := [problem for row in rows for problem in (row.get("estimate") or {"problems": ()})["problems"]]:
        raise InputError("\n".join(problems))


def _print(rows: list[dict[str, Any]], models: Any) -> None:
    say_table(("stage", "type", "state", "took", "from", "what it takes"), [_cells(row) for row in rows], right=(3,))
    _say_models(models)
    for word, key in (("ALARM", "alarms"), ("note", "notes"), ("not known", "unknown")):
        for text, stages in _told(rows, key).items():
            say(f"{word}: {', '.join(stages)}: {text}")
    for row in rows:
        if row["damage"] is not None:
            say(f"note: {row['stage']}: {row['damage']}; it is done again")
    if asked := [row["estimate"] for row in rows if (row.get("estimate") or {}).get("calls")]:
        money = sum(each["money"] or 0 for each in asked)
        calls = sum(each["calls"] for each in asked)
        say(f"requests to servers: {calls:,}" + (f", for at most {money:.4g} in money" if money else ""))
    left = [row["stage"] for row in rows if row["state"] != "done"]
    say(f"{len(rows) - len(left)} of {len(rows)} stages are done" + (f"; left: {', '.join(left)}" if left else ""))


def _told(rows: list[dict[str, Any]], key: str) -> dict[str, list[str]]:
    """Each message once, with the stages that it applies to."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for text in (row.get("estimate") or {key: ()})[key]:
            found.setdefault(text, []).append(row["stage"])
    return found


PARAMETERS = {"body": "without embeddings", "embeddings": "embeddings", "total": "total", "active": "active"}
"""The counts of parameters that a plan shows, with their column headings."""


def _models(graph: Graph, store: Path) -> dict[str, dict[str, int]]:
    """The parameter counts of the declared models whose sizes are known, by name."""
    work = importlib.import_module("togi.commands.plan_models")
    return work.parameters([node.inputs for node in graph.nodes.values()], store)


def _of_stage(graph: Graph, stage: str, models: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """The models that one stage reads."""
    names = dict.fromkeys(Ref(ref).name for ref in graph.nodes[stage].inputs)
    return {name: models[name] for name in names if name in models}


def _say_models(models: dict[str, dict[str, int]]) -> None:
    if models:
        say()
        rows = [(name, *(f"{counts[key]:,}" for key in PARAMETERS)) for name, counts in models.items()]
        say_table(("parameters of", *PARAMETERS.values()), rows, right=(1, 2, 3, 4))
        say()


def _row(node: Any, folder: Path) -> dict[str, Any]:
    done = is_done(folder)
    begun = not done and (folder / "settings.json").exists()
    return {
        "stage": node.name,
        "type": node.settings.type,
        "inputs": [*node.parents, *(str(t.name) for t in node.inputs.values() if not isinstance(t, str))],
        "state": "done" if done else "begun" if begun else "to do",
        "seconds": manifest(folder)["seconds"] if done else None,
        "damage": damage(folder),
        "folder": str(folder),
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    took = "" if row["seconds"] is None else f"{row['seconds']:.1f} s"
    return row["stage"], row["type"], row["state"], took, ", ".join(row["inputs"]), _needs(row.get("estimate"))


def _needs(estimate: dict[str, Any] | None) -> str:
    """The numbers of an estimate as text."""
    if estimate is None:
        return ""
    numbers = [
        _number(estimate["records"], "at most {:,} records"),
        _number(estimate["samples"], "{:,} samples"),
        _number(_megabytes(estimate["stored_bytes"]), "about {:,.1f} MB of samples on disk"),
        _number(estimate["calls"], "{:,} calls"),
        _number(estimate["read"], "at most {:,} tokens read"),
        _number(estimate["sampled"], "at most {:,} tokens written"),
        _number(estimate["money"], "at most {:.4g} in money"),
        _number(estimate["tokens"], "{:,} tokens trained"),
        _number(estimate["flops"], "{:.2g} operations"),
        *_peaks(estimate),
        "" if estimate["seconds"] is None else f"about {duration(estimate['seconds'])}",
    ]
    return ", ".join(number for number in numbers if number)


def _peaks(estimate: dict[str, Any]) -> list[str]:
    """The peak of the training device, and the memory in use on other devices."""
    found = estimate["memory"] or {"": estimate["peak_bytes"]}
    named = {f" on {name}" if len(found) > 1 else "": size for name, size in found.items()}
    return [f"peak{name} {size / 1e9:.2f} GB" for name, size in named.items() if size is not None]


def _megabytes(size: int | None) -> float | None:
    return None if size is None else size / 1e6


def _number(value: float | None, words: str) -> str:
    return "" if value is None else words.format(value)
