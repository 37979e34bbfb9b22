"""`togi push`: publishes an exported folder on a model hub."""

import importlib
from pathlib import Path
from typing import Any

import click

from togi.cli.common import json_option


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo", metavar="REPO")
@click.option("--dataset", is_flag=True, help="FOLDER is a data set.  [default: a model]")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--branch", default="main", show_default=True, help="Branch to commit to; created if it is new.")
@click.option("--message", default="Upload with togi", show_default=True, help="Message of the commit.")
@json_option
def command(folder: Path, repo: str, dataset: bool, as_json: bool, **more: Any) -> None:
    """Publish an exported folder on a model hub.

    REPO is owner/name; it is created if it is new. All files go into one commit, which is then listed and compared with
    the folder. Files whose names begin with a dot are not sent; pickles are refused. The token comes from HF_TOKEN or
    the hub library's login, the address of another hub from HF_ENDPOINT.
    """
    work = importlib.import_module("togi.commands.push")  # brings the hub library
    what = "dataset" if dataset else "model"
    work.push(work.Wanted(folder=folder, repo=repo, what=what, **more), as_json)
