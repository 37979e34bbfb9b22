"""Two ranks do the same as one process: same gradients, same weights. Checkpoints fit any number of ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import BYTES, VOCABULARY, tiny_model, tiny_tokenizer
from together import together
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from togi.core.errors import StageError
from togi.core.files import read_json
from togi.core.ranks import ALONE, Ranks
from togi.model.adapter import LoraSettings
from togi.model.card import About
from togi.model.forest import Forest, plant
from togi.model.forest import Sequence as TokenSequence
from togi.model.load import LoadedModel
from togi.model.lora import add_lora
from togi.model.policy import Policy
from togi.model.save import check_saved, check_saved_adapter, save_adapter, save_model
from togi.objectives.base import Batch, Output
from togi.objectives.grpo import GRPO
from togi.text.template import get_template
from togi.train.checkpoint import capture, newest_complete, restore, save
from togi.train.loop import MicroBatch, train_steps
from togi.train.optimizer import AdamWSettings, Schedule, Update, build_adamw, trained
from togi.train.sharding import ShardedModel, on_first_rank_whole

CHATML = get_template("chatml-nobos")
PARTS = 3  # micro-batches of a step; an odd number, so that one of two ranks is idle in the last round


def sequence(seed: int, length: int, scored: int) -> TokenSequence:
    ids = tuple((seed * 31 + 7 * i * i + 3 * i) % (VOCABULARY - 3) + 3 for i in range(length))
    return TokenSequence(ids, (False,) * (length - scored) + (True,) * scored)


def micro_batch(step: int, part: int, dtype: torch.dtype, idle: bool) -> MicroBatch[Forest]:
    """Trees of different sizes. The first part of each step has no scored token, as if its answers were cut off."""
    scored = 5 + part if part else 0
    prompt = sequence(step + part, 6, 0)
    answers = [sequence(100 * step + 10 * part + k, 9 + part, 0).ids for k in range(2)]
    marks = (False,) * (len(prompt.ids) + 9 + part - scored) + (True,) * scored
    forest = plant([[TokenSequence(prompt.ids + answer, marks) for answer in answers]])
    batch = Batch(
        num_sequences=2, sequence_N=forest.sequence_N, advantage_S=torch.tensor([1.0 + part, -0.5], dtype=dtype)
    )
    return MicroBatch(inputs=forest, batch=batch, rows=(f"{step}/{part}",), num_tokens=20, idle=idle)


def shares(step: int, dtype: torch.dtype, ranks: Ranks) -> list[MicroBatch[Forest]]:
    return [micro_batch(step, part, dtype, idle) for part, idle in ranks.share(range(PARTS))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording(Update):
    """Keeps the whole gradient of the first step."""

    grads: dict[int, Tensor] = field(default_factory=dict)

    def apply(self, step: int, rows: str = "") -> tuple[float, float]:
        if not self.grads:
            for i, param in enumerate(self.params):
                assert param.grad is not None
                grad = param.grad.full_tensor() if isinstance(param.grad, DTensor) else param.grad
                self.grads[i] = grad.clone()
        return super(Recording, self).apply(step, rows)


class Run:
    """A tiny policy that is trained on some ranks."""

    def __init__(self, ranks: Ranks, kind: str = "llama", dtype: torch.dtype = torch.float64, **changes: Any) -> None:
        self.ranks, self.dtype = ranks, dtype
        lora = changes.pop("lora", False)
        net: Any = tiny_model(kind, dtype, **changes)
        if lora:
            net = add_lora(net, LoraSettings(rank=2), seed=3)
            torch.manual_seed(1)
            for name, param in net.named_parameters():
                if "lora_B" in name:
                    param.data.normal_()
        self.policy = Policy(net, check=False)
        self.spread = ShardedModel(self.policy, ranks)
        self.params = trained(self.spread.module.net.named_parameters())
        optimizer = build_adamw(self.params, AdamWSettings(learning_rate=1e-3, weight_decay=0.1))
        self.update = Recording(optimizer=optimizer, schedule=Schedule(), max_grad_norm=0.1)
        self.step = 0

    def forward(self, forest: Forest) -> Output:
        return Output(logp_N=self.spread.module(forest).logp_N)

    def go(self, last: int) -> list[Any]:
        steps = (shares(step, self.dtype, self.ranks) for step in range(self.step, last))
        infos = train_steps(self.forward, self.update, GRPO(), steps, first_step=self.step, ranks=self.ranks)
        found = [(info.loss, info.grad_norm, info.num_tokens, info.metrics) for info in infos]
        self.step = last
        return found

    def save(self, folder: Path) -> "Run":
        save(folder, capture(self.step, self.params, self.update.optimizer, {"x": 1}), ranks=self.ranks)
        return self

    def restore(self, folder: Path) -> "Run":
        path = newest_complete(folder)
        assert path is not None
        self.step = restore(path, self.params, self.update.optimizer, self.ranks).step
        return self

    def weights(self) -> dict[str, Tensor]:
        """Returns the whole weights, gathered from all ranks. Ends the training."""
        if self.ranks.several:
            self.spread.gather()
        return {name: param.detach().clone() for name, param in self.policy.named_parameters()}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def train(ranks: Ranks, kind: str, dtype: torch.dtype, changes: dict[str, Any]) -> tuple[Any, ...]:
    run = Run(ranks, kind, dtype, **changes)
    if ranks.several:
        assert all(isinstance(param, DTensor) for param in run.params.values())
    if changes.get("averaged"):
        for part in run.spread.module.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(float(ranks.size))
    infos = run.go(5)
    return run.update.grads, run.weights(), infos


def start_weights(kind: str, dtype: torch.dtype, changes: dict[str, Any]) -> dict[str, Tensor]:
    return Run(ALONE, kind, dtype, **changes).weights()


CASES = [
    ("llama", torch.float64, {}),
    ("llama", torch.float32, {}),
    ("gemma3", torch.float64, {"tie_word_embeddings": True}),
    ("mixtral", torch.float64, {}),
    ("llama", torch.float64, {"lora": True}),
]


@pytest.mark.parametrize(("kind", "dtype", "changes"), CASES)
def test_two_ranks_make_the_same_update_as_one_process(kind, dtype, changes):
    grads, weights, infos = train(ALONE, kind, dtype, dict(changes))
    start = start_weights(kind, dtype, dict(changes))
    several = together(2, train, kind, dtype, dict(changes))
    wide = dtype == torch.float64
    for other_grads, other_weights, other_infos in several:
        for i, grad in grads.items():
            error = (other_grads[i] - grad).abs().max() / grad.abs().max().clamp(min=1e-30)
            assert error <= (1e-12 if wide else 1e-5)
        assert distance(weights, other_weights) <= (1e-9 if wide else 1e-3) * distance(weights, start)
        for (loss, norm, tokens, metrics), info in zip(other_infos, infos, strict=True):
            assert (loss, norm) == pytest.approx(info[:2], rel=1e-9 if wide else 1e-4, abs=1e-7)
            assert tokens == info[2] and metrics == pytest.approx(info[3], rel=1e-4, abs=1e-6)
    assert all(torch.equal(several[0][1][name], several[1][1][name]) for name in weights)


def test_averaged_gradients_would_be_caught():
    grads, _, _ = train(ALONE, "llama", torch.float64, {})
    for other, _, _ in together(2, averaged):
        assert all((other[i] - grad / 2).abs().max() <= 1e-12 * grad.abs().max() for i, grad in grads.items())


def averaged(ranks: Ranks) -> tuple[Any, ...]:
    run = Run(ranks)
    for part in run.spread.module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(float(ranks.size))
    run.go(1)
    return run.update.grads, None, None


def test_weights_that_are_not_sharded_are_summed_too():
    def work(ranks: Ranks) -> list[Tensor]:
        run = Run(ALONE)  # every rank holds all weights
        run.ranks = ranks
        run.go(3)
        return [*run.update.grads.values(), *run.weights().values()]

    one = Run(ALONE)
    one.go(3)
    for found in together(2, work):
        # the gradient is recorded after the sum
        for a, b in zip(found, [*one.update.grads.values(), *one.weights().values()], strict=True):
            assert (a - b).abs().max() <= 1e-12


def saved_from_shards(ranks: Ranks, folder: Path, kind: str, changes: dict[str, Any], dtype: torch.dtype) -> list[str]:
    """Saves a trained model from the shards of all ranks, and once more from whole weights. Returns the faults that
    reading the first back finds."""
    runs = [Run(ranks, kind, torch.float32, vocab_size=BYTES, **changes) for _ in range(2)]
    for run in runs:
        run.go(2)
    shards, whole = runs
    shards.spread.give_back()
    params = list(shards.policy.parameters())
    assert all(isinstance(param, DTensor) for param in params)
    faults = ["it was not saved"]

    def save(read: Callable[[Tensor], Tensor]) -> None:
        model = LoadedModel(net=shards.policy.net, tokenizer=tiny_tokenizer(), template=CHATML, name="m", whole=read)
        save_model(model, folder / "shards", dtype=dtype)
        faults[:] = check_saved(model, folder / "shards")
        if "lora" in changes:
            save_adapter(model, folder / "adapter-shards", About())
            faults.extend(check_saved_adapter(model, folder / "adapter-shards"))

    on_first_rank_whole(shards.policy.net, ranks, save)
    assert all(param is other for param, other in zip(params, shards.policy.parameters(), strict=True))
    whole.weights()
    if ranks.first:
        model = LoadedModel(net=whole.policy.net, tokenizer=tiny_tokenizer(), template=CHATML, name="m")
        save_model(model, folder / "whole", dtype=dtype)
        if "lora" in changes:
            save_adapter(model, folder / "adapter-whole", About())
    return faults


@pytest.mark.parametrize(
    ("kind", "changes", "dtype"),
    [
        ("llama", {"tie_word_embeddings": True}, torch.float32),
        ("mixtral", {}, torch.bfloat16),
        ("llama", {"lora": True}, torch.float16),
    ],
)
def test_a_model_saved_from_shards_has_the_bytes_of_one_saved_whole(kind, changes, dtype, tmp_path):
    (faults, _) = together(2, saved_from_shards, tmp_path, kind, changes, dtype)
    assert faults == []
    for one in [path for path in tmp_path.glob("*whole/*") if path.is_file()]:
        other = tmp_path / one.parent.name.replace("whole", "shards") / one.name
        assert one.read_bytes() == other.read_bytes(), one


def failed_saving(ranks: Ranks) -> tuple[str, list[int]]:
    run = Run(ranks)
    run.spread.give_back()

    def save(read: Callable[[Tensor], Tensor]) -> None:
        read(next(run.policy.parameters()))
        raise OSError("the disk is full")

    try:
        on_first_rank_whole(run.policy, ranks, save)
    except OSError as error:
        return str(error), ranks.gather(ranks.rank)
    return "", ranks.gather(ranks.rank)


def test_if_saving_fails_on_the_first_rank_the_others_go_on():
    assert together(2, failed_saving) == [("the disk is full", [0, 1]), ("", [0, 1])]


# --- checkpoints ------------------------------------------------------------------------------------------------------


def resumed(ranks: Ranks, folder: Path, last: int, kind: str = "llama", **changes: int) -> dict[str, Tensor]:
    run = Run(ranks, kind, **changes)
    if folder.exists():
        run.restore(folder)
    ranks.barrier()
    run.go(last)
    return run.save(folder).weights()


def test_two_ranks_resume_with_the_same_bytes(tmp_path):
    whole = together(2, resumed, tmp_path / "whole", 4)
    together(2, resumed, tmp_path / "parts", 2)
    parts = together(2, resumed, tmp_path / "parts", 4)
    for one, other in zip(whole, parts, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    for path in (tmp_path / "whole" / "step-00000004").iterdir():
        other = tmp_path / "parts" / "step-00000004" / path.name
        assert path.read_bytes() == other.read_bytes(), path.name
    manifest = read_json(tmp_path / "parts" / "step-00000004" / "manifest.json")
    assert manifest["ranks"] == 2 and len(manifest["sha256"]) == 7


WIDTHS = {"hidden_size": 12, "head_dim": 4, "num_attention_heads": 3, "num_key_value_heads": 3, "intermediate_size": 24}


@pytest.mark.parametrize(
    ("sizes", "kind"), [((2, 1, 2), "llama"), ((1, 2, 1), "llama"), ((3, 2, 1), "llama"), ((3, 2, 1, 3), "mixtral")]
)
def test_checkpoints_fit_any_number_of_ranks(tmp_path, sizes, kind):
    """Three ranks divide four experts along another dimension than two do."""
    changes = WIDTHS if kind == "mixtral" else {}
    for step, size in enumerate(sizes, 1):
        if size == 1:
            found = [resumed(ALONE, tmp_path / "run", step, kind, **changes)]
        else:
            found = together(size, partial(resumed, **changes), tmp_path / "run", step, kind)
    one = Run(ALONE, kind, **changes)
    start = one.weights()
    one.go(len(sizes))
    weights = one.weights()
    assert all(distance(other, weights) <= 1e-9 * distance(weights, start) for other in found)


def test_a_checkpoint_without_one_ranks_part_is_passed_over(tmp_path, caplog):
    folder = tmp_path / "run"
    together(2, resumed, folder, 1)
    together(2, resumed, folder, 2)
    (folder / "step-00000002" / "weights-00002-of-00002.safetensors").unlink()
    assert newest_complete(folder) == folder / "step-00000001"
    assert "weights-00002-of-00002.safetensors is missing" in caplog.text


# --- one loss is not finite -------------------------------------------------------------------------------------------


def broken(ranks: Ranks) -> str:
    run = Run(ranks)
    micro = shares(0, torch.float64, ranks)
    if ranks.rank == 1:
        micro[0].batch.advantage_S[:] = torch.inf
    try:
        list(train_steps(run.forward, run.update, GRPO(), [micro], ranks=ranks))
    except StageError as error:
        return str(error)
    return ""


def test_a_loss_that_is_not_finite_ends_all_ranks_and_names_the_rows_of_the_one():
    first, second = together(2, broken)
    assert first == second and "Rows: 0/1." in first


# --- agreement --------------------------------------------------------------------------------------------------------


def agree(ranks: Ranks) -> tuple[Any, ...]:
    return (
        ranks.gather(ranks.rank * 10),
        ranks.on_first_rank(lambda: {"from": ranks.rank}),
        ranks.any(ranks.rank == 1),
        ranks.in_turn(lambda: ranks.rank),
    )


def take_turns(ranks: Ranks) -> list[str]:
    said: list[str] = []

    def make() -> str:
        ranks.still_here()
        said.append("made")
        ranks.still_here()
        return "value"

    said.append(ranks.in_turn(make))
    ranks.still_here()  # outside a turn it does not communicate
    return said


def test_the_first_rank_says_that_it_is_still_at_its_turn():
    assert together(2, take_turns) == [["made", "value"]] * 2


def test_ranks_agree():
    assert together(2, agree) == [([0, 10], {"from": 0}, True, rank) for rank in range(2)]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("count", range(9))
def test_parts_are_shared_once_and_all_ranks_get_as_many(count, size):
    def share(rank: int) -> Sequence[tuple[int, bool]]:
        ranks = Ranks()
        ranks.rank, ranks.size = rank, size
        return ranks.share(range(count))

    every = [share(rank) for rank in range(size)]
    assert len({len(own) for own in every}) == 1
    assert sorted(part for own in every for part, idle in own if not idle) == list(range(count))
    assert [part for part, idle in every[0] if not idle] == list(range(0, count, size))
