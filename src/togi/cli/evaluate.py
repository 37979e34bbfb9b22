"""`togi evaluate`."""

import importlib
from pathlib import Path
from typing import Any

import click

from togi.cli.common import json_option, print_json
from togi.core.tables import say_table
from togi.core.terminal import say

FILE = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Compute a benchmark's figures from stored verdicts and grades, with intervals.

    No model is asked. Files are JSON Lines, JSON, CSV, TSV or Parquet, and may be packed (.gz). What could not be used
    is counted by reason; an em dash (null with --json) stands for what is not defined.
    """


@command.command()
@click.option("--battles", type=FILE, required=True, metavar="FILE", help="Rows of the arena-hard layout.")
@click.option("--baseline", metavar="MODEL", help="The model that counts 50 %.  [default: the one in every battle]")
@click.option(
    "--resample",
    type=click.Choice(["question", "row"]),
    default="question",
    help="What the bootstrap draws: questions with all their games, the default, or rows, as published arenas do.",
)
@click.option("--rounds", type=click.IntRange(100, 100_000), default=1000, help="Bootstrap rounds.  [default: 1000]")
@click.option("--seed", type=int, default=0, help="Seed of the bootstrap.  [default: 0]")
@json_option
def arena(battles: Path, baseline: str | None, resample: str, rounds: int, seed: int, as_json: bool) -> None:
    """Rank models by their battles against a baseline.

    Columns: model_a, model_b, winner (model_a, model_b, tie), and question_id. A repeated row counts again: that is how
    the layout weighs a clear win. Win rates come from a Bradley-Terry model; the baseline has 50 % and Elo 1000.
    """
    work = importlib.import_module("togi.commands.evaluate")
    found = work.arena(battles, baseline, resample, rounds, seed)
    if as_json:
        print_json(found.to_json())
        return
    columns, rows = work.arena_table(found)
    say_table(columns, rows, right=range(1, 7))
    for note in work.arena_notes(found):
        say(note)


@command.command()
@click.option("--preferences", type=FILE, required=True, metavar="FILE", help="Rows of model, i, preference.")
@click.option("--weights", type=FILE, metavar="FILE", help="Weights of the length-controlled model, for each model.")
@click.option("--difficulty", type=FILE, metavar="FILE", help="The difficulty of each instruction.")
@json_option
def alpaca(preferences: Path, weights: Path | None, difficulty: Path | None, as_json: bool) -> None:
    """Compute AlpacaEval 2 win rates, raw and length-controlled.

    A preference is the chance, 0 to 1, that the model's answer to instruction i is better than the baseline's; null is
    none. Without --weights there is no length-controlled rate.
    """
    work = importlib.import_module("togi.commands.evaluate")
    found = work.alpaca(preferences, weights, difficulty)
    if as_json:
        print_json(found.to_json())
        return
    columns, rows = work.alpaca_table(found)
    say_table(columns, rows, right=range(1, 7))
    say(f"{found.rows:,} rows; Student's t intervals over instructions")


@command.command()
@click.option("--scores", type=FILE, required=True, metavar="FILE", help="Rows with model, bench, i, score.")
@click.option("--scale", "scales", multiple=True, metavar="BENCH=N", help="Multiply a benchmark's grades; repeatable.")
@json_option
def graded(scores: Path, scales: tuple[str, ...], as_json: bool) -> None:
    """Compute the means of graded benchmarks, such as MT-Bench.

    A null score is an answer of the judge that could not be parsed: it is dropped and counted. The mean of a model is
    the unweighted mean of its benchmarks.
    """
    work = importlib.import_module("togi.commands.evaluate")
    found: Any = work.graded(scores, scales)
    if as_json:
        print_json(found.to_json())
        return
    columns, rows = work.graded_table(found)
    say_table(columns, rows, right=range(1, len(columns)))
    say(
        f"{found.rows:,} rows, {found.failures:,} without a grade; [95 % interval, Student's t over questions] (grades)"
    )
