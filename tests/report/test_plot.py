"""Plots: ticks, gaps, smoothing, stacking, and the rail of the graph."""

import re

import pytest

from togi.report.curves import panels
from togi.report.plot import Line, nice_ticks, plot, reach, tick_labels, whisker
from togi.report.stage_graph import LANE, rail
from togi.report.view import IntervalView, RowView, StageView


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]),
        (0.0, 63.0, [0, 20, 40, 60, 80]),
        (-0.031, 0.044, [-0.04, -0.02, 0, 0.02, 0.04, 0.06]),
        (5.0, 5.0, [4.5, 4.75, 5, 5.25, 5.5]),
    ],
)
def test_ticks_are_round_and_cover_the_values(low, high, expected):
    assert nice_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 1e-9, -3e12, 1e300])
def test_any_constant_has_ticks(value):
    ticks = nice_ticks(value, value)
    assert ticks[0] <= value <= ticks[-1]
    assert 2 <= len(ticks) <= 8


def test_a_value_that_is_not_finite_is_a_gap_and_is_counted():
    metrics = [{"step": i, "loss": float("nan") if i == 3 else float(i)} for i in range(1, 7)]
    (panel,) = panels(StageView(name="a", type="train", state="done", metrics=metrics))
    assert len(re.findall(r'class="line', panel.svg)) == 2
    assert panel.note == "1 value not finite"
    assert "nan" not in panel.svg


def test_one_point_and_rates_of_nothing_are_no_panel_and_a_lonely_step_is_a_dot():
    lines = [
        {"step": 1, "loss": 0.5, "kl": None, "entropy": 1.0, "tokens_per_second": 0.0},
        {"step": 2, "loss": None, "tokens_per_second": 0.0},
        {"step": 3, "loss": 0.4},
    ]
    made = panels(StageView(name="a", type="train", state="done", metrics=lines))
    assert [panel.title for panel in made] == ["Loss"]
    assert made[0].svg.count('class="dot') == 2


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 3e-17), (1e-14, 3e-14), (-2e-16, 1e-16), (5e-300, 9e-300), (1e12, 1e12 + 1)]
)
def test_ticks_of_any_size_differ_and_have_labels(low, high):
    """Log-probabilities of sampler and trainer really differ by such small amounts."""
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low <= high <= ticks[-1] and len(set(ticks)) == len(ticks)
    assert len(set(tick_labels(ticks)[0])) == len(ticks)


@pytest.mark.parametrize(
    ("ticks", "labels", "power"),
    [
        ([-2e-5, -1e-5, 0.0, 1e-5], ["−2", "−1", "0", "1"], "×10⁻⁵"),
        ([0.0005, 0.001, 0.0015, 0.002], ["0.5", "1.0", "1.5", "2.0"], "×10⁻³"),
        ([100_000.0, 100_000.5, 100_001.0], ["1.000000", "1.000005", "1.000010"], "×10⁵"),
        ([0.3, 0.3005, 0.301], ["0.3000", "0.3005", "0.3010"], ""),
        ([0.0, 2.5, 5.0], ["0", "2.5", "5.0"], ""),
        ([-200.0, 0.0, 200.0], ["−200", "0", "200"], ""),
    ],
)
def test_labels_of_ticks_differ_and_keep_their_sign(ticks, labels, power):
    assert tick_labels(ticks) == (labels, power)


def test_the_margin_has_room_for_the_longest_label():
    points = [(0.0, -100_000.0), (1.0, -100_001.0)]
    svg = plot("a", [Line(points=points)], [], (), ())
    found = re.findall(r'<text x="(\d+)"[^>]*text-anchor="end">([^<]+)</text>', svg)
    assert all(int(x) >= 6 * len(label) for x, label in found[:-1])


def test_known_panels_come_first_and_unforeseen_ones_are_kept():
    line = {"my/own": 1.0, "time/b": 1.0, "time/a": 2.0, "gate/x/pass": 0.5}
    reward = {"reward/total/mean": 1.0, "reward/total/p10": 0.0, "reward/total/p90": 2.0}
    metrics = [{"step": step, **line, **reward} for step in range(3)]
    made = panels(StageView(name="a", type="train", state="done", metrics=metrics))
    assert [(panel.title, panel.known) for panel in made] == [
        ("Reward", True),
        ("Gate pass rate", True),
        ("Time by phase", True),
        ("my / own", False),
    ]
    assert 'class="band' in made[0].svg
    assert [entry[1:] for entry in made[2].legend] == [("b", "3.0 s"), ("a", "6.0 s")]


def test_validation_stands_beside_training_and_both_answers_in_one_panel():
    line = {"loss": 1.0, "validation/loss": 2.0, "logp_chosen": -1.0, "logp_rejected": -2.0, "validation/bits": 0.5}
    made = panels(StageView(name="a", type="train", state="done", metrics=[{"step": 1, **line}, {"step": 2, **line}]))
    assert [(panel.title, [entry[1] for entry in panel.legend]) for panel in made] == [
        ("Log-probability of both answers (nats per token)", ["logp chosen", "logp rejected"]),
        ("Loss", ["loss", "validation loss"]),
        ("Validation: bits", []),
    ]


def test_scores_of_both_answers_share_a_panel_and_names_have_no_underscores():
    line = {
        "score_chosen": 1.0,
        "score_rejected": 0.0,
        "validation/score_chosen": 1.0,
        "validation/score_rejected": 0.0,
    }
    line |= {"validation/gate_rate": 0.5, "validation/nll": 2.0, "nll": 2.0}
    made = panels(StageView(name="a", type="train", state="done", metrics=[{"step": 1, **line}, {"step": 2, **line}]))
    assert [(panel.title, panel.known) for panel in made] == [
        ("Scores of both answers", True),
        ("Validation: scores of both answers", True),
        ("Validation: gate rate", True),
        ("nll", False),
        ("validation / nll", False),
    ]


def test_a_metric_that_begins_late_is_no_error():
    metrics = [{"step": 1, "time/a": 1.0}, {"step": 2, "time/a": 1.0, "time/save": 4.0}]
    (panel,) = panels(StageView(name="a", type="train", state="done", metrics=metrics))
    assert [entry[1] for entry in panel.legend] == ["a", "save"]


def test_long_curves_are_thinned_and_alarms_marked():
    metrics = [{"step": s, "kl": s * 1e-5} for s in range(5000)]
    (panel,) = panels(StageView(name="a", type="train", state="done", metrics=metrics))
    assert len(panel.svg) < 12_000
    svg = plot("x", [Line(points=[(0, 0.0), (10, 1.0)])], [], (), [5])
    assert svg.count("alarm-mark") == 1


def test_titles_are_escaped():
    assert 'aria-label="&#34;&lt;' in plot('"<', [Line(points=[(0, 1.0)])], [], (), [])


def test_the_whisker_has_zero_in_the_middle():
    value = IntervalView(mean=-1.0, low=-2.0, high=0.5, level=0.95, n=9)
    assert 'd="M4.0 9H74.0"' in whisker(RowView(metric="x", policy=value, difference=value))
    assert whisker(RowView(metric="x", policy=value)) == ""


def _stages(**inputs):
    return [StageView(name=name, type="t", state="done", inputs=found) for name, found in inputs.items()]


def test_neighbours_need_no_lane_and_overlapping_reaches_need_one_each():
    chain = rail(_stages(a=[], b=["a"], c=["b"]))
    crossed = rail(_stages(a=[], b=["a"], c=["a"], d=["b"], e=["c", "a"]))
    assert crossed.width == chain.width + 3 * LANE
    assert rail(_stages(a=[], b=[], c=["a"], d=[], e=["c"])).width == chain.width + LANE


def test_inputs_that_are_no_stage_of_the_run_are_left_out():
    assert "edge" not in rail(_stages(a=["somewhere"], b=["else"])).svg


def test_a_share_is_drawn_between_0_and_1_and_a_difference_between_minus_1_and_1():
    def drawn(low, mean, high):
        return reach(RowView(metric="x", policy=IntervalView(mean=mean, low=low, high=high, level=0.95, n=9)))

    share = drawn(0.25, 0.5, 1.0)
    assert 'class="reach" d="M32.0 9H116.0"' in share and 'cx="60.0"' in share and share.count("zero") == 3
    difference = drawn(-0.5, 0.0, 0.5)
    assert (
        'class="reach" d="M32.0 9H88.0"' in difference and 'cx="60.0"' in difference and difference.count("zero") == 4
    )
    assert drawn(0.5, 20.0, 30.0) == "" and drawn(-2.0, 0.0, 0.5) == ""
