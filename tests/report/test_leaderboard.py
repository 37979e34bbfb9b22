"""The picture of a leaderboard: positions of points and intervals, and names that could break it."""

import re
import xml.etree.ElementTree as ET

import pytest

from togi.report.leaderboard import Place, leaderboard

PLACES = [
    Place(name="研ぎ <b>", rate=80.0, low=70.0, high=90.0),
    Place(name="base", rate=50.0, low=None, high=None),
    Place(name="never met", rate=None, low=None, high=None),
]


def test_points_lie_within_their_intervals_on_one_axis():
    text = str(leaderboard("Win rate", PLACES))
    dots = [float(x) for x in re.findall(r'<circle class="dot" cx="([\d.]+)"', text)]
    low, high = (float(x) for x in re.findall(r'class="reach" d="M([\d.]+) [\d.]+H([\d.]+)', text)[0])
    line = float(re.findall(r'class="base" d="M([\d.]+)', text)[0])
    assert dots[0] - low == pytest.approx(high - dots[0]) and low < dots[0]
    assert dots[1] == line < low  # the baseline's rate is the dashed line
    assert len(dots) == 2 and text.count("—") == 1


def test_it_is_whole_xml_with_names_as_they_are():
    root = ET.fromstring(str(leaderboard("Win <rate>", PLACES)))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "研ぎ <b>" in texts and "Win <rate>" in texts


def test_models_that_all_have_the_baselines_rate_can_be_drawn():
    assert "<circle" in leaderboard("x", [Place(name="a", rate=50.0, low=50.0, high=50.0)])
