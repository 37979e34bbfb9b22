"""Reading a run's folder: what is missing is left out, what is wrong is an error."""

import json

import pytest
from report_fake_run import STAGES as MADE_UP
from report_fake_run import write_run

from togi.core.errors import InputError
from togi.report.collect import collect
from togi.stages.table import STAGES


def test_the_made_up_run_drops_records_as_stages_do():
    for name, kind, *_, drops in MADE_UP:
        assert set(drops) <= set(STAGES[kind].reasons), name


def _stage(run, name):
    return next(stage for stage in run.stages if stage.name == name)


def _folder(run, name):
    stages = json.loads((run / "state.json").read_text())["stages"]
    return next(stage["folder"] for stage in stages if stage["name"] == name)


def test_a_finished_run_is_read_whole(tmp_path):
    run = collect(write_run(tmp_path))
    assert (run.name, run.state, len(run.stages)) == ("quickstart", "done", 11)
    questions = _stage(run, "questions")
    assert (questions.counts_in, questions.counts_out, questions.drops["too_short"]) == (412, 301, 31)
    assert questions.files == {"output/records.parquet": "ab" * 32}
    policy = _stage(run, "policy")
    assert len(policy.metrics) == 48
    assert policy.alarms[0].step == 14
    assert [row.verdict for row in run.rows][:6] == ["better", "better", "better", "changed", "unclear", "worse"]
    assert _stage(run, "reward").summary == {"accuracy": {"held_out": 0.83, "shuffled": 0.51}}


def test_a_part_named_validation_is_no_record_held_out(tmp_path):
    run = write_run(tmp_path)
    counts = {"in": 3, "out": 3, "train": 2, "validation": 1}
    (run / _folder(run, "questions") / "summary.json").write_text(json.dumps({"counts": counts}))
    assert _stage(collect(run), "questions").held_out == 0


def test_what_is_not_there_yet_is_left_out_and_a_torn_line_too(tmp_path):
    run = collect(write_run(tmp_path, state="failed", stop_at="policy"))
    policy, scores = _stage(run, "policy"), _stage(run, "scores")
    assert (policy.state, len(policy.metrics), policy.seconds) == ("failed", 17, None)
    assert (scores.state, scores.settings, scores.rows) == ("waiting", {}, [])


def test_a_finished_stage_whose_summary_is_gone_is_told(tmp_path):
    run = write_run(tmp_path)
    path = tmp_path / "store" / _folder(run, "questions").split("/")[-1] / "summary.json"
    path.unlink()
    (alarm,) = _stage(collect(run), "questions").alarms
    assert alarm.name == "damaged file" and f"{path}: is gone, although the stage is done" in alarm.message


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("summary.json", '{"counts": {"in": "many"}}', "counts.in"),
        ("summary.json", '{"drops": ["too_short"]}', "drops"),
        ("summary.json", '{"table": [{"metric": "reward"}]}', "table.0.policy"),
        ("summary.json", '{"answers": [{"question": "?", "base": null, "policy": ""}]}', "answers.0.base"),
        ("summary.json", "{", "not JSON"),
        ("metrics.jsonl", '{"loss": 1.0}\n', "1 lines have no numeric step"),
        ("metrics.jsonl", '{"step": 1}\n{"step": \n{"step": 3}\n', "not JSON"),
        ("metrics.jsonl", '{"step": 1, "loss": [1]}\n', "loss"),
        ("alarms.jsonl", '{"name": "length"}\n', "message"),
        ("settings.json", "[]", "the whole file"),
        ("settings.json", "", "it is empty"),
        ("numerics.json", "null", "the whole file"),
        ("memory.json", '{"measured": 1', "not JSON"),
        ("DONE", b"\xff\xfe{}", "not JSON"),
    ],
)
def test_what_is_wrong_is_left_out_and_told(tmp_path, file, content, expected):
    run = write_run(tmp_path)
    path = tmp_path / "store" / _folder(run, "policy").split("/")[-1] / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (alarm,) = [alarm for _, alarm in collect(run).alarms if alarm.name == "damaged file"]
    assert str(path) in alarm.message and expected in alarm.message


def test_a_home_that_was_moved_is_read_where_it_is(tmp_path):
    write_run(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    run = collect(tmp_path / "after" / "runs" / "quickstart")
    assert len(_stage(run, "policy").metrics) == 48 and _stage(run, "policy").settings["learning_rate"] == 1e-5


def test_a_folder_without_a_run_and_an_unknown_state_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        collect(tmp_path)
    (tmp_path / "state.json").write_text('{"name": "x", "state": "fine", "stages": []}')
    with pytest.raises(InputError, match=r"state.json: state"):
        collect(tmp_path)
