"""Learning curves: which curves share a panel, their colours, and the words of their legend."""

from togi.report.curves import panels
from togi.report.view import StageView


def drawn(**values: float):
    """The panels of two steps with the same values."""
    lines = [{"step": step, **{key.replace("__", "/"): value for key, value in values.items()}} for step in (1, 2)]
    return panels(StageView(name="policy", type="train.grpo", state="done", metrics=lines))


def test_phases_that_take_no_time_are_left_out():
    (panel,) = drawn(time__sample=4.0, time__update=2.0, time__validation=0.001)
    assert [label for _, label, _ in panel.legend] == ["sample", "update"]
    (panel,) = drawn(time__sample=0.0, time__update=0.0)
    assert panel.latest == "0.0 s"


def test_phases_have_colours_of_their_own_and_the_shortest_are_one():
    (panel,) = drawn(**{f"time__phase{n}": 1.0 + n for n in range(9)})
    colours = [colour for colour, _, _ in panel.legend]
    assert len({colour % 6 for colour in colours}) == len(colours) == 6
    assert panel.legend[-1][1:] == ("other", "20 s")  # phases 0 to 3, in both steps


def test_an_axis_of_zeros_has_no_negative_numbers():
    (panel,) = drawn(groups__refilled=0, groups__refill_rounds=0)
    assert "\u2212" not in panel.svg and [label for _, label, _ in panel.legend] == ["refilled", "refill rounds"]


def test_a_legend_has_words_and_no_keys():
    (panel,) = drawn(loss=1.0, validation__loss=2.0)
    assert [label for _, label, _ in panel.legend] == ["loss", "validation loss"]
