"""`togi plan`."""

from pathlib import Path

import click

from togi.cli.common import json_option, load_graph, print_json, recipe_arguments
from togi.recipe.store import is_done, manifest, store_folder


@click.command()
@recipe_arguments
@json_option
def command(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show the graph, what is done and what is left.

    Each stage stands after its inputs, with its fingerprint; the time is that of its finished run.
    """
    graph = load_graph(recipe, overrides)
    rows = []
    for node in graph.nodes.values():
        folder = store_folder() / node.folder_name
        done = is_done(folder)
        begun = not done and (folder / "settings.json").exists()
        rows.append(
            {
                "stage": node.name,
                "type": node.settings.type,
                "inputs": [*node.parents, *(str(t.name) for t in node.inputs.values() if not isinstance(t, str))],
                "state": "done" if done else "begun" if begun else "to do",
                "seconds": manifest(folder)["seconds"] if done else None,
                "folder": str(folder),
            }
        )
    if as_json:
        print_json(rows)
        return
    width = max(len(row["stage"]) for row in rows)
    for row in rows:
        took = f"{row['seconds']:.1f} s" if row["seconds"] is not None else ""
        inputs = f"<- {', '.join(row['inputs'])}" if row["inputs"] else ""
        click.echo(f"{row['stage']:<{width}}  {row['type']:<13} {row['state']:<6} {took:>9}  {inputs}")
    left = [row["stage"] for row in rows if row["state"] != "done"]
    click.echo(
        f"{len(rows) - len(left)} of {len(rows)} stages are done" + (f"; left: {', '.join(left)}" if left else "")
    )
