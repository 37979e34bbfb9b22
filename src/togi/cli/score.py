"""`togi score`: scores the answers in a file with a reward model."""

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import click

from togi.cli.common import bad_rows_option, json_option, print_json
from togi.cli.measure import named_as, run_made
from togi.core.codec import read_records
from togi.core.files import read_object
from togi.core.records import Sample
from togi.core.tables import say_table
from togi.core.terminal import say
from togi.report.formatting import plural
from togi.stages.base import RECORDS_FILE

SHOWN = 60  # characters of a text in the table


@click.command()
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--revision", help="Revision of a hub's or a server's model.  [default: main]")
@click.option("--key-env", metavar="NAME", help="Environment variable with the key of a server.  [default: no key]")
@bad_rows_option
@json_option
def command(model: str, file: Path, revision: str | None, key_env: str | None, on_bad_row: str, as_json: bool) -> None:
    """Score the answers in FILE with a reward model.

    MODEL is a model folder, RECIPE:STAGE, package:NAME, a hub id, or URL#NAME of a server. Rows have a prompt and an
    answer, or messages that end with the assistant. An answer gets the same score alone, in a batch, and from
    transformers for the same rendered text. A text that is longer than the model's context gets no score, and is
    counted.
    """
    work = importlib.import_module("togi.commands.measure")
    graph = work.score_graph(named_as(work, model, revision, key_env, reward=True), file, on_bad_row)
    run = run_made(graph, as_json, "float32")
    folder = run.store / graph.nodes[work.STAGE].folder_name
    samples = [each for each in read_records(folder / RECORDS_FILE)[1] if isinstance(each, Sample)]
    counts = Counter(read_object(folder / "summary.json").get("drops", {}))
    dropped = sum(map(Counter, work.bad_rows(graph, run.store).values()), counts)
    rows = [(sample.prompt.text, sample.text, sample.scores[work.SCORE]) for sample in samples]
    if as_json:
        print_json(_json(rows, dropped, run.id))
        return
    table = [[f"{score:.4f}", _short(question), _short(answer)] for question, answer, score in rows]
    say_table(("score", "question", "answer"), table, right=(0,))
    told = [plural(len(rows), "answer"), *(f"{reason} {count:,}" for reason, count in dropped.items())]
    say(f"{', '.join(told)}; run {run.id}")


def _json(rows: Any, dropped: dict[str, int], run: str) -> dict[str, Any]:
    scores = [{"prompt": question, "answer": answer, "score": score} for question, answer, score in rows]
    return {"rows": len(rows) + sum(dropped.values()), "dropped": dropped, "scores": scores, "run": run}


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}\N{HORIZONTAL ELLIPSIS}"
