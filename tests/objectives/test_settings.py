"""What objectives refuse and leave out, and how advantages treat failed graders."""

import math

import pytest
import torch

from togi.core.errors import RecipeError, StageError
from togi.objectives.advantages import compute_advantages
from togi.objectives.base import Batch, Output, segment_mean, segment_sum
from togi.objectives.grpo import GRPO, VARIANTS, SamplerCorrection
from togi.objectives.reward import BradleyTerry
from togi.objectives.rules import UNCLIPPED, policy_problem
from togi.stages.training.grpo_loss import Loss


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": "word"}, r"objective\.level: found 'word'; allowed: token, sequence"),
        ({"eps": 0.0}, "eps out of range"),
        ({"delta": 0.9}, "delta out of range"),
        ({"beta": -0.1}, "beta out of range"),
        ({"loss_type": "cispo", "eps_high": 0.2}, "cispo does not clip"),
        ({"loss_type": "sapo", "delta": 1.5}, "sapo does not clip"),
        ({"loss_type": "luspo"}, "luspo is defined on sequences"),
        ({"loss_type": "vespo", "level": "sequence"}, "vespo is defined on tokens"),
        ({"loss_type": "vespo", "correction": SamplerCorrection()}, "vespo already weights whole answers"),
        ({"off_policy_threshold": 0.0}, "off_policy_threshold out of range"),
        ({"max_weight": 5.0}, "applies only to cispo"),
        ({"loss_type": "dr_grpo"}, "dr_grpo needs it"),
        ({"max_tokens": 64}, "no other loss type uses it"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        GRPO(**settings)


@pytest.mark.parametrize("settings", [{"level": "word"}, {"mode": "drop"}, {"cap": 1.0, "floor": 2.0}, {"cap": 0.0}])
def test_sampler_corrections_that_cannot_be_kept_are_refused(settings):
    with pytest.raises(RecipeError, match="correction"):
        SamplerCorrection(**settings)


def test_needs_follow_the_settings():
    assert GRPO().needs == {"advantage_S"}
    assert GRPO(beta=0.1, correction=SamplerCorrection()).needs == {"advantage_S", "ref_logp_N", "sampler_logp_N"}
    assert BradleyTerry().needs == frozenset() and BradleyTerry(margin=True).needs == {"margin_P"}


def batch_of(sampler: list[float]) -> Batch:
    return Batch(
        num_sequences=2,
        sequence_N=torch.tensor([0, 0, 1]),
        sampler_logp_N=torch.tensor(sampler, dtype=torch.float64),
    )


@pytest.mark.parametrize(
    ("correction", "weights"),
    [
        (SamplerCorrection(level="token", mode="truncate", cap=3.0, floor=0.5), [3.0, 2.0, 0.5]),
        (SamplerCorrection(level="token", mode="mask", cap=3.0, floor=0.5), [0.0, 2.0, 0.0]),
        (SamplerCorrection(level="sequence", mode="truncate", cap=3.0), [3.0, 3.0, 0.25]),
        (SamplerCorrection(level="sequence", mode="mask", cap=3.0), [0.0, 0.0, 0.25]),
    ],
)
def test_sampler_weights(correction, weights):
    old_N = torch.tensor([4.0, 2.0, 0.25], dtype=torch.float64).log()
    found = correction.weights(old_N, batch_of([0.0, 0.0, 0.0]))
    assert found.tolist() == pytest.approx(weights)


def test_a_token_that_the_sampler_did_not_report_counts_as_exact():
    correction = SamplerCorrection(level="sequence", mode="truncate", cap=3.0)
    found = correction.weights(torch.tensor([0.5, 0.1, 0.2]), batch_of([math.nan, 0.1, math.nan]))
    assert found.tolist() == pytest.approx([1.0, 1.0, 1.0], abs=1e-6)


def test_the_off_policy_mask_drops_bad_answers_that_the_policy_has_left():
    """Both answers lost 0.3 nats a token. The one with an advantage above 0 stays; under a larger bound, both do."""
    logp_N = torch.tensor([-1.0, -2.0, -1.0, -2.0], dtype=torch.float64)
    batch = Batch(
        num_sequences=2,
        sequence_N=torch.tensor([0, 0, 1, 1]),
        advantage_S=torch.tensor([1.0, -1.0], dtype=torch.float64),
        old_logp_N=logp_N,
        sampler_logp_N=logp_N + 0.3,
    )
    totals = {"sequences": 2.0, "tokens": 4.0}
    for threshold, wanted in ((0.2, [-0.25, -0.25, 0.0, 0.0]), (0.4, [-0.25, -0.25, 0.25, 0.25])):
        leaf_N = logp_N.clone().requires_grad_()
        loss, metrics = GRPO(off_policy_threshold=threshold).loss(Output(logp_N=leaf_N), batch, totals)
        loss.backward()
        assert leaf_N.grad.tolist() == wanted
        assert float(metrics["off_policy_masked"][0]) == (2.0 if threshold == 0.2 else 0.0)


def test_without_old_log_probabilities_the_ratio_is_one_and_the_gradient_flows():
    logp_N = torch.tensor([-1.0, -2.0], requires_grad=True)
    batch = Batch(num_sequences=1, sequence_N=torch.zeros(2, dtype=torch.long), advantage_S=torch.tensor([2.0]))
    loss, metrics = GRPO().loss(Output(logp_N=logp_N), batch, {"sequences": 1.0, "tokens": 2.0})
    loss.backward()
    assert loss.item() == -2.0 and logp_N.grad.tolist() == [-1.0, -1.0]
    assert metrics["ratio"] == (2.0, 2.0)


def test_a_missing_output_is_named():
    with pytest.raises(StageError, match="needs logp_N"):
        GRPO().loss(Output(), batch_of([0.0, 0.0, 0.0]), {"sequences": 2.0, "tokens": 3.0})
    with pytest.raises(StageError, match="even number of sequences, found 3"):
        BradleyTerry().counts(Batch(num_sequences=3))


def test_segments_may_be_empty():
    value_N, sequence_N = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2])
    assert segment_sum(value_N, sequence_N, 3).tolist() == [4.0, 0.0, 5.0]
    assert segment_mean(value_N, sequence_N, 3).tolist() == [2.0, 0.0, 5.0]


def test_a_failed_sample_leaves_its_group():
    failed = compute_advantages([[1.0, None, 3.0, math.nan]])
    assert failed.num_failed == 2 and failed.values[0][1] is None and failed.values[0][3] is None
    assert failed.values[0][0::2] == compute_advantages([[1.0, 3.0]]).values[0]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_groups_that_teach_nothing_are_counted(scale):
    found = compute_advantages([[0.1, 0.1, 0.1], [5.0, None], [None, None], [0.0, 1.0]], scale)
    assert found.values[:3] == ((0.0, 0.0, 0.0), (0.0, None), (None, None))
    assert (found.num_no_spread, found.num_too_few, found.num_failed, found.idle_share) == (1, 2, 3, 0.75)


def test_advantages_that_are_refused():
    with pytest.raises(StageError, match="infinite reward"):
        compute_advantages([[1.0, math.inf]])
    with pytest.raises(RecipeError, match="allowed: group, batch, none"):
        compute_advantages([[1.0, 2.0]], "global")  # type: ignore[arg-type]
    assert compute_advantages([]).idle_share == 0.0


@pytest.mark.parametrize(("kind", "more"), [("sapo", {"delta": 1.5}), ("luspo", {}), ("grpo", {"max_weight": 2.0})])
def test_recipes_and_objectives_refuse_the_same_for_the_same_reason(kind, more):
    with pytest.raises(ValueError, match=kind) as first:
        Loss(type=kind, **more)
    with pytest.raises(RecipeError) as second:
        GRPO(loss_type=kind, **more)
    assert str(second.value).removeprefix("objective: ") in str(first.value)


def test_the_rules_know_which_losses_do_not_clip():
    assert {
        kind for kind in VARIANTS if policy_problem(kind, level="token", max_weight=None, correction=None, eps=0.1)
    } == {
        *UNCLIPPED,
        "luspo",
    }
