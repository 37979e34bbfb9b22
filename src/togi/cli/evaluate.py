"""`togi evaluate`: measures models on benchmarks; its subcommands read stored verdicts and grades."""

import importlib
from pathlib import Path
from typing import Any

import click

from togi.cli.common import json_option, print_json
from togi.cli.measure import OrModel, measure
from togi.core.tables import say_table
from togi.core.terminal import say

FILE = click.Path(path_type=Path)


@click.group(cls=OrModel, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Measure a model on benchmarks, or compute a benchmark's figures from stored verdicts and grades.

    With a MODEL as the first word, the command makes and runs a recipe of one stage. arena, alpaca and graded ask no
    model: they read files of JSON Lines, JSON, CSV, TSV or Parquet, optionally compressed (.gz). Unusable rows are
    counted by reason; an em dash (null with --json) marks undefined figures.
    """


command.add_command(measure)


@command.command()
@click.option("--battles", type=FILE, metavar="FILE", help="Rows in the arena-hard layout.")
@click.option("--judgments", type=FILE, metavar="PATH", help="A file or folder of judgments, two games per question.")
@click.option(
    "--rules",
    type=click.Choice(["v0.1", "v2"]),
    default="v0.1",
    help="Rules that turn judgments into battles: those of arena-hard v0.1 and Ru-Arena, the default, or of v2.",
)
@click.option(
    "--baseline", metavar="MODEL", help="The model with a win rate of 50 %.  [default: the one in every battle]"
)
@click.option("--answers", type=FILE, metavar="PATH", help="A file or folder of answers, for their mean tokens.")
@click.option("--length-control", is_flag=True, help="Weight won games by the lengths of answers, as Ru-Arena does.")
@click.option(
    "--style-control",
    type=click.Choice(["length", "markdown", "both"]),
    help="Win rates without the effect of the length or markup of answers: arena-hard's regression, by --rules.",
)
@click.option(
    "--leaked", type=FILE, metavar="FILE", help="Rows of model, question_id: questions that models were trained on."
)
@click.option(
    "--resample",
    type=click.Choice(["question", "row", "model"]),
    default="question",
    help="Unit of the bootstrap: questions with all their games, the default; rows, as in published arenas; or the "
    "rows of each model separately, as in arena-hard v2.",
)
@click.option("--level", type=click.FloatRange(0.5, 0.999), default=0.95, help="Level of intervals.  [default: 0.95]")
@click.option("--rounds", type=click.IntRange(100, 100_000), default=1000, help="Bootstrap rounds.  [default: 1000]")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of the bootstrap.  [default: 0]")
@click.option("--published", metavar="TABLE", help="Show a card's published win rates next to these.")
@click.option("--save-battles", type=FILE, metavar="FILE", help="Write the battles to a file in the arena-hard layout.")
@click.option("--plot", type=FILE, metavar="FILE", help="Write the leaderboard as an SVG plot with error bars.")
@json_option
def arena(plot: Path | None, published: str | None, as_json: bool, **options: Any) -> None:
    """Rank models by their battles against a baseline.

    Columns of battles: model_a, model_b, winner (model_a, model_b, tie), and question_id. A repeated row counts again:
    this is how the layout weights a clear win. Win rates come from a Bradley-Terry model; the baseline has 50 % and Elo
    1000.
    """
    work = importlib.import_module("togi.commands.evaluate")
    told = work.table_of(published, "win rate")
    found = work.arena_of(options)
    if plot:
        work.save_plot(plot, found, told)
    if as_json:
        print_json(found.to_json() | ({"published": told.to_json()} if told else {}))
        return
    columns, rows = work.arena_table(found, told)
    say_table(columns, rows, right=range(1, len(columns)))
    for note in [*work.arena_notes(found), *([work.source_note(told)] if told else [])]:
        say(note)


@command.command()
@click.option("--preferences", type=FILE, required=True, metavar="FILE", help="Rows of model, i, preference.")
@click.option("--weights", type=FILE, metavar="FILE", help="Weights of the length-controlled model, for each model.")
@click.option("--difficulty", type=FILE, metavar="FILE", help="The difficulty of each instruction.")
@click.option("--fit", is_flag=True, help="Fit the weights; rows need len_baseline and len_model (characters).")
@click.option("--anchors", type=FILE, metavar="FILE", help="Rows of models that only changed length, for --fit.")
@json_option
def alpaca(preferences: Path, as_json: bool, **options: Any) -> None:
    """Compute AlpacaEval 2 win rates, raw and length-controlled.

    A preference is the probability, 0 to 1, that the model's answer to instruction i is better than the baseline's;
    null means that there is no preference. Without --weights or --fit there is no length-controlled rate.
    """
    work = importlib.import_module("togi.commands.evaluate")
    found = work.alpaca(preferences, **options)
    if as_json:
        print_json(found.to_json())
        return
    columns, rows = work.alpaca_table(found)
    say_table(columns, rows, right=range(1, 7))
    for note in work.alpaca_notes(found):
        say(note)


@command.command()
@click.option("--scores", type=FILE, required=True, metavar="FILE", help="Rows with model, bench, i, score.")
@click.option("--scale", "scales", multiple=True, metavar="BENCH=N", help="Multiply a benchmark's grades; repeatable.")
@click.option("--published", metavar="TABLE", help="Show a card's published scores next to the means.")
@json_option
def graded(scores: Path, scales: tuple[str, ...], published: str | None, as_json: bool) -> None:
    """Compute the means of graded benchmarks, such as MT-Bench.

    A null score is a judge's answer that could not be parsed: it is dropped and counted. The mean of a model is the
    unweighted mean of its benchmarks.
    """
    work = importlib.import_module("togi.commands.evaluate")
    told = work.table_of(published, "score")
    found: Any = work.graded(scores, scales)
    if as_json:
        print_json(found.to_json() | ({"published": told.to_json()} if told else {}))
        return
    columns, rows = work.graded_table(found, told)
    say_table(columns, rows, right=range(1, len(columns)))
    say(
        f"{found.rows:,} rows, {found.failures:,} without a grade; [95 % interval, Student's t over questions] (grades)"
    )
    if told:
        say(work.source_note(told))
