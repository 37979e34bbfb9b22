"""AlpacaEval's regression, fitted here: it removes what length explains, names anchors and needs no difficulties."""

import json

import numpy as np
import pytest
from stored_verdicts import SHARED, needs_shared, write_jsonl

from togi.commands.evaluate import alpaca_notes
from togi.core.errors import InputError
from togi.evaluate.alpaca import read_alpaca


def preferences(model, *, longer, better, count=400, seed=1):
    """Preferences with log odds of `better` plus 2 x tanh(length difference / its standard deviation), and noise."""
    draw = np.random.default_rng(seed)
    base = draw.integers(500, 1500, size=count)
    own = np.maximum(1, base + draw.normal(longer, 400, size=count).astype(int))
    shorter = (base - own) / (base - own).std(ddof=1)
    chance = 1 / (1 + np.exp(-(better - 2 * np.tanh(shorter))))
    noisy = np.clip(chance + draw.normal(0, 0.05, size=count), 0, 1)
    rows = zip(noisy.tolist(), base.tolist(), own.tolist(), strict=True)
    return [
        {"model": model, "i": i, "preference": p, "len_baseline": b, "len_model": o} for i, (p, b, o) in enumerate(rows)
    ]


def test_a_model_that_is_only_longer_is_even_at_equal_length(tmp_path):
    rows = [*preferences("long", longer=400, better=0.0), *preferences("good", longer=400, better=1.0)]
    found = read_alpaca(write_jsonl(tmp_path / "p.jsonl", rows), None, None, fit=True)
    long, good = found.models["long"], found.models["good"]
    assert long.win_rate > 65 and long.controlled == pytest.approx(50, abs=3)
    assert good.controlled == pytest.approx(100 / (1 + np.exp(-1)), abs=3)
    assert long.terms["length"] == pytest.approx(-2.0, abs=0.3) and long.terms["difficulty"] == 0.0
    assert found.to_json()["own_fit"] == {"anchors": {}}


def test_anchors_are_named_with_their_rows_and_hold_the_length_term(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", preferences("m", longer=400, better=0.5, count=100))
    games = [*preferences("gamed-short", longer=-500, better=0.0), *preferences("gamed-long", longer=500, better=0.0)]
    anchors = write_jsonl(tmp_path / "a.jsonl", games)
    found = read_alpaca(path, None, None, fit=True, anchors=anchors)
    assert found.anchors == {"gamed-short": 400, "gamed-long": 400}
    alone = read_alpaca(path, None, None, fit=True).models["m"]
    assert found.models["m"].controlled != alone.controlled
    assert found.models["m"].controlled == pytest.approx(62, abs=4)


def test_difficulties_enter_where_they_are_given(tmp_path):
    rows = preferences("m", longer=0, better=0.0, count=200)
    hard = np.random.default_rng(3).normal(size=200)
    for row, d in zip(rows, hard, strict=True):
        row["preference"] = float(1 / (1 + np.exp(-(0.5 + 0.8 * d))))
    (tmp_path / "d.json").write_text(json.dumps(hard.tolist()))
    found = read_alpaca(write_jsonl(tmp_path / "p.jsonl", rows), None, tmp_path / "d.json", fit=True).models["m"]
    assert found.terms["difficulty"] == pytest.approx(0.8, abs=0.05)
    assert found.terms["model"] == pytest.approx(0.5, abs=0.05)


def test_a_fit_refuses_what_it_cannot_use(tmp_path):
    short = write_jsonl(tmp_path / "s.jsonl", preferences("m", longer=0, better=0.0, count=4))
    with pytest.raises(InputError, match="--fit: m has 4 preferences; at least 5 are needed"):
        read_alpaca(short, None, None, fit=True)
    bare = write_jsonl(tmp_path / "b.jsonl", [{"model": "m", "i": 0, "preference": 0.5}])
    with pytest.raises(InputError, match=r"b.jsonl:1: no column 'len_baseline', 'len_model'"):
        read_alpaca(bare, None, None, fit=True)
    rows = [{"model": "m", "i": 0, "preference": 0.5, "len_baseline": None, "len_model": 3}]
    with pytest.raises(InputError, match=r"n.jsonl:1: len_baseline, len_model: found null"):
        read_alpaca(write_jsonl(tmp_path / "n.jsonl", rows), None, None, fit=True)


def test_equal_lengths_and_equal_preferences_are_defined(tmp_path):
    rows = [{"model": "m", "i": i, "preference": 0.5, "len_baseline": 10, "len_model": 10} for i in range(10)]
    found = read_alpaca(write_jsonl(tmp_path / "p.jsonl", rows), None, None, fit=True).models["m"]
    assert (found.win_rate, found.controlled) == (50.0, pytest.approx(50.0))


@pytest.mark.slow
@needs_shared
def test_without_the_published_anchors_rates_of_real_models_are_near_the_published_ones():
    """Not equal: the published fit has two anchors that are not public."""
    folder = SHARED / "alpaca_eval_sample"
    published = json.loads((folder / "published.json").read_text())
    found = read_alpaca(folder / "preferences.jsonl.gz", None, folder / "difficulty.json", fit=True)
    apart = {name: one.controlled - published[name]["length_controlled_winrate"] for name, one in found.models.items()}
    assert len(apart) == 10 and max(map(abs, apart.values())) < 5


def test_preferences_that_are_all_one_are_refused_and_a_fold_of_them_is_silent(tmp_path, capfd):
    rows = preferences("m", longer=0, better=0.0, count=40)
    for place, row in enumerate(rows):
        row["preference"] = float(place != 3)
    fit = read_alpaca(write_jsonl(tmp_path / "p.jsonl", rows), None, None, fit=True).models["m"]
    assert 90 < fit.controlled < 100 and capfd.readouterr() == ("", "")
    rows[3]["preference"] = 1.0
    with pytest.raises(InputError, match="all 40 preferences of m are 1, so length explains nothing"):
        read_alpaca(write_jsonl(tmp_path / "p.jsonl", rows), None, None, fit=True)


def test_a_fit_that_does_not_converge_is_told_once_and_without_warnings(tmp_path, recwarn):
    """Each preference is a step of the length difference."""
    rows = [
        {"model": "m", "i": i, "preference": i / 8, "len_baseline": 50, "len_model": 3 * i + bool(i) * 2 + 5}
        for i in range(9)
    ]
    both = [*rows, *preferences("fine", longer=0, better=0.0, count=40)]
    found = read_alpaca(write_jsonl(tmp_path / "p.jsonl", both), None, None, fit=True)
    assert found.unsettled == ["m"] and found.to_json()["own_fit"] == {"anchors": {}, "not_converged": ["m"]}
    assert not [each for each in recwarn if "converge" in str(each.message)]
    told = [note for note in alpaca_notes(found) if "converge" in note]
    assert len(told) == 1 and "the fit of m did not converge" in told[0]
