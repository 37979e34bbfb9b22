"""Fingerprints leave out values equal to their defaults. So a changed default must raise its stage's version, and a new
setting with a default reruns nothing."""

import json
from typing import Any, Literal

import pytest
from fingerprints_now import STORED, now
from pydantic import Field

from togi.core.settings import Settings
from togi.recipe.graph import canonical
from togi.stages.base import StageSettings

AGAIN = "then write down what holds now: python tests/fingerprints_now.py"


def complaints(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Changes between two snapshots without a raised version, and what to do about them."""
    found = []
    for name, stage in after["stages"].items():
        old = before["stages"].get(name)
        if old is None or (old["version"], before["store"]) != (stage["version"], after["store"]):
            continue
        for key, default in old["defaults"].items():
            if stage["defaults"].get(key, "no such setting") != default:
                told = (
                    f"{name}: {key} was {default!r} by default, now {stage['defaults'].get(key, 'no such setting')!r}"
                )
                found.append(f"{told}: raise `version` in the StageType of {name}; {AGAIN}")
    if found:
        return found
    if before["recipes"] != after["recipes"] and before["store"] == after["store"]:
        found.append(f"what fingerprints cover of the shipped recipes changed: if it shall, {AGAIN}")
    if before != after and not found:
        found.append(f"settings, versions or recipes are new: {AGAIN}")
    return found


def test_no_default_changed_without_a_raised_version():
    assert complaints(json.loads(STORED.read_text(encoding="utf-8")), now()) == []


def snapshot(version: int = 1, **defaults: Any) -> dict[str, Any]:
    return {"store": 2, "stages": {"select": {"version": version, "defaults": defaults}}, "recipes": {}}


def test_a_changed_default_is_told_with_what_to_do():
    before = snapshot(count=1, skip=0)
    assert complaints(before, before) == []
    (told,) = complaints(before, snapshot(count=2, skip=0))
    assert told.startswith("select: count was 1 by default, now 2: raise `version` in the StageType of select; then")
    (told,) = complaints(before, snapshot(count=1))
    assert "skip was 0 by default, now 'no such setting'" in told
    for after in (snapshot(2, count=2, skip=0), snapshot(count=1, skip=0, more=3)):
        assert complaints(before, after) == [f"settings, versions or recipes are new: {AGAIN}"]


class Short(Settings):
    type: Literal["short"] = "short"
    limit: int = 3


class Long(Settings):
    type: Literal["long"] = "long"
    limit: int = 3


class Made(StageSettings):
    type: Literal["made"] = "made"
    rate: float = 1.0
    flag: bool | int = False
    names: tuple[str, ...] = ()
    inner: Short = Field(default_factory=Short)
    either: Short | Long = Field(default_factory=Short)
    several: tuple[Short | Long, ...] = ()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"rate": 1, "flag": False, "names": [], "inner": {}, "either": {"limit": 3}}, {}),
        ({"flag": 0}, {"flag": 0}),
        ({"inner": {"limit": 4}}, {"inner": {"type": "short", "limit": 4}}),
        ({"either": {"type": "long"}}, {"either": {"type": "long"}}),
        ({"several": [{"type": "long"}, {"limit": 3}]}, {"several": [{"type": "long"}, {"type": "short"}]}),
        ({"names": ["a"]}, {"names": ["a"]}),
    ],
)
def test_what_is_equal_to_its_default_is_left_out(given, expected):
    assert canonical(Made(**given), {}, []) == {"type": "made", **expected}
