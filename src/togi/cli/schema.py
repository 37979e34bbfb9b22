"""`togi schema`: prints the JSON schema of recipes."""

import importlib

import click

from togi.cli.common import print_json


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, which this command always does.")
def command(as_json: bool) -> None:
    """Print the JSON schema of recipes, for editors.

    Run `togi schema > togi.schema.json`, then put `# yaml-language-server: $schema=togi.schema.json` at the top of a
    recipe: editors with support for YAML schemas then complete and check it while you write.
    """
    print_json(importlib.import_module("togi.commands.schema").recipe_schema())
