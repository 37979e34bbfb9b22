"""The radar: positions of its corners, gaps, and names that could break it."""

import re
import xml.etree.ElementTree as ET

import pytest

from togi.report.radar import MIDDLE, RADIUS, radar


def dots(svg):
    found = re.findall(r'<circle class="dot c(\d)" cx="([\d.]+)" cy="([\d.]+)"', str(svg))
    return [(int(colour), float(x), float(y)) for colour, x, y in found]


def test_a_value_stands_on_its_spoke_at_its_share_of_the_scale():
    svg = radar("MT-Bench", ["up", "right", "down", "left"], {"a": [10, 5, 0, 2.5]}, span=(0, 10))
    wanted = [(0, -RADIUS), (RADIUS / 2, 0), (0, 0), (-RADIUS / 4, 0)]
    for (_, x, y), (right, down) in zip(dots(svg), wanted, strict=True):
        assert (x - MIDDLE[0], y - MIDDLE[1]) == pytest.approx((right, down), abs=0.06)


def test_a_missing_value_is_a_gap_and_no_zero():
    svg = radar("x", ["a", "b", "c", "d"], {"whole": [1, 2, 3, 4], "gap": [1, None, 3, 4]})
    assert [colour for colour, _, _ in dots(svg)] == [0, 0, 0, 0, 1, 1, 1]
    assert 'class="band c0"' in svg and 'class="band c1"' not in svg
    stretches = re.search(r'class="line c1" d="([^"]+)"', str(svg))
    assert stretches is not None and stretches[1].count("M") == 2  # c to d, d to a


def test_names_are_as_they_are_and_the_picture_is_whole_xml():
    spokes = ["推論", "математика", "<b>&"]
    root = ET.fromstring(str(radar("<t>", spokes, {"m": [1, 2, 3]})))
    assert [name for name in (element.text for element in root.iter("text")) if name in spokes] == spokes


@pytest.mark.parametrize(("spokes", "outlines"), [(["a", "b"], {"m": [1, 2]}), (["a", "b", "c"], {"m": [None] * 3})])
def test_what_has_no_shape_is_no_picture(spokes, outlines):
    assert radar("x", spokes, outlines) == ""


def test_equal_values_can_be_drawn():
    assert len(dots(radar("x", ["a", "b", "c"], {"m": [4.0, 4.0, 4.0]}))) == 3


def test_the_first_name_stands_above_the_number_of_the_outermost_ring():
    root = ET.fromstring(str(radar("x", ["up", "right", "left"], {"m": [10, 5, 5]}, span=(0, 10))))
    heights = {element.text: float(element.attrib["y"]) for element in root.iter("text")}
    assert heights["10"] - heights["up"] >= 10, "a line of text is some ten units high"
