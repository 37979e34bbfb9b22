"""Attention of forests by compiled functions, against the same computation in float64."""

import copy
import random
import shutil

import pytest
import torch
from tiny import CONFIGS, VOCABULARY, TrueFloat64, tiny_model

from togi import kernels
from togi.kernels.attention import BlockAttention, Options, attend, functions_for
from togi.kernels.dispatch import kernels as chosen
from togi.kernels.native import Native
from togi.model.blocks import blocks_of, plan
from togi.model.forest import Layout, Sequence, Tree, plant
from togi.model.policy import Policy, plain_logprobs

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

ERRORS = {torch.float32: 1e-6, torch.bfloat16: 4e-3}
"""Relative errors of whole tensors: far above rounding, far below the effect of a mistake."""


@pytest.fixture(scope="module")
def functions() -> Native:
    found = chosen().native
    assert found is not None
    return found


def laid_out(*trees: tuple[int, tuple[int, ...]]) -> Layout:
    """Trees one after another, each given by the length of its trunk and the lengths of its branches."""
    found, at = [], 0
    for trunk, branches in trees:
        start = at
        at += trunk
        ends = []
        for length in branches:
            ends.append((at, at + length))
            at += length
        found.append(Tree(start, start + trunk, tuple(ends)))
    return Layout(tuple(found))


LAYOUTS = {
    "one token": laid_out((1, ())),
    "a step to the row": laid_out((128, ())),
    "a text": laid_out((300, ())),
    "a trunk of one": laid_out((1, (3, 1))),
    "a pair and texts": laid_out((70, (31, 33)), (5, ()), (161, (140, 2)), (129, ())),
    "a group": laid_out((140, (1, 40, 64, 130, 7))),
}


def heads(layout: Layout, num_heads: int, num_keys: int, size: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Query (H, T, D), key (K, T, D), value (T, K, D) and the gradient of the output (T, H, D)."""
    num_rows = max(stop for tree in layout.trees for stop in (tree.trunk_stop, *(b for _, b in tree.branches)))
    generator = torch.Generator().manual_seed(num_rows)
    shapes = [(num_heads, num_rows), (num_keys, num_rows), (num_rows, num_keys), (num_rows, num_heads)]
    return [torch.randn(*shape, size, generator=generator).to(dtype) for shape in shapes]


def by_torch(
    layout: Layout, options: Options, tensors: list[torch.Tensor], dtype: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    """Output and gradients by torch's kernel over the same blocks, which model/test_forest.py compares with the plain
    computation."""
    query, key, value = (x.to(dtype).clone().requires_grad_() for x in tensors[:3])
    grouped = query.unflatten(0, (len(key), -1))
    out = BlockAttention.apply(grouped, key, value.transpose(0, 1), plan(layout, options.window), options)
    out = out.flatten(0, 1).transpose(0, 1)
    out.backward(tensors[3].to(dtype))
    return [out.detach(), query.grad, key.grad, value.grad]


def found(functions: Native, layout: Layout, options: Options, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    query, key, value = (x.clone().requires_grad_() for x in tensors[:3])
    blocks = blocks_of(layout, options.window)
    assert functions_for((query, key, value.transpose(0, 1)), blocks.table) is functions
    out = attend(query, key, value.transpose(0, 1), blocks, options).transpose(0, 1)
    out.backward(tensors[3])
    return [out.detach(), query.grad, key.grad, value.grad]


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("window", [None, 1, 40, 130])
@pytest.mark.parametrize(("num_heads", "num_keys", "size"), [(3, 1, 32), (4, 2, 64), (2, 2, 96)])
def test_compiled_attention_is_as_near_to_the_truth_as_torchs(
    functions, dtype, name, window, num_heads, num_keys, size
):
    layout, options = LAYOUTS[name], Options(window=window, scale=1.7 * size**-0.5)
    tensors = heads(layout, num_heads, num_keys, size, dtype)
    three = found(functions, layout, options, tensors), by_torch(layout, options, tensors, dtype)
    for ours, theirs, true in zip(*three, by_torch(layout, options, tensors), strict=True):
        assert ours.dtype == dtype
        error = (theirs.double() - true).norm()
        assert (ours.double() - true).norm() <= 2 * error + ERRORS[torch.float32] * true.numel() ** 0.5


@pytest.mark.parametrize("dtype", ERRORS)
def test_controls_another_layout_or_window_is_caught(functions, dtype):
    layout, options = LAYOUTS["a pair and texts"], Options(window=None, scale=0.2)
    tensors = heads(layout, 2, 1, 32, dtype)
    true = by_torch(layout, options, tensors)
    moved = laid_out((70, (32, 32)), (5, ()), (161, (140, 2)), (129, ()))  # one token moved to the other answer
    for wrong in (
        found(functions, moved, options, tensors),
        found(functions, layout, Options(window=200, scale=0.2), tensors),
    ):
        assert any((a.double() - b).norm() > 5 * ERRORS[dtype] * b.norm() for a, b in zip(wrong, true, strict=True))


@pytest.mark.parametrize("dtype", ERRORS)
def test_threads_and_neighbours_change_no_bit(functions, dtype):
    layout, options, before = LAYOUTS["a pair and texts"], Options(window=None, scale=0.2), torch.get_num_threads()
    tensors = heads(layout, 4, 2, 64, dtype)
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(found(functions, layout, options, tensors))
    finally:
        torch.set_num_threads(before)
    for one, two, three in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    first = Layout(layout.trees[:1])
    rows = max(stop for _, stop in first.trees[0].branches)
    alone = [tensors[0][:, :rows], tensors[1][:, :rows], tensors[2][:rows], tensors[3][:rows]]
    for i, (own, among) in enumerate(zip(found(functions, first, options, alone), results[0], strict=True)):
        assert torch.equal(own, among[:, :rows] if i in (1, 2) else among[:rows])


@pytest.mark.parametrize("dtype", ERRORS)
def test_a_number_that_is_none_stays_none_and_with_those_that_see_it(functions, dtype):
    layout, options = laid_out((40, ()), (30, (20, 20))), Options(window=None, scale=0.2)
    tensors = heads(layout, 2, 1, 32, dtype)
    tensors[1][0, 45] = torch.nan  # a key of the second trunk
    out, *grads = found(functions, layout, options, tensors)
    assert not out[:45].isnan().any()
    assert out[45:].isnan().all()
    assert not any(grad[:, :40].isnan().any() for grad in grads[:2])
    assert grads[0][:, 45:].isnan().all()


def test_what_is_not_compiled_goes_another_way(functions):
    table = blocks_of(LAYOUTS["a text"], None).table
    heads = lambda rows, size, dtype: (torch.zeros(1, rows, size, dtype=dtype),) * 3  # noqa: E731
    assert functions_for(heads(300, 32, torch.float32), table) is functions
    assert functions_for(heads(300, 40, torch.float32), table) is None  # not a multiple of 32
    assert functions_for(heads(300, 32, torch.float64), table) is None
    assert functions_for(heads(301, 32, torch.float32), table) is None  # a row that is in no tree
    query, key, value = heads(300, 32, torch.float32)
    assert functions_for((query, key.bfloat16(), value.bfloat16()), table) is None
    with kernels.without("attend"):
        assert functions_for((query, key, value), table) is None
    assert table.total == 300


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "gemma2"])  # its scores are capped
def test_models_with_wide_heads_are_as_near_to_the_truth_as_the_plain_computation(kind, functions, monkeypatch):
    met = set()

    def watched(name: str):
        real = getattr(Native, name)
        return lambda self, *given: met.add(name) or real(self, *given)

    for name in ("attend", "attend_backward"):
        monkeypatch.setattr(Native, name, watched(name))
    rng = random.Random(3)
    prompt, texts = ([rng.randrange(3, VOCABULARY) for _ in range(n)] for n in (12, 40))
    scored = (False,) * 12 + (True,) * 9
    sequences = [Sequence((*prompt, *texts[i : i + 9]), scored) for i in (0, 9, 18)]
    groups = [sequences[:2], [Sequence(tuple(texts[:21]), scored)], sequences[2:]]

    def results(net, way) -> tuple[torch.Tensor, torch.Tensor]:
        logp_N = way(net)
        (logp_N * torch.linspace(0.5, 1.5, len(logp_N), dtype=logp_N.dtype)).sum().backward()
        grads = [p.grad.flatten() for p in net.parameters() if p.grad is not None]
        return logp_N.detach().double(), torch.cat(grads).double()

    plain = lambda net: plain_logprobs(net, [s for group in groups for s in group])  # noqa: E731
    forest = lambda net: Policy(net, check=False)(plant(groups)).logp_N  # noqa: E731
    start = tiny_model(kind, torch.float32, head_dim=32)
    exact = tiny_model(kind, head_dim=32)
    exact.load_state_dict(start.state_dict())
    with TrueFloat64():
        truth = results(exact, plain)
    ours, theirs = results(copy.deepcopy(start), forest), results(start, plain)
    assert met == {"attend", "attend_backward"}
    for mine, other, true in zip(ours, theirs, truth, strict=True):
        assert (mine - true).norm() < 2 * (other - true).norm() + 2e-6
