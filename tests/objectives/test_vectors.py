"""Objectives against stored losses and gradients, float64 within 1e-9."""

import re

import pytest
import torch
from stored import TOLERANCE, load

from togi.core.errors import RecipeError
from togi.objectives.advantages import compute_advantages
from togi.objectives.base import Batch, Output
from togi.objectives.grpo import GRPO, SamplerCorrection
from togi.objectives.reward import BradleyTerry

GRPO_VECTORS = load("grpo.json")
CASES = {case["name"]: case for case in GRPO_VECTORS["cases"]}
MASK = torch.tensor(GRPO_VECTORS["mask"], dtype=torch.bool)


def flat(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)[MASK]


def settings_of(case: dict) -> GRPO:
    params = dict(case["params"])
    loss_type = params["loss_type"]
    high = "max_weight" if loss_type == "cispo" else "eps_high"  # the setting that holds the upper bound
    known = {"level": "level", "beta": "beta", "eps": "eps", "delta": "delta", "eps_high": high}
    known["off"] = "off_policy_threshold"
    chosen = {known[key]: value for key, value in params.items() if key in known}
    if "biascorr" in params:
        chosen["use_bias_correction_kl"] = params["biascorr"]
    if loss_type == "dr_grpo":
        budget = re.search(r"_L(\d+)", case["name"])
        assert budget, f"{case['name']}: the answer budget stands in the name"
        chosen["max_tokens"] = int(budget[1])
    if "isr" in params:
        level = "sequence" if len(params["isr"][0]) == 1 else "token"
        chosen["correction"] = SamplerCorrection(level=level, cap=3.0)
    unknown = set(params) - {"loss_type", "biascorr", "isr", "ga", "spg", *known}
    assert not unknown, f"{case['name']}: this test does not know {unknown}"
    return GRPO(loss_type=loss_type, **chosen)


def sampler_logp(case: dict, old_N: torch.Tensor) -> torch.Tensor | None:
    """Returns sampler log-probabilities that give exactly the stored weights (for a weight of 0, one above the cap)."""
    if "isr" not in case["params"]:
        return None
    weight_BT = torch.tensor(case["params"]["isr"], dtype=torch.float64)
    share_BT = 1 / MASK.sum(1, keepdim=True) if weight_BT.shape[1] == 1 else torch.ones_like(weight_BT)
    difference_BT = torch.where(weight_BT == 0, torch.full_like(weight_BT, 10.0), weight_BT).log() * share_BT
    return old_N - difference_BT.expand(MASK.shape)[MASK]


def totals_of(case: dict, objective: GRPO, batch: Batch) -> dict[str, float]:
    """Returns the counts of a step of `ga` such micro-batches."""
    params = case["params"]
    factor = {"sequences": params.get("ga", 1), "tokens": params.get("ga", 1) / params.get("spg", 1)}
    return {name: count * factor[name] for name, count in objective.counts(batch).items()}


def run(case: dict):
    objective = settings_of(case)
    logp_N, old_N = flat(GRPO_VECTORS["new_logps"]).requires_grad_(), flat(GRPO_VECTORS["old_logps"])
    batch = Batch(
        num_sequences=len(MASK),
        sequence_N=MASK.nonzero()[:, 0],
        advantage_S=torch.tensor(GRPO_VECTORS["advantages"], dtype=torch.float64),
        old_logp_N=old_N,
        ref_logp_N=flat(GRPO_VECTORS["ref_logps"]),
        sampler_logp_N=sampler_logp(case, old_N),
    )
    loss, metrics = objective.loss(Output(logp_N=logp_N), batch, totals_of(case, objective, batch))
    loss.backward()
    return loss.detach(), logp_N.grad, metrics


@pytest.mark.parametrize("name", CASES)
def test_grpo_equals_the_stored_loss_and_gradient(name):
    case = CASES[name]
    loss, grad_N, _ = run(case)
    torch.testing.assert_close(loss, torch.tensor(case["loss"], dtype=torch.float64), **TOLERANCE)
    grad_BT = torch.tensor(case["grad"], dtype=torch.float64)
    torch.testing.assert_close(grad_N, grad_BT[MASK], **TOLERANCE)
    assert not grad_BT[~MASK].any()


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name]["params"].get("level") != "sequence"])
def test_shares_of_clipped_tokens_are_the_stored_ones(name):
    _, _, metrics = run(CASES[name])
    stored = CASES[name]["metrics"]
    found = {name: float(total) / float(weight) for name, (total, weight) in metrics.items()}
    found["clip"] = found.get("clip_low", 0.0) + found.get("clip_high", 0.0)
    for ours, theirs in (
        ("clip_low", "clip_ratio/low_mean"),
        ("clip_high", "clip_ratio/high_mean"),
        ("clip", "clip_ratio/region_mean"),
        ("clip_high", "cispo_clip_ratio"),
    ):
        if theirs in stored:
            assert found[ours] == pytest.approx(stored[theirs], abs=1e-6)  # stored in float32


def test_the_kl_is_the_stored_one():
    """Without the correction: TRL logs a corrected KL times the ratio, togi the KL itself."""
    case = CASES["grpo_beta0.04_nobiascorr"]
    total, weight = run(case)[2]["kl"]
    assert float(total) / float(weight) == pytest.approx(case["metrics"]["kl"], abs=1e-6)  # stored in float32


def test_the_stored_off_policy_mask_leaves_out_nothing():
    """In that case no bad answer became less likely by 0.05 nats per token; test_settings.py has some that did."""
    case = CASES["grpo_opsm0.05"]
    total, _ = run(case)[2]["off_policy_masked"]
    assert float(total) == 0 and case["grad"] == CASES["grpo"]["grad"]


def test_an_unknown_variant_is_refused_by_name():
    with pytest.raises(RecipeError, match=r"'dapper'.*allowed: grpo, bnpo, dapo, dr_grpo, cispo, luspo, sapo, vespo"):
        GRPO(loss_type="dapper")  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_equal_the_stored_ones(scale):
    stored = GRPO_VECTORS["advantages_from_rewards"]
    found = compute_advantages(stored["rewards_groups"], scale).values
    wanted = torch.tensor(stored["out"][scale], dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), wanted, **TOLERANCE)


@pytest.mark.parametrize("index", range(len(load("preference.json")["reward"])))
def test_bradley_terry_equals_the_stored_loss_and_gradient(index):
    case = load("preference.json")["reward"][index]
    count = len(case["chosen"])
    score_S = torch.tensor([*case["chosen"], *case["rejected"]], dtype=torch.float64, requires_grad=True)
    objective = BradleyTerry(centring=case["center_rewards_coefficient"] or 0.0, margin=case["margin"] is not None)
    batch = Batch(
        num_sequences=2 * count,
        chosen_P=torch.arange(count),
        rejected_P=torch.arange(count, 2 * count),
        margin_P=None if case["margin"] is None else torch.tensor(case["margin"], dtype=torch.float64),
    )
    loss, metrics = objective.loss(Output(score_S=score_S), batch, objective.counts(batch))
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(case["loss"], dtype=torch.float64), **TOLERANCE)
    torch.testing.assert_close(score_S.grad, torch.tensor(case["grad"], dtype=torch.float64), **TOLERANCE)
    correct, pairs = metrics["accuracy"]
    assert float(correct) / float(pairs) == pytest.approx(case["accuracy"], abs=1e-6)
