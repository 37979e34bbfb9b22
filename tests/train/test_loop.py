"""The loop: cuts do not matter, non-finite numbers stop it, schedules and parameter groups do what they promise."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from togi.core.errors import RecipeError, StageError
from togi.objectives.base import Batch, Objective, Output
from togi.objectives.grpo import GRPO, SamplerCorrection
from togi.objectives.reward import BradleyTerry
from togi.train.loop import MicroBatch, train_steps
from togi.train.optimizer import AdamWSettings, Schedule, Update, build_adamw, trained
from togi.train.precision import in_bfloat16

VOCABULARY, LENGTHS = 11, (5, 1, 7, 3, 2, 6, 4, 8)


class TinyModel(nn.Module):
    """Predicts the next token from the current one, and scores a sequence by the mean of its states."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 6)
        self.head = nn.Linear(6, VOCABULARY)
        self.score = nn.Linear(6, 1, bias=False)

    def forward(self, sequences: Sequence[Tensor]) -> Output:
        states = [self.embed(ids).tanh() for ids in sequences]
        logp = [self.head(state[:-1]).log_softmax(-1) for state in states]
        chosen = [rows.gather(1, ids[1:, None])[:, 0] for rows, ids in zip(logp, sequences, strict=True)]
        return Output(logp_N=torch.cat(chosen), score_S=torch.stack([self.score(s.mean(0))[0] for s in states]))


@dataclass(frozen=True)
class Row:
    """One sequence with everything that an objective may read about it."""

    ids: Tensor
    advantage: float
    old: Tensor
    ref: Tensor
    sampler: Tensor


def tiny_model(dtype=torch.float64) -> TinyModel:
    torch.manual_seed(0)
    return TinyModel().to(dtype)


def make_rows(dtype=torch.float64) -> list[Row]:
    """Returns rows whose old, reference and sampler log-probabilities are near the model's own, so that clips occur."""
    net, rows = tiny_model(dtype), []
    for index, length in enumerate(LENGTHS):
        ids = torch.randint(VOCABULARY, (length + 1,))
        near = net([ids]).logp_N.detach()
        noise = torch.randn(3, length, dtype=dtype) * 0.3
        rows.append(Row(ids, (-1.0) ** index * (0.3 + 0.2 * index), near + noise[0], near + noise[1], near + noise[2]))
    return rows


def micro_batch(rows: Sequence[Row], name: str = "row") -> MicroBatch:
    batch = Batch(
        num_sequences=len(rows),
        sequence_N=torch.cat([torch.full((len(row.old),), i) for i, row in enumerate(rows)]),
        advantage_S=torch.tensor([row.advantage for row in rows], dtype=rows[0].old.dtype),
        old_logp_N=torch.cat([row.old for row in rows]),
        ref_logp_N=torch.cat([row.ref for row in rows]),
        sampler_logp_N=torch.cat([row.sampler for row in rows]),
        margin_P=torch.tensor([abs(row.advantage) for row in rows[::2]], dtype=rows[0].old.dtype),
    )
    names = tuple(f"{name}-{len(row.old)}" for row in rows)
    return MicroBatch(
        inputs=[row.ids for row in rows], batch=batch, rows=names, num_tokens=int(batch.sequence_N.numel())
    )


def cut(rows: Sequence[Row], sizes: Sequence[int]) -> list[MicroBatch]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [micro_batch(rows[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def update_of(net: nn.Module, **options) -> Update:
    optimizer = build_adamw(trained(net.named_parameters()), AdamWSettings(learning_rate=0.05, weight_decay=0.1))
    return Update(optimizer=optimizer, schedule=Schedule(), **{"max_grad_norm": 0.1, **options})


def weights_after(objective: Objective, sizes: Sequence[int], steps: int = 3) -> tuple[Tensor, list]:
    net, rows = tiny_model(), make_rows()
    infos = list(train_steps(net, update_of(net), objective, [cut(rows, sizes)] * steps))
    return torch.cat([param.detach().flatten() for param in net.parameters()]), infos


CUTS = [(4, 4), (2, 6), (2, 2, 2, 2), (6, 2)]
GRPO_CUTS = [*CUTS, (1,) * 8, (3, 1, 4)]
OBJECTIVES = {
    "grpo": GRPO(loss_type="grpo", beta=0.1),
    "grpo_nobias": GRPO(loss_type="grpo", beta=0.1, use_bias_correction_kl=False),
    "bnpo": GRPO(loss_type="bnpo"),
    "dapo": GRPO(loss_type="dapo", eps_high=0.28, delta=1.5),
    "dr_grpo": GRPO(loss_type="dr_grpo", max_tokens=8),
    "cispo": GRPO(loss_type="cispo", max_weight=1.1),
    "gspo": GRPO(loss_type="grpo", level="sequence", eps=0.05),
    "token_truncate": GRPO(correction=SamplerCorrection(level="token", mode="truncate", cap=1.2, floor=0.9)),
    "sequence_mask": GRPO(correction=SamplerCorrection(cap=1.5)),
    "luspo": GRPO(loss_type="luspo", level="sequence", eps=0.05),
    "sapo": GRPO(loss_type="sapo"),
    "vespo": GRPO(loss_type="vespo"),
    "off_policy": GRPO(off_policy_threshold=0.05),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_weights_do_not_depend_on_the_cut(name):
    whole, infos = weights_after(OBJECTIVES[name], (8,))
    for sizes in GRPO_CUTS:
        weights, cut_infos = weights_after(OBJECTIVES[name], sizes)
        torch.testing.assert_close(weights, whole, rtol=0, atol=1e-12)
        for info, cut_info in zip(infos, cut_infos, strict=True):
            assert cut_info.loss == pytest.approx(info.loss, abs=1e-12)
            assert cut_info.metrics == pytest.approx(info.metrics, abs=1e-12)


@pytest.mark.parametrize("objective", [BradleyTerry(), BradleyTerry(centring=0.05, margin=True)])
def test_weights_of_a_reward_model_do_not_depend_on_the_cut(objective):
    whole, _ = weights_after(objective, (8,))
    for sizes in CUTS:
        torch.testing.assert_close(weights_after(objective, sizes)[0], whole, rtol=0, atol=1e-12)


class OwnCounts:
    """The control, a broken objective: every micro-batch divides by its own counts."""

    needs: frozenset[str] = frozenset()

    def __init__(self, objective: Objective, parts: int) -> None:
        self.objective, self.parts = objective, parts

    def counts(self, batch: Batch) -> dict[str, float]:
        return self.objective.counts(batch)

    def loss(self, output: Output, batch: Batch, totals):
        loss, metrics = self.objective.loss(output, batch, self.counts(batch))
        return loss / self.parts, metrics


def test_a_mean_of_means_is_caught():
    whole, _ = weights_after(OBJECTIVES["dapo"], (8,))
    broken, _ = weights_after(OwnCounts(OBJECTIVES["dapo"], 3), (3, 1, 4))
    assert (broken - whole).abs().max() > 1e-4


def test_an_empty_micro_batch_carries_no_weight():
    whole, _ = weights_after(OBJECTIVES["dapo"], (8,))
    net, rows = tiny_model(), make_rows()
    ids = torch.tensor([3])  # a sequence without scored tokens
    nothing = torch.empty(0, dtype=torch.float64)
    batch = Batch(num_sequences=0, sequence_N=torch.empty(0, dtype=torch.long), advantage_S=nothing, old_logp_N=nothing)
    empty = MicroBatch(inputs=[ids], batch=batch)
    list(train_steps(net, update_of(net), OBJECTIVES["dapo"], [[micro_batch(rows), empty]] * 3))
    torch.testing.assert_close(torch.cat([p.detach().flatten() for p in net.parameters()]), whole, rtol=0, atol=1e-12)


def test_a_step_is_counted_and_measured():
    _, infos = weights_after(OBJECTIVES["grpo"], (4, 4))
    assert [info.step for info in infos] == [0, 1, 2]
    assert infos[0].num_tokens == sum(LENGTHS)
    assert {"kl", "clip_low", "clip_high", "ratio", "sampler_mismatch"} <= infos[0].metrics.keys()
    assert infos[0].learning_rate == 0.05


def test_a_loss_that_is_not_finite_names_its_rows_and_changes_nothing():
    net, rows = tiny_model(), make_rows()
    before = [param.detach().clone() for param in net.parameters()]
    broken = replace(rows[4], old=torch.full_like(rows[4].old, -torch.inf), advantage=-1.0)
    micro = [micro_batch(rows[:4], "fine"), micro_batch([broken], "broken")]
    with pytest.raises(StageError, match=r"step 7: the loss is .*Rows: broken-2\."):
        list(train_steps(net, update_of(net), GRPO(), [micro], first_step=7))
    assert all(torch.equal(now, then) for now, then in zip(net.parameters(), before, strict=True))


def test_a_gradient_that_is_not_finite_changes_nothing():
    net, rows = tiny_model(), make_rows()
    before = [param.detach().clone() for param in net.parameters()]
    net.head.bias.register_hook(lambda grad: grad * torch.nan)
    with pytest.raises(StageError, match=r"norm of the gradient is nan.*Rows: row-5, row-1"):
        list(train_steps(net, update_of(net), GRPO(), [[micro_batch(rows)]]))
    assert all(torch.equal(now, then) for now, then in zip(net.parameters(), before, strict=True))


def test_what_the_objective_reads_must_be_there():
    net, micro = tiny_model(), micro_batch(make_rows())
    without = replace(micro, batch=replace(micro.batch, ref_logp_N=None))
    with pytest.raises(StageError, match="needs ref_logp_N"):
        list(train_steps(net, update_of(net), GRPO(beta=0.1), [[without]]))
    with pytest.raises(StageError, match="nothing to train on"):
        list(train_steps(net, update_of(net), GRPO(), [[]]))


def test_an_objective_may_depend_on_the_step_and_a_batch_on_the_model():
    net, rows, asked, seen = tiny_model(), make_rows(), [], []

    def objective(step: int) -> GRPO:
        asked.append(step)
        return GRPO(eps=0.1 * (step + 1))

    def steps():
        for _ in range(2):
            seen.append(float(net.head.bias.detach().abs().sum()))
            yield [micro_batch(rows)]

    infos = list(train_steps(net, update_of(net), objective, steps(), first_step=3))
    assert asked == [3, 4] and len(set(seen)) == 2 and infos[0].step == 3


def test_router_losses_are_averaged_over_micro_batches():
    net, rows = tiny_model(), make_rows()

    def forward(inputs):
        return replace(net(inputs), aux=torch.tensor(2.0, dtype=torch.float64))

    with_router = next(train_steps(forward, update_of(net), GRPO(), [cut(rows, (4, 4))])).loss
    assert with_router == pytest.approx(weights_after(GRPO(), (8,))[1][0].loss + 2.0, abs=1e-12)


def test_bfloat16_computes_with_float32_weights():
    net, rows = tiny_model(torch.float32), make_rows(torch.float32)
    types = []

    def forward(inputs):
        types.append(net.head(net.embed(inputs[0])).dtype)
        return net(inputs)

    next(train_steps(in_bfloat16(forward, "cpu"), update_of(net), GRPO(), [[micro_batch(rows)]]))
    assert types == [torch.bfloat16]
    assert all(param.dtype == torch.float32 for param in net.parameters())


def test_casts_kept_within_a_step_are_made_anew_after_each_update(monkeypatch):
    def trained_in_bfloat16():
        net, steps = tiny_model(torch.float32), [cut(make_rows(torch.float32), (4, 4))] * 3
        infos = list(train_steps(in_bfloat16(net, "cpu"), update_of(net), GRPO(), steps))
        return [info.loss for info in infos], torch.cat([param.detach().flatten() for param in net.parameters()])

    losses, weights = trained_in_bfloat16()
    monkeypatch.setattr("togi.train.loop.casts_kept", nullcontext)
    expected_losses, expected = trained_in_bfloat16()
    assert losses == expected_losses and len(set(losses)) == 3
    assert torch.equal(weights, expected)


# --- optimiser --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "shares"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.775, 0.55, 0.325]),
        ("cosine", [0.5, 1.0, 1.0, 0.868198, 0.55, 0.231802]),
    ],
)
def test_schedules(kind, shares):
    schedule = Schedule(kind=kind, total_steps=6, warmup_steps=2, final=0.1)
    assert [schedule.share(step) for step in range(6)] == pytest.approx(shares, abs=1e-6)


def test_vectors_are_not_decayed_and_a_head_has_its_own_rate():
    params = trained(tiny_model().named_parameters())
    settings = AdamWSettings(learning_rate=0.1, weight_decay=0.2)
    found = {}
    optimizer = build_adamw(params, settings, rates={"score.": 0.3})
    for group in optimizer.param_groups:
        for name, param in params.items():
            if any(param is member for member in group["params"]):
                found[name] = (group["lr"], group["weight_decay"])
    assert found == {
        "embed.weight": (0.1, 0.2),
        "head.weight": (0.1, 0.2),
        "head.bias": (0.1, 0.0),
        "score.weight": (0.3, 0.2),
    }


def test_optimisers_that_are_refused():
    params = trained(tiny_model().named_parameters())
    with pytest.raises(RecipeError, match="no parameters to train"):
        build_adamw({}, AdamWSettings(learning_rate=0.1))
    with pytest.raises(RecipeError, match="no trained parameter has a name with this prefix"):
        build_adamw(params, AdamWSettings(learning_rate=0.1), rates={"scores.": 0.3})
    with pytest.raises(RecipeError, match="allowed: constant, linear, cosine"):
        Schedule(kind="cubic")


def test_gradients_are_clipped_by_their_norm():
    net = nn.Linear(2, 1, bias=False)
    group = {"params": list(net.parameters()), "peak": 1.0}
    before = net.weight.detach().clone()
    net.weight.grad = torch.tensor([[3.0, 4.0]])
    update = Update(optimizer=torch.optim.SGD([group], lr=1.0), schedule=Schedule(), max_grad_norm=1.0)
    assert update.apply(0) == (5.0, 1.0)
    torch.testing.assert_close(before - net.weight.detach(), torch.tensor([[0.6, 0.8]]), rtol=0, atol=1e-5)
    assert net.weight.grad is None
