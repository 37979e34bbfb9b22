"""The fate of the records of a run, stage by stage."""

import pytest

from togi.report.html import render_report
from togi.report.view import RunView, SourceView, StageView
from togi.report.waterfall import licences, lost, waterfall

SAFE = SourceView(dataset="safe", licence="CC-BY", terms="for safety only", inherit=True, records=3)


def stage(name: str, came: int | None, went: int | None, adds_up: bool = False, **drops: int) -> StageView:
    return StageView(
        name=name, type="x", state="done", counts_in=came, counts_out=went, drops=drops, adds_up=adds_up, sources=[SAFE]
    )


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        (stage("a", 10, 7, True, short=3), 0),
        (stage("a", 10, 6, True, short=3), 1),
        (stage("a", 10, 8, True, short=3), -1),
        (stage("a", 10, 0, True, short=9), 1),
        (stage("a", 10, 9, True), 1),
        (stage("a", 10, 12, short=3), 0),  # a stage that makes records
        (stage("a", 10, 5), 0),  # a stage that selects records
        (stage("a", None, 5, True), 0),
    ],
)
def test_records_add_up_where_they_must(seen: StageView, wanted: int) -> None:
    assert lost(seen) == wanted


def test_a_source_without_a_licence_is_named_too() -> None:
    told = licences([SourceView(dataset="a.jsonl", licence="MIT"), SourceView(dataset="b.parquet"), SAFE])
    assert told == "a.jsonl (MIT); b.parquet (licence not stated); safe (CC-BY, for safety only, binding)"


def test_every_stage_that_counts_has_a_step_and_the_page_names_what_binds() -> None:
    stages = [stage("drafts", None, 10), stage("good", 10, 5, True, short=3, long=1), stage("model", None, None)]
    run = RunView(name="r", state="done", stages=stages)
    steps = waterfall(run)
    assert [(step.stage.name, step.came, step.went, step.dropped, step.lost) for step in steps] == [
        ("drafts", None, 10, 0, 0),
        ("good", 10, 5, 4, 1),
    ]
    assert steps[1].drops == [("short", 3), ("long", 1)]
    assert licences([SAFE, SAFE]) == "safe (CC-BY, for safety only, binding)"
    page = render_report(run)
    assert (
        "without a reason 1" in page and "<li>safe (CC-BY, for safety only, binding): drafts, good, model</li>" in page
    )
