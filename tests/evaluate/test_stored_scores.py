"""Graded and AlpacaEval files: published figures from real files, and unusable rows."""

import gzip
import json
import math

import pytest
from stored_verdicts import SHARED, needs_shared, write_jsonl

from togi.core.errors import InputError
from togi.evaluate.alpaca import read_alpaca
from togi.evaluate.graded import read_graded


def graded(path, rows, scales=None):
    names = ("model", "bench", "i", "score")
    return read_graded(
        write_jsonl(path / "s.jsonl", [dict(zip(names, row, strict=True)) for row in rows]), scales or {}
    )


def alpaca(path, rows, weights=None, difficulty=None):
    rows = [dict(zip(("model", "i", "preference"), row, strict=True)) for row in rows]
    files = [None, None]
    for place, value in enumerate((weights, difficulty)):
        if value is not None:
            files[place] = path / f"{place}.json"
            files[place].write_text(json.dumps(value))
    return read_alpaca(write_jsonl(path / "p.jsonl", rows), *files)


@needs_shared
def test_four_japanese_benchmarks_of_eleven_models_come_out_to_the_printed_digits():
    folder = SHARED / "shaberi_turbo"
    found = read_graded(folder / "scores.jsonl", {"elyza__ELYZA-tasks-100": 2.0})
    names = (
        "elyza__ELYZA-tasks-100",
        "yuzuai__rakuda-questions",
        "lightblue__tengu_bench",
        "shisa-ai__ja-mt-bench-1shot",
    )
    published = json.loads((folder / "published.json").read_text())["models"]
    assert len(published) == 11
    for model, figures in published.items():
        ours = [*(found.benches[model][name].mean for name in names), found.means[model][0]]
        assert [f"{value:.2f}" for value in ours] == [f"{value:.2f}" for value in figures], model
    assert (found.rows, found.failures) == (3740, 9)


@needs_shared
def test_alpaca_eval_of_ten_models_comes_out():
    folder = SHARED / "alpaca_eval_sample"
    found = read_alpaca(folder / "preferences.jsonl.gz", folder / "weights.json", folder / "difficulty.json")
    published = json.loads((folder / "published.json").read_text())
    assert list(found.models) == list(published) and len(published) == 10
    for name, figures in published.items():
        model = found.models[name].to_json()
        for key, value in figures.items():
            if value is not None:
                assert model[key] == pytest.approx(value, abs=1e-6), (name, key)
        assert model["low"] < model["win_rate"] < model["high"]


def test_grades_are_scaled_averaged_and_their_failures_counted(tmp_path):
    rows = [("m", "a", 0, 3), ("m", "a", 1, 5), ("m", "a", 2, None), ("m", "b", 0, 7), ("m", "b", 1, 8)]
    found = graded(tmp_path, rows, {"a": 2.0}).to_json()
    assert found["dropped"] == {"parse_failure": 1} and found["rows"] == 5
    benches = found["models"]["m"]["benches"]
    assert (benches["a"]["mean"], benches["a"]["n"], benches["a"]["failures"]) == (8.0, 2, 1)
    assert found["models"]["m"]["mean"] == pytest.approx((8.0 + 7.5) / 2)


def test_several_grades_of_a_question_are_rounds_and_do_not_narrow(tmp_path):
    once = graded(tmp_path, [("m", "a", i, i % 7) for i in range(20)]).benches["m"]["a"]
    thrice = graded(tmp_path, [("m", "a", i, i % 7) for i in range(20)] * 3).benches["m"]["a"]
    assert (thrice.n, thrice.questions, once.n) == (60, 20, 20)
    assert thrice.interval.low == pytest.approx(once.interval.low)


def test_ids_that_a_tool_wrote_as_floats_are_the_same_ids(tmp_path):
    found = graded(tmp_path, [("m", "a", 0, 3), ("m", "a", 0.0, 5), ("m", "a", 1.0, 4)]).benches["m"]["a"]
    assert (found.n, found.questions) == (3, 2)


def test_weights_and_difficulties_may_begin_with_a_mark_of_byte_order(tmp_path):
    files = [tmp_path / "w.json", tmp_path / "d.json"]
    for path, value in zip(files, ({"m": dict.fromkeys(("length", "difficulty", "model"), 0)}, [1.0]), strict=True):
        path.write_text(json.dumps(value), encoding="utf-8-sig")
    rows = write_jsonl(tmp_path / "p.jsonl", [{"model": "m", "i": 0, "preference": 0.5}])
    assert read_alpaca(rows, *files).models["m"].controlled == 50.0


def test_what_is_not_defined_is_null_and_counted(tmp_path):
    rows = [("m", "a", 0, None), ("m", "b", 0, 4), ("o", "a", 0, 2), ("o", "a", 1, 2)]
    found = graded(tmp_path, rows).to_json()["models"]
    assert (found["m"]["benches"]["a"]["mean"], found["m"]["benches"]["a"]["failures"]) == (None, 1)
    assert (found["m"]["benches"]["b"]["mean"], found["m"]["benches"]["b"]["low"]) == (4.0, None)  # one question
    assert (found["o"]["benches"]["a"]["mean"], found["o"]["benches"]["a"]["low"]) == (2.0, None)  # no variance
    assert found["m"]["mean"] is None and found["o"]["mean"] is None  # one benchmark has no grade, or is missing
    assert "NaN" not in json.dumps(found)


def test_preferences_give_a_mean_and_a_prediction_at_equal_length(tmp_path):
    weights = {"m": {"length": -1.0, "difficulty": 0.5, "model": 0.2}}
    rows = [("m", 0, 1.0), ("m", 2, 0.5), ("m", 1, None)]
    model = alpaca(tmp_path, rows, weights, {"instruction_difficulty": [1.0, 0.0, -1.0]}).models["m"]
    predicted = [100 / (1 + math.exp(-value)) for value in (0.7, -0.3, 0.2)]
    assert (model.win_rate, model.n, model.missing) == (75.0, 2, 1)
    assert model.controlled == pytest.approx(sum(predicted) / 3)
    assert alpaca(tmp_path, rows, weights).models["m"].controlled == pytest.approx(100 / (1 + math.exp(-0.2)))
    bare = alpaca(tmp_path, rows).models["m"]
    assert (bare.controlled, bare.standard_error) == (None, None)


def test_weights_may_be_packed(tmp_path):
    (tmp_path / "w.json.gz").write_bytes(gzip.compress(b'{"m": {"length": 1, "difficulty": 0, "model": 0}}'))
    rows = write_jsonl(tmp_path / "p.jsonl", [{"model": "m", "i": 0, "preference": 1}])
    assert read_alpaca(rows, tmp_path / "w.json.gz", None).models["m"].controlled == 50.0
    (tmp_path / "x.json.gz").write_text("{}")
    with pytest.raises(InputError, match=r"x.json.gz: not a gzipped JSON file"):
        read_alpaca(rows, tmp_path / "x.json.gz", None)


def test_a_model_without_any_preference_is_null(tmp_path):
    found = alpaca(tmp_path, [("m", 0, None), ("o", 0, 0.25)]).to_json()
    assert found["models"]["m"]["win_rate"] is None and found["dropped"] == {"no_preference": 1}
    assert (found["models"]["o"]["win_rate"], found["models"]["o"]["low"]) == (25.0, None)


@pytest.mark.parametrize(
    ("rows", "weights", "difficulty", "message"),
    [
        ([("m", 0, 1.5)], None, None, r"p.jsonl:1: preference: found 1.5; expected a number from 0 to 1, or null"),
        ([("m", 0, 1), ("m", 0, 1)], None, None, r"p.jsonl:2: model m, i 0: duplicate of .*p.jsonl:1; keep one"),
        ([("m", 0.5, 1)], None, None, r"p.jsonl:1: i: found 0.5; expected the index"),
        ([("m", 0, 1)], {"x": {}}, None, r"0.json: no weights for model m; found x"),
        ([("m", 0, 1)], {"m": {"model": 1, "length": 1}}, None, r"0.json: m: difficulty: found model, length"),
        ([("m", 0, 1)], [1], None, r"0.json: found \[1\]"),
        ([("m", 3, 1)], {"m": dict.fromkeys(("model", "length", "difficulty"), 1)}, [1, 2], "has instructions 0 to 1"),
        ([("m", 0, 1)], None, {"d": [1]}, r"1.json: found d; expected"),
        ([("m", 0, 1)], None, [], r"1.json: found \[\]; expected"),
        ([("m", 0, 1)], None, [0.5, math.nan], r"1.json: the difficulty of instruction 1: found nan; expected a num"),
        ([("m", 0, 1)], {"m": {"model": math.nan, "length": 1, "difficulty": 1}}, None, r"0.json: m: model: found nan"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, rows, weights, difficulty, message):
    with pytest.raises(InputError, match=message):
        alpaca(tmp_path, rows, weights, difficulty)


@pytest.mark.parametrize(
    ("rows", "scales", "message"),
    [
        ([("m", "a", 0, "good")], {}, r"s.jsonl:1: score: found 'good'; expected a number, or null"),
        ([("m", "a", 0, True)], {}, r"s.jsonl:1: score: found True"),
        ([("m", "a", 0, 1e308)], {}, r"s.jsonl:1: score: found 1e\+308; expected a number from -1e\+60 to"),
        ([("m", "a", 0.5, 1)], {}, r"s.jsonl:1: i: found 0.5; expected text"),
        ([("", "a", 0, 1)], {}, r"s.jsonl:1: model: found ''"),
        ([("m", "a", 0, 1)], {"b": 2.0}, r"--scale b: no such benchmark in .*; found a"),
    ],
)
def test_scores_that_do_not_fit_are_named(tmp_path, rows, scales, message):
    with pytest.raises(InputError, match=message):
        graded(tmp_path, rows, scales)


def test_grades_near_the_limit_have_intervals_and_larger_ones_are_named(tmp_path):
    """The variance of the mean of benchmarks needs fourth powers of grades."""
    grades = [0.0, 1e60, -1e60, 3e59]
    rows = [{"model": "m", "bench": bench, "i": i, "score": g} for bench in "ab" for i, g in enumerate(grades)]
    mean, interval = read_graded(write_jsonl(tmp_path / "s.jsonl", rows), {}).means["m"]
    assert interval is not None and interval.low < mean < interval.high
    with pytest.raises(InputError, match=r"s.jsonl:2: score: found 1e\+60, times --scale 10; expected a product"):
        read_graded(tmp_path / "s.jsonl", {"a": 10.0})
    path = write_jsonl(tmp_path / "t.jsonl", [rows[0], {**rows[1], "score": 1e99}])
    with pytest.raises(InputError, match=r"t.jsonl:2: score: found 1e\+99; expected a number from -1e\+60 to 1e\+60"):
        read_graded(path, {})
