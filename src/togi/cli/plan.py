"""`togi plan`."""

import importlib
from pathlib import Path
from typing import Any

import click

from togi.cli.common import compute_option, json_option, load_graph, print_json, recipe_arguments
from togi.core.terminal import say
from togi.recipe.graph import Graph
from togi.recipe.store import damage, is_done, manifest, store_folder


@click.command()
@recipe_arguments
@compute_option("is what the recipe says, or what this machine chose, float32 where it has not")
@json_option
def command(recipe: Path, overrides: tuple[str, ...], compute: str, as_json: bool) -> None:
    """Show the graph, what is done and what is left, and what that will take.

    Tokens, operations and peak memory are computed from the settings, the data on the disk and the sizes of the models;
    time from the speed of the last finished stage of the same type. What is not known yet is said so.
    """
    graph = load_graph(recipe, overrides)
    store = store_folder()
    rows = [_row(node, store / node.folder_name) for node in graph.nodes.values()]
    if any(row["state"] != "done" for row in rows):
        products = graph.recipe.products(compute)
        found = _estimates(graph, store, "" if products == "auto" else products)
        for row in rows:
            row["estimate"] = None if row["state"] == "done" else found[row["stage"]]
    if as_json:
        print_json(rows)
        return
    width, kind = (max(len(row[name]) for row in rows) for name in ("stage", "type"))
    for row in rows:
        took = f"{row['seconds']:.1f} s" if row["seconds"] is not None else ""
        inputs = f"<- {', '.join(row['inputs'])}" if row["inputs"] else ""
        say(f"{row['stage']:<{width}}  {row['type']:<{kind}} {row['state']:<6} {took:>9}  {inputs}")
        for line in _lines(row.get("estimate")):
            say(f"{'':<{width}}    {line}")
    for row in rows:
        if row["damage"] is not None:
            say(f"note: {row['stage']}: {row['damage']}; it is done again")
    left = [row["stage"] for row in rows if row["state"] != "done"]
    say(f"{len(rows) - len(left)} of {len(rows)} stages are done" + (f"; left: {', '.join(left)}" if left else ""))


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


def _estimates(graph: Graph, store: Path, compute: str) -> dict[str, dict[str, Any]]:
    work = importlib.import_module("togi.commands.plan")
    planned = [
        work.PlannedStage(n.name, n.settings, n.inputs, store / n.folder_name, is_done(store / n.folder_name))
        for n in graph.nodes.values()
    ]
    return {name: found.to_json() for name, found in work.estimates(planned, store, compute).items()}


def _lines(estimate: dict[str, Any] | None) -> list[str]:
    """An estimate for people: one line of numbers, then what they rest on and what is not known."""
    if estimate is None:
        return []
    numbers = [
        _number(estimate["records"], "at most {:,} records"),
        _number(estimate["samples"], "{:,} samples"),
        _number(estimate["sampled"], "at most {:,} tokens written"),
        _number(estimate["tokens"], "{:,} tokens trained"),
        _number(estimate["flops"], "{:.2g} operations"),
        _number(None if estimate["peak_bytes"] is None else estimate["peak_bytes"] / 1e9, "peak {:.2f} GB"),
        _number(estimate["seconds"], "about {:,.0f} s"),
    ]
    shown = ", ".join(number for number in numbers if number)
    return [*([shown] if shown else []), *estimate["notes"], *(f"not known: {why}" for why in estimate["unknown"])]


def _number(value: float | None, words: str) -> str:
    return "" if value is None else words.format(value)
