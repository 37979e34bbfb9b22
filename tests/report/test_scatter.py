"""Points with intervals on two axes: their order on the page, the diagonal, and inputs without a picture."""

import re
import xml.etree.ElementTree as ET

import pytest

from togi.report.scatter import Point, Series, scatter


def dots(svg):
    return [
        (int(colour), float(x), float(y))
        for colour, x, y in re.findall(r'<circle class="dot c(\d)" cx="([\d.]+)" cy="([\d.]+)"', str(svg))
    ]


def test_more_is_further_right_and_higher_and_intervals_hold_their_points():
    run = Series(name="run", points=[Point(x=0.5, y=1.0, low=0.5, high=1.5, label="step 10"), Point(x=2.0, y=3.0)])
    best = Series(name="best of n", points=[Point(x=1.0, y=2.0)], dashed=True)
    svg = scatter("frontier", [run, best], across="KL (nats)", up="reward")
    (c1, x1, y1), (_, x2, y2), (c3, x3, y3) = dots(svg)
    assert (c1, c3) == (0, 1) and x1 < x3 < x2 and y1 > y3 > y2
    low, high = (float(y) for y in re.findall(r'class="line faint c0" d="M[\d.]+ ([\d.]+)V([\d.]+)"', str(svg))[0])
    assert high < y1 < low
    assert "step 10" in svg and "KL (nats)" in svg and "reward" in svg


def test_on_a_calibrated_curve_points_lie_on_the_diagonal():
    points = [Point(x=share, y=share) for share in (0.0, 0.5, 1.0)]
    svg = scatter("calibration", [Series(name="m", points=points)], across="said", up="held", diagonal=True)
    ends = re.findall(r'neutral" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', str(svg))[0]
    (_, x0, y0), _, (_, x1, y1) = dots(svg)
    assert [float(end) for end in ends] == [x0, y0, x1, y1]


def test_one_point_and_no_point():
    assert scatter("x", [Series(name="m", points=[])], across="a", up="b") == ""
    assert len(dots(scatter("x", [Series(name="m", points=[Point(x=1.0, y=1.0)])], across="a", up="b"))) == 1


@pytest.mark.parametrize("name", ["研ぎ <b>", "режим & co"])
def test_labels_are_as_they_are(name):
    root = ET.fromstring(
        str(scatter(name, [Series(name="m", points=[Point(x=0.0, y=0.0, label=name)])], across="a", up="b"))
    )
    assert name in [element.text for element in root.iter("text")]
