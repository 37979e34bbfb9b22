"""Forests equal the plain computation: layout, log-probabilities, gradients, and controls that must be caught."""

import random
import warnings
from dataclasses import replace

import pytest
import torch
from tiny import CONFIGS, VOCABULARY, Largest, TrueFloat64, tiny_model
from tiny_forests import batches, flat, group, sequence

from togi.core.errors import InputError
from togi.model.attention import TREE_ATTENTION, Options, attend, attend_explicitly, attend_flexibly, block_mask
from togi.model.blocks import plan
from togi.model.forest import (
    Layout,
    MicroBatch,
    Sequence,
    Tree,
    bucket,
    move,
    num_tokens,
    plant,
    split_by_tokens,
)
from togi.model.policy import Policy, plain_logprobs, score_tokens


def results(net, groups: list[list[Sequence]], way: str) -> tuple[torch.Tensor, ...]:
    """Log-probabilities and the gradients of a weighted sum of them, one vector each, in float64."""
    if way == "plain":
        logp_N = plain_logprobs(net, flat(groups))
    else:
        logp_N = Policy(net, chunk=3)(plant(groups)).logp_N
    weight_N = torch.linspace(0.5, 1.5, len(logp_N), dtype=logp_N.dtype)
    (logp_N * weight_N).sum().backward()
    grads = [p.grad.flatten() for p in net.parameters() if p.grad is not None]
    return logp_N.detach().double(), torch.cat(grads).double()


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", batches())
def test_a_forest_equals_the_plain_computation(kind, name):
    groups = batches()[name]
    with TrueFloat64():
        both = [results(tiny_model(kind), groups, way) for way in ("forest", "plain")]
    for found, expected in zip(*both, strict=True):
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 1e-10


@pytest.mark.parametrize("kind", CONFIGS)
def test_in_fp32_a_forest_is_as_near_to_the_truth_as_the_plain_computation(kind):
    groups = batches()["many"]
    truth = tiny_model(kind)
    truth.load_state_dict(tiny_model(kind, torch.float32).state_dict())
    with TrueFloat64():
        expected = results(truth, groups, "plain")
    errors = {}
    for way in ("forest", "plain"):
        found = results(tiny_model(kind, torch.float32), groups, way)
        errors[way] = [(a - b).norm() for a, b in zip(found, expected, strict=True)]
    for ours, plain in zip(errors["forest"], errors["plain"], strict=True):
        assert ours < 2 * plain + 2e-6


@pytest.mark.parametrize("kind", CONFIGS)
def test_without_a_forest_tree_attention_is_the_plain_one(kind):
    ids = torch.tensor([[5, 9, 33, 7, 60, 61, 62, 63, 64, 2], [8, 8, 8, 9, 10, 11, 12, 13, 0, 0]])
    mask = (ids != 0).long()
    with torch.no_grad():
        own, plain = (tiny_model(kind, attention=name)(ids, attention_mask=mask) for name in (TREE_ATTENTION, "eager"))
    torch.testing.assert_close(own.logits[mask == 1], plain.logits[mask == 1], rtol=1e-4, atol=1e-4)


def test_bf16_differs_from_the_plain_computation_by_no_more_than_bf16_errs():
    net, groups = tiny_model("llama", torch.bfloat16), batches()["many"]
    truth = plain_logprobs(tiny_model("llama").double(), flat(groups)).detach()
    plain = plain_logprobs(net, flat(groups)).detach()
    found = Policy(net)(plant(groups)).logp_N.detach()
    assert found.dtype == torch.float32
    assert (found - truth).abs().mean() < 2 * (plain - truth).abs().mean()


def broken_positions(forest):
    return replace(forest, position_T=torch.arange(len(forest.ids_T)), cache={})


def missing_trunk(forest):
    trees = [Tree(*run) for tree in forest.layout.trees for run in ((tree.start, tree.trunk_stop), *tree.branches)]
    return replace(forest, layout=Layout(tuple(trees)))


def one_key_too_many(forest):
    """The trunk takes the first row of the first branch, so the second branch sees one row too many."""
    first = forest.layout.trees[0]
    (start, stop), *rest = first.branches
    moved = Tree(first.start, first.trunk_stop + 1, ((start + 1, stop), *rest))
    return replace(forest, layout=Layout((moved, *forest.layout.trees[1:])))


@pytest.mark.parametrize("broken", [broken_positions, missing_trunk, one_key_too_many])
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_controls_broken_forests_are_caught(kind, broken):
    groups = batches()["group"]
    net = tiny_model(kind)
    with TrueFloat64():
        expected = plain_logprobs(net, flat(groups))
        found = Policy(net)(broken(plant(groups))).logp_N
    assert (found - expected).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_neighbours_never_change_a_score(kind):
    groups = batches()["many"]
    policy = Policy(tiny_model(kind))
    with torch.no_grad():
        together = policy(plant(groups)).logp_N
        alone = torch.cat([policy(plant([one])).logp_N for one in groups])
        backwards = policy(plant(groups[::-1])).logp_N
        again = torch.cat([policy(plant([one])).logp_N for one in groups[::-1]])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(backwards, again, rtol=0, atol=1e-12)


def test_recomputing_layers_changes_nothing():
    groups = batches()["pairs"]
    grads = []
    for again in (False, True):
        policy = Policy(tiny_model("gemma3"))
        if again:
            policy.recompute = True
        policy(plant(groups)).logp_N.sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    assert torch.equal(*grads)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_fused_masks_describe_the_same_forest(kind):
    """The mask of the CUDA path, row by row, against the blocks of the CPU path."""
    forest = plant(batches()["many"])
    window = 5 if kind == "mistral" else None
    size = len(forest.ids_T)
    rows = torch.arange(size)
    seen = block_mask(forest, window).mask_mod(0, 0, rows[:, None], rows[None, :])
    expected = torch.zeros(size, size, dtype=torch.bool)
    for block in plan(forest.layout, window):
        query = torch.arange(block.q1 - block.q0)[:, None]
        distance = query + block.shift - torch.arange(block.k1 - block.k0)
        inside = {
            "all": distance == distance,
            "earlier": distance >= 0,
            "window": (distance >= 0) & (distance < (window or 0)),
        }
        expected[block.q0 : block.q1, block.k0 : block.k1] |= inside[block.see]
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("options", [Options(None, 0.4), Options(5, 0.4), Options(5, 0.4, 2.0)])
def test_all_ways_to_attend_agree(options):
    """The fused kernel's arithmetic runs here without its compiler."""
    forest = plant(batches()["many"])
    torch.manual_seed(1)
    size = len(forest.ids_T)
    query, key, value = (torch.randn(heads, size, 16, dtype=torch.float64) for heads in (4, 2, 2))
    explicit = attend_explicitly(forest, query.unflatten(0, (2, 2)), key, value, options).flatten(0, 1)
    torch.testing.assert_close(attend(forest, query, key, value, options), explicit, rtol=0, atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns that this is slow
        fused = attend_flexibly(forest, query.float(), key.float(), value.float(), options)
    torch.testing.assert_close(fused.double(), explicit, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "mistral"])
def test_no_square_over_the_batch_and_no_logits_of_prompts_are_ever_made(kind):
    rng = random.Random(2)
    policy, forest = Policy(tiny_model(kind)), plant([group(rng, 150, [30, 30, 40])])
    size, scored = len(forest.ids_T), len(forest.target_N)
    with Largest() as largest:
        policy(forest).logp_N.sum().backward()
    assert largest.numel < size * size / 3
    assert largest.numel <= max(scored * VOCABULARY, size * 64)  # 64: the widest layer of these models


def test_layout_of_a_pair():
    forest = plant([[sequence([1, 2, 3, 4], (2, 4)), sequence([1, 2, 5], (2, 3))]])
    assert forest.ids_T.tolist() == [1, 2, 3, 4, 5]
    assert forest.position_T.tolist() == [0, 1, 2, 3, 2]
    assert forest.branch_T.tolist() == [0, 0, 1, 1, 2]
    assert forest.source_N.tolist() == [1, 2, 1]
    assert forest.target_N.tolist() == [3, 4, 5]
    assert forest.sequence_N.tolist() == [0, 0, 1]
    assert forest.last_S.tolist() == [3, 4]
    assert forest.layout.trees == (Tree(0, 2, ((2, 4), (4, 5))),)


def test_a_trunk_ends_before_the_first_scored_token():
    same = sequence([1, 2, 3, 4, 5], (2, 5))
    forest = plant([[same, same]])
    assert forest.branch_T.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert num_tokens([same, same]) == 8


def test_micro_batches_keep_order_and_budget():
    rng = random.Random(1)
    groups = [group(rng, 10, [5, 5, 5]), group(rng, 4, [3]), group(rng, 6, [2, 2])]
    cut = split_by_tokens(groups, 21)
    assert [batch.index_S for batch in cut] == [(0, 1), (2,), (3, 4, 5)]
    assert all(sum(map(num_tokens, batch.groups)) <= 21 for batch in cut)
    policy = Policy(tiny_model("llama"))
    whole = policy(plant(groups)).logp_N
    parts = torch.cat([policy(plant(batch.groups)).logp_N for batch in cut])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)


def test_a_sequence_over_the_budget_stands_alone():
    long, short = sequence([1] * 9, (1, 9)), sequence([1, 2], (1, 2))
    assert split_by_tokens([[short], [long], [short]], 4) == [
        MicroBatch(groups=((s,),), index_S=(i,)) for i, s in enumerate((short, long, short))
    ]


def test_buckets_waste_at_most_a_quarter():
    assert [bucket(n) for n in (1, 128, 700, 1025, 5000)] == [128, 128, 768, 1280, 5120]
    assert all(n <= bucket(n) <= max(128 + n, n * 1.25) for n in range(1, 9000, 37))
    assert len({bucket(n) for n in range(1, 65536)}) < 40


def test_moving_to_the_same_device_changes_nothing():
    forest = plant(batches()["many"])
    assert move(forest, "cpu") is forest


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Sequence((), ()), "0 ids"),
        (lambda: Sequence((1, 2), (False,)), "2 ids and 1 flags"),
        (lambda: Sequence((1, 2), (True, False)), "first token"),
        (lambda: plant([]), "at least one sequence"),
    ],
)
def test_bad_sequences_are_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_nothing_scored_gives_nothing():
    out = score_tokens(Policy(tiny_model("llama")).net, plant([[sequence([1, 2, 3])]]), entropy=True)
    assert out.logp_N.shape == (0,) and out.logp_N.requires_grad


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3", "gemma2", "mixtral"])
@torch.no_grad()
def test_the_attention_of_accelerators_equals_the_plain_computation(kind, monkeypatch):
    """Run here without its compiler; FlexAttention has no backward on CPU."""
    met = []

    def fused(forest, *given):
        met.append(forest)
        return attend_flexibly(forest, *given)

    for name in ("attention", "fused_attention"):
        monkeypatch.setattr(f"togi.model.{name}.attend", fused)
    net, groups = tiny_model(kind, torch.float32), batches()["many"]
    expected = plain_logprobs(net, flat(groups))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns that this is slow
        found = Policy(net, check=False)(plant(groups)).logp_N
    assert met
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["llama", "gemma3", "gemma2"])
def test_the_fused_kernel_equals_the_plain_computation(kind):
    net, groups = tiny_model(kind, torch.float32).cuda(), batches()["many"]
    expected = plain_logprobs(net, flat(groups))
    found = Policy(net)(move(plant(groups), "cuda")).logp_N
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
