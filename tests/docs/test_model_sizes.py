"""The tables of docs/cluster.md on the model sizes that ranks can train are what `togi plan` says."""

import json

import pytest
from places import RECIPES, ROOT

from togi.cli.planned import costs
from togi.model.sizes import Shape
from togi.recipe.graph import build
from togi.recipe.schema import validate
from togi.recipe.source import read_tree

PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
NAMES = {"llm-jp-3-1.8b": "llm-jp-3-1.8b", "llm-jp-3-13b": "llm-jp-3-13b", "llm-jp-3-8x13b": "8 x 13B experts"}
RANKS = (1, 2, 4, 8, 16, 32)
FITS = 72.0  # of a card of 80 GB
RECIPE = """\
name: sizes
compute: bfloat16
models:
  base: {hub: some/model, shape: SHAPE, template: chatml}
data:
  talks: {hub: some/talks, expect: {rows: 1000, tokens: 1024}}
  asked: {hub: some/prompts}
stages:
  tuned: {type: train.sft, init: $base, chats: $talks, max_length: 4096, activation_checkpointing: true}
  policy: &grpo
    type: train.grpo
    init: $base
    prompts: $asked
    sampling: {max_tokens: 1024}
    reward: {gates: [{type: length, min: 1}]}
    activation_checkpointing: true
    key_cache: 8
  adapted: {<<: *grpo, weights: bfloat16, lora: {rank: 16, targets: [q_proj, k_proj, v_proj, o_proj]}}
"""
STAGES = {"tuned": "SFT, DPO", "policy": "GRPO", "adapted": "GRPO with LoRA"}


def peaks(folder, shape, ranks):
    """The peak of one process in GB, by stage."""
    path = folder / "sizes.yaml"
    path.write_text(RECIPE.replace("SHAPE", str(RECIPES / "shapes" / f"{shape}.json")))
    cards = "hardware=[" + ", ".join(["{name: a, memory: 80}"] * ranks) + "]"
    many = [f"stages.{name}.processes={ranks}" for name in STAGES]
    found = costs(build(validate(read_tree(path, (cards, *many)))), folder / "store")
    return {name: found[name].peak_bytes / 1e9 for name in STAGES}


@pytest.mark.parametrize("shape", NAMES)
def test_the_peaks_by_the_number_of_ranks_are_those_of_the_plan(tmp_path, shape):
    found = {ranks: peaks(tmp_path, shape, ranks) for ranks in RANKS}
    weights = Shape.of(json.loads((RECIPES / "shapes" / f"{shape}.json").read_text())).parameters / 1e9
    for stage, name in STAGES.items():
        cells = [f"{found[ranks][stage]:.1f}" for ranks in RANKS]
        cells = [f"**{cell}**" if float(cell) <= FITS else cell for cell in cells]
        row = " | ".join([f"| {NAMES[shape]}, {weights:.4g} B", name, *cells]) + " |"
        assert row in PAGE, f"docs/cluster.md needs this row: {row}"
