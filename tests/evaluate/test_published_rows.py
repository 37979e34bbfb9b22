"""Published rows next to a benchmark's own: they use our columns and units, and appear in no figure."""

import json
from typing import Any

import pytest
from pydantic import TypeAdapter

from togi.cli.benchmarks import benchmark_json, say_benchmark
from togi.evaluate.benchmarks.published_rows import with_published
from togi.evaluate.benchmarks.rag import CORRECT, COUNTS_DIFFER, EXACT, ROUGE
from togi.evaluate.benchmarks.safety import ACCEPTED, SCORE, VIOLATING
from togi.evaluate.benchmarks.table import Cell, Part, Plot, Table
from togi.evaluate.published import of_benchmark, tables
from togi.evaluate.table import Metric
from togi.report.pictures import pictures
from togi.report.view import BenchmarkView
from togi.stages.evaluation.benchmarks.arena import Arena
from togi.stages.evaluation.benchmarks.graded import GradedSet
from togi.stages.evaluation.benchmarks.table import BENCHMARKS

WIN = Metric(name="win rate", higher_is_better=True, share=True)
ELO = Metric(name="Elo", higher_is_better=True)


def table(*columns: Metric, **more: Any) -> Table:
    cells = {"m": {column.name: Cell(value=0.5, low=0.25, high=0.75, n=8) for column in columns}}
    return Table(benchmark="b", columns=columns, cells=cells, rows=8, **more)


def view(found: Table) -> BenchmarkView:
    """The table as a report reads it from the stage's output."""
    return TypeAdapter(BenchmarkView).validate_python(json.loads(json.dumps(found.to_json())))


def test_figures_stand_under_our_columns_in_our_units():
    (told,) = with_published(table(WIN, ELO), ["ru_arena_general"]).published
    vikhr = told.cells["vikhr-nemo-12b-instruct-r-21-09-24"]
    assert list(vikhr) == ["win rate"], "what the card prints besides has no column here"
    cell = vikhr["win rate"]
    assert (cell.value, cell.low, cell.high, cell.n) == (
        pytest.approx(0.798),
        pytest.approx(0.776),
        pytest.approx(0.817),
        0,
    )
    assert "180 of 500" in told.notes["vikhr-nemo-12b-instruct-r-21-09-24"]
    (safe,) = with_published(table(SCORE, ACCEPTED, VIOLATING), ["answer_carefully"]).published
    values = [cell.value for cell in safe.cells["llm-jp-3-8x13b-instruct3"].values()]
    assert values == [4.48, pytest.approx(0.916), pytest.approx(0.043)]


def test_a_mean_of_two_sets_stands_under_the_mean_of_sets():
    micro, sets = (Metric(name=name, share=True) for name in ("accuracy", "accuracy, mean of sets"))
    for columns, name in (((micro, sets), sets.name), ((micro,), micro.name)):
        (told,) = with_published(table(*columns), ["helpsteer3_ja"]).published
        assert {place: cell.value for place, cell in told.cells["cyberagent/ca-reward-3b-ja"].items()} == {name: 0.7032}


def test_rows_of_a_domain_stand_in_the_table_of_that_domain():
    columns = (CORRECT, ROUGE, EXACT, COUNTS_DIFFER)
    part = Part(title="in domain", columns=columns, cells={"m": {"correct": Cell(value=1.0, n=2)}})
    inside, outside = with_published(table(*columns, parts=[part]), of_benchmark("rag")).published
    assert (inside.part, outside.part) == ("in domain", ""), "there is no table of the other domain"
    found = {name: cell.value for name, cell in inside.cells["gpt-4o"].items()}
    assert found == {"correct": 0.73, "ROUGE-L": 0.34, "ids: difference in number": None}


def test_they_are_no_figures_and_change_no_number_of_ours():
    plain = table(WIN)
    told = with_published(plain, ["ru_arena_general"])
    assert told.figures() == plain.figures() and told.cells == plain.cells and told.mark == plain.mark
    assert told.item_figures() == [] and told.differences == {}


def test_the_terminal_marks_them_and_says_where_they_come_from(capsys: pytest.CaptureFixture):
    say_benchmark(view(with_published(table(WIN, ELO), ["ru_arena_general"])))
    lines = capsys.readouterr().out.splitlines()
    (vikhr,) = [line for line in lines if "vikhr-nemo-12b-instruct-r-21-09-24 (published)" in line]
    assert "79.8  77.6 to 81.7" in vikhr and vikhr.rstrip().endswith("\N{EM DASH}")
    text = " ".join(" ".join(lines).split())
    assert "published: Ru-Arena-General, card of Vikhr-Nemo-12B-Instruct-R-21-09-24: 500 Russian questions" in text


def test_json_has_them_in_percent_with_null_where_nothing_is_printed():
    part = Part(title="in domain", columns=(CORRECT, COUNTS_DIFFER), cells={})
    found = benchmark_json(view(with_published(table(CORRECT, parts=[part]), ["grounded_in_domain"])))
    (told,) = found["published"]
    gpt = told["models"]["gpt-4o"]
    assert gpt["correct"]["value"] == pytest.approx(73) and gpt["ids: difference in number"]["value"] is None
    assert "gpt-4o" not in found["models"]


def test_a_leaderboard_draws_them_hollow():
    plot = Plot(kind="leaderboard", columns=["win rate"])
    (picture,) = pictures(view(with_published(table(WIN, plots=[plot]), ["ru_arena_general"])))
    assert picture.drawn.count('<g class="told">') == 12 and picture.drawn.count('class="dot"') == 13


def test_every_table_belongs_to_a_benchmark_that_takes_it():
    assert {one.benchmark for one in tables().values()} <= set(BENCHMARKS)
    assert Arena(questions="$q", published=["ru_arena_general"]).published == ("ru_arena_general",)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'mt_bench_ja' is not a published table of arena; choose from ru_arena"):
        Arena(questions="$q", published=["mt_bench_ja"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="this benchmark has none"):
        GradedSet(questions="$q", published=["mt_bench_ja"])  # type: ignore[arg-type]
