"""`train.dpo` without a reference (CPO), and `train.smpo` as SimPO, selected by a recipe's settings alone."""

from pathlib import Path

import pytest
from tiny_pairs import bare_context, metrics_of, pairs

from togi.stages.training import dpo_work, smpo_work
from togi.stages.training.dpo import TrainDpo
from togi.stages.training.smpo import TrainSmpo

COMMON = {"init": "$base", "pairs": "$pairs", "batch_size": 4, "steps": 2, "learning_rate": 1e-3}


def test_without_a_reference_none_is_computed(tmp_path: Path) -> None:
    context = bare_context(tmp_path, pairs())
    dpo_work.run(TrainDpo(**COMMON, reference=False, sft_weight=1.0), context)
    line = metrics_of(tmp_path / "stage")[0]
    assert "chosen_change" not in line and not (tmp_path / "stage" / "units").exists()
    # beta times the plain sums of log-probabilities, which are far from 0 if no reference is subtracted
    assert line["reward_chosen"] < -0.5


def test_simpo_is_smpo_without_its_cross_entropies(tmp_path: Path) -> None:
    context = bare_context(tmp_path, pairs())
    settings = TrainSmpo(**COMMON, loss="sigmoid", beta=2.0, target_margin=0.25, sft_weight=0.0)
    smpo_work.run(settings, context)
    line = metrics_of(tmp_path / "stage")[0]
    # a random model gives both answers similar probability: -log sigmoid(-0.5); a cross entropy would add several nats
    assert line["loss"] == pytest.approx(0.97, abs=0.5)
