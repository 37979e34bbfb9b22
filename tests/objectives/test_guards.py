"""No objective's result depends on how a step is cut, and none ignores answers that are empty, masked or equal."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from togi.core.errors import RecipeError, StageError
from togi.objectives.base import Batch, Metrics, Objective, Output, add_metrics, read_metrics
from togi.objectives.clipping import Clipping, segment_quantile
from togi.objectives.dpo import DPO
from togi.objectives.reward import BradleyTerry
from togi.objectives.sft import SFT
from togi.objectives.smpo import SMPO, margin_at

CLIPPING = Clipping(flip_terminator=True, lower_quantile=0.2, upper_quantile=0.8, min_logp=-1.5)
OBJECTIVES: dict[str, Objective] = {
    "sft": SFT(),
    "sft a sequence": SFT(normalise="sequences"),
    "dpo": DPO(),
    "rpo": DPO(loss_type="sigmoid_norm", label_smoothing=0.1, sft_weight=0.5),
    "ipo": DPO(loss_type="ipo"),
    "cpo": DPO(loss_type="hinge", reference=False),
    "smpo": SMPO(),
    "smpo clipped": SMPO(loss_type="smooth_double_bound", margin_delta=0.2, clipping=CLIPPING),
    "reward": BradleyTerry(centring=0.1, margin=True),
}
LENGTHS = ((3, 5), (1, 9), (4, 4), (7, 2), (2, 6))  # tokens of the chosen and the rejected answer


def numbers(count: int, seed: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def micro_batch(first: int, last: int) -> tuple[slice, slice, Batch]:
    """Returns where the tokens and sequences of pairs first..last lie in the step, and the batch of these pairs."""
    flat = [length for pair in LENGTHS for length in pair]
    start, stop = sum(flat[: 2 * first]), sum(flat[: 2 * last])
    lengths = torch.tensor(flat[2 * first : 2 * last], dtype=torch.long)
    ends = torch.zeros(int(lengths.sum()), dtype=torch.bool)
    ends[lengths.cumsum(0) - 1] = True
    batch = Batch(
        num_sequences=len(lengths),
        sequence_N=torch.repeat_interleave(torch.arange(len(lengths)), lengths),
        ref_logp_S=-numbers(10, seed=2)[2 * first : 2 * last].abs(),
        terminator_N=ends,
        margin_P=numbers(5, seed=3)[first:last],
    )
    return slice(start, stop), slice(2 * first, 2 * last), batch


def step(objective: Objective, cut: Sequence[tuple[int, int]]) -> tuple[float, Tensor, dict[str, float]]:
    """Returns loss, gradient and metrics of the five pairs, computed in the micro-batches of `cut`."""
    count = sum(map(sum, LENGTHS))
    logp_N, score_S = (-numbers(count, 0).abs()).requires_grad_(), numbers(10, 1).requires_grad_()
    parts = [micro_batch(*pairs) for pairs in cut]
    totals: dict[str, float] = {}
    for _, _, batch in parts:
        for name, found in objective.counts(batch).items():
            totals[name] = totals.get(name, 0.0) + found
    loss, metrics = torch.zeros((), dtype=torch.float64), Metrics()
    for tokens, sequences, batch in parts:
        share, found = objective.loss(Output(logp_N=logp_N[tokens], score_S=score_S[sequences]), batch, totals)
        loss = loss + share
        add_metrics(metrics, found)
    loss.backward()
    leaf = score_S if isinstance(objective, BradleyTerry) else logp_N
    assert leaf.grad is not None
    return loss.item(), leaf.grad, read_metrics(metrics)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_nothing_depends_on_how_a_step_was_cut(name):
    objective = OBJECTIVES[name]
    loss, grad, metrics = step(objective, [(0, 5)])
    for cut in ([(0, 1), (1, 5)], [(0, 2), (2, 3), (3, 3), (3, 5)]):  # (3, 3): a rank's empty micro-batch
        other_loss, other_grad, other_metrics = step(objective, cut)
        assert other_loss == pytest.approx(loss, abs=1e-12)
        torch.testing.assert_close(other_grad, grad, rtol=0, atol=1e-12)
        assert other_metrics == pytest.approx(metrics, abs=1e-12)


def pair_batch(*lengths: int, **fields) -> Batch:
    sizes = torch.tensor(lengths)
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    return Batch(num_sequences=len(sizes), sequence_N=owner, **fields)


@pytest.mark.parametrize("objective", [DPO(), SMPO()])
def test_an_empty_answer_is_refused_before_any_loss(objective):
    for lengths in ((2, 3, 0, 4), (2, 3, 4, 0)):
        with pytest.raises(StageError, match=r"pair 1 of the micro-batch \(1 of 2 pairs\) has no scored token"):
            objective.counts(pair_batch(*lengths))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_without_anything_to_learn_is_an_error(name):
    """If all tokens are masked, or there is no pair, the totals are zero."""
    objective = OBJECTIVES[name]
    nothing = torch.zeros(0)
    empty = Batch(num_sequences=0, ref_logp_S=nothing, margin_P=nothing, terminator_N=nothing.bool())
    output = Output(logp_N=nothing, score_S=nothing)
    with pytest.raises(StageError, match=r"the step has no \w+.*so its loss is undefined"):
        objective.loss(output, empty, objective.counts(empty))


@pytest.mark.parametrize("normalise", ["tokens", "sequences"])
def test_a_masked_sequence_counts_nowhere_in_sft(normalise):
    objective = SFT(normalise=normalise)
    logp_N = torch.tensor([-1.0, -3.0, -5.0])
    batch = pair_batch(2, 0, 1)
    loss, _ = objective.loss(Output(logp_N=logp_N), batch, objective.counts(batch))
    assert loss.item() == pytest.approx({"tokens": 9 / 3, "sequences": (2 + 5) / 2}[normalise])


@pytest.mark.parametrize(
    ("objective", "loss"),
    [
        (DPO(beta=0.5), 0.6931471805599453),  # log 2
        (DPO(loss_type="hinge"), 1.0),
        (DPO(loss_type="ipo", beta=0.1), 25.0),  # (1 / (2 beta))^2
        (SMPO(beta=2.0, target_margin=0.4, sft_weight=0.0), 0.64),  # (beta margin)^2
    ],
)
def test_an_equal_pair_costs_what_the_table_says_and_its_gradients_cancel(objective, loss):
    """Both answers are the same tokens under the same model, so the gradients of equal tokens add up."""
    side_N = torch.tensor([-1.0, -0.2, -3.0], dtype=torch.float64, requires_grad=True)
    batch = pair_batch(3, 3, ref_logp_S=torch.full((2,), -4.0, dtype=torch.float64))
    found, metrics = objective.loss(Output(logp_N=side_N.repeat(2)), batch, objective.counts(batch))
    found.backward()
    assert found.item() == pytest.approx(loss)
    assert side_N.grad.tolist() == [0.0, 0.0, 0.0]
    assert read_metrics(metrics)["accuracy"] == 0.0


@pytest.mark.parametrize("name", ["dpo", "rpo", "smpo", "smpo clipped"])
def test_an_answer_of_two_pairs_counts_in_each(name):
    """One chosen and two rejected answers in one tree give the same results as two separate pairs."""
    objective, results = OBJECTIVES[name], []
    logps = -numbers(9, 4).abs()
    chosen, worst, worse = logps[:2], logps[2:5], logps[5:]
    ref_S = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
    layouts = [
        ([chosen, worst, worse], [0, 0], [1, 2], [0, 1, 2]),
        ([chosen, worst, chosen, worse], [0, 2], [1, 3], [0, 1, 0, 2]),
    ]
    for parts, first, second, refs in layouts:
        batch = pair_batch(
            *map(len, parts),
            chosen_P=torch.tensor(first),
            rejected_P=torch.tensor(second),
            ref_logp_S=ref_S[refs],
            terminator_N=torch.cat([torch.arange(len(part)) == len(part) - 1 for part in parts]),
        )
        loss, metrics = objective.loss(Output(logp_N=torch.cat(parts)), batch, objective.counts(batch))
        results.append({"loss": loss.item(), **read_metrics(metrics)})
    assert results[0] == pytest.approx(results[1], abs=1e-12)


def test_a_falling_chosen_answer_shows_although_the_margin_grows():
    batch = pair_batch(2, 2, ref_logp_S=torch.tensor([-2.0, -2.0]))
    objective = DPO(beta=0.5)
    output = Output(logp_N=torch.tensor([-1.5, -1.5, -4.0, -4.0]))
    found = read_metrics(objective.loss(output, batch, objective.counts(batch))[1])
    assert found["margin"] == 2.5 and found["chosen_change"] == -0.5 and found["logp_chosen"] == -1.5


# --- clipping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9])
def test_quantiles_are_those_of_each_sequence(share):
    value_N, lengths = numbers(14, 6), [4, 0, 1, 7, 2, 0]
    owner_N = torch.repeat_interleave(torch.arange(6), torch.tensor(lengths))
    found_S = segment_quantile(value_N, owner_N, 6, share)
    for place, part in enumerate(value_N.split(lengths)):
        wanted = torch.quantile(part, share) if len(part) else torch.tensor(0.0, dtype=torch.float64)
        torch.testing.assert_close(found_S[place], wanted, rtol=0, atol=1e-12)


def test_clipped_tokens_count_as_their_limit_and_have_no_gradient():
    logp_N = torch.tensor([-0.1, -1.0, -2.0, -3.0, -0.5, -9.0, -4.0, -0.2], dtype=torch.float64, requires_grad=True)
    ends = torch.tensor([False, False, False, True] * 2)
    batch = pair_batch(4, 4, terminator_N=ends)
    clipping = Clipping(flip_terminator=True, lower_quantile=0.5, upper_quantile=0.5, min_logp=-2.0)
    chosen_N, rejected_N = clipping.chosen(logp_N, batch)[:4], clipping.rejected(logp_N, batch)[4:]
    assert chosen_N.tolist() == [-1.5, -1.5, -2.0, -3.0]  # a value above the median becomes the median
    # the terminator's log-probability turns into +0.2; the median of (-0.5, -9, -4, 0.2) is -2.25, below the floor
    assert rejected_N.tolist() == [-0.5, -2.0, -2.0, 0.2]
    (chosen_N.sum() + rejected_N.sum()).backward()
    assert logp_N.grad.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, -1.0]


def test_clipping_leaves_the_cross_entropies_and_what_is_logged_of_them_alone():
    plain, clipped = step(SMPO(), [(0, 5)])[2], step(SMPO(clipping=CLIPPING), [(0, 5)])[2]
    assert plain["margin"] != clipped["margin"]
    assert plain["logp_chosen"] == clipped["logp_chosen"] and plain["logp_rejected"] == clipped["logp_rejected"]


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (SFT, {"normalise": "words"}, r"objective\.normalise: found 'words'; allowed: tokens, sequences"),
        (DPO, {"loss_type": "orpo"}, "found 'orpo'; allowed: sigmoid, sigmoid_norm, hinge, ipo, robust"),
        (DPO, {"beta": 0.0}, "beta out of range"),
        (DPO, {"loss_type": "robust", "label_smoothing": 0.5}, "label_smoothing out of range"),
        (DPO, {"loss_type": "ipo", "label_smoothing": 0.1}, "label_smoothing has no effect on loss: ipo"),
        (DPO, {"sft_weight": -1.0}, "sft_weight out of range"),
        (SMPO, {"loss_type": "simpo"}, "found 'simpo'; allowed: sigmoid, hinge, ipo, smooth_lower_bound"),
        (SMPO, {"target_margin": -0.1}, "target_margin out of range"),
        (SMPO, {"chosen_sft_ratio": 1.1}, "chosen_sft_ratio out of range"),
        (SMPO, {"margin_delta": 0.2}, "margin_delta belongs to loss: smooth_double_bound"),
        (SMPO, {"loss_type": "smooth_double_bound"}, "smooth_double_bound, which needs it"),
        (Clipping, {"lower_quantile": 0.6}, "lower_quantile out of range"),
        (Clipping, {"upper_quantile": 0.4}, "upper_quantile out of range"),
        (Clipping, {"min_logp": 0.0}, "min_logp out of range"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(make, settings, message):
    with pytest.raises(RecipeError, match=message):
        make(**settings)


def test_needs_follow_the_settings():
    assert SFT().needs == frozenset() and DPO().needs == {"ref_logp_S"} and DPO(reference=False).needs == frozenset()
    assert SMPO().needs == frozenset() and SMPO(clipping=CLIPPING).needs == {"terminator_N"}


def test_the_margin_stays_once_it_is_reached():
    assert [margin_at(step, 10, 0.41) for step in (0, 5, 10, 25)] == pytest.approx([0.01, 0.21, 0.41, 0.41])
