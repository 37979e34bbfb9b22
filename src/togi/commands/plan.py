"""What the stages of a recipe will take, before they run: records, tokens, operations, peak memory, time.

Each stage estimates its own cost (stages/cost.py). Here stands what is the same for all of them: what is on the disk,
lengths in tokens, and the memory, operations and time of a training. Importing this file does not import torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from togi.client.endpoint import Price, Tokens
from togi.commands.plan_models import expected, outside
from togi.commands.plan_texts import texts
from togi.core.codec import read_records
from togi.core.errors import InputError
from togi.core.files import read_cache
from togi.core.records import KINDS
from togi.core.settings import MAIN, EmbedderRef, ModelRef, Ref, ScorerRef
from togi.core.sources import ModelSource
from togi.core.strangers import run_stranger
from togi.model.sizes import Shape, largest, predict, training_flops
from togi.stages.base import StageSettings, output_path
from togi.stages.cost import Cost, Known
from togi.stages.table import STAGES, kinds_taken
from togi.stages.training.job import TrainingJob
from togi.stages.training.resources import USABLE_CPU
from togi.train.machine import available, has_accelerator

SMALLEST = 256  # tokens of a micro-batch that `auto` may choose
COUNTED = 200
"""Records whose tokens are counted; the others are taken to be as long on average."""


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A node of the graph: its settings, what its references stand for, its folder, and whether it is done."""

    name: str
    settings: StageSettings
    inputs: Mapping[str, "str | ModelSource"]
    folder: Path
    done: bool


def estimates(
    stages: Sequence[PlannedStage], store: Path, compute: str = "", prices: Mapping[str, Price] | None = None
) -> dict[str, Cost]:
    """The cost of each stage, by name; `stages` stand after their inputs. `compute` is the type of matrix
    multiplications; `prices` are those of the models on servers, by their names."""
    planner = _Planner(store, compute or _products(store), prices or {})
    return {stage.name: planner.stage(stage) for stage in stages}


class _Planner:
    def __init__(self, store: Path, compute_dtype: str, prices: Mapping[str, Price]) -> None:
        self.store = store
        self.compute_dtype = compute_dtype
        self.prices = prices
        self.known: dict[tuple[str, str], Known] = {}  # by stage and output

    def stage(self, stage: PlannedStage) -> Cost:
        kind = STAGES[stage.settings.type]
        inputs = _Inputs(self, stage)
        cost = Cost() if kind.estimate is None else kind.estimate(stage.settings, inputs)
        self._servers(stage, inputs, cost)
        if kind.job is not None:
            self._training(kind.job(stage.settings), inputs, cost)
        for name, output in kind.outputs(stage.settings).items():
            found = cost.outputs.get(name, Known(records=cost.records if name == MAIN else None))
            path = stage.folder / output_path(output, name)
            if stage.done and output in KINDS and path.exists():
                samples = read_records(path)[1]
                found = Known(records=len(samples), samples=samples)
            self.known[stage.name, name] = replace(found, why=found.why or f"unknown until {stage.name} ran")
        return cost

    def _servers(self, stage: PlannedStage, inputs: "_Inputs", cost: Cost) -> None:
        """Leaves of the requests of a stage those that go to servers, and adds what they cost. A stage that asks
        several models asks each as often."""
        models = [ref for ref in stage.inputs if isinstance(ref, ModelRef | ScorerRef | EmbedderRef)]
        servers = [ref for ref in models if ref.name in self.prices]
        if cost.asked:
            self._each(servers, cost)
            return
        calls = cost.calls
        if not servers:
            cost.calls = None if models else calls
            return
        if calls is None:
            cost.unknown.append(f"calls: how often {', '.join(servers)} is asked")
            return
        cost.calls = math.ceil(calls * len(servers) / len(models))
        read, what = inputs.read(calls, cost.read)
        used = Tokens(math.ceil(read / len(models)), math.ceil((cost.sampled or 0) / len(models)))
        cost.money = sum(self.prices[ref.name].of(used) for ref in servers) or None
        cost.read = used.input * len(servers)
        cost.notes.append(f"tokens read: counted {what}")

    def _each(self, servers: Sequence[Ref], cost: Cost) -> None:
        """`_servers` for a stage that says what it asks of each model."""
        asked = {ref.name: cost.asked[ref.name] for ref in servers if ref.name in cost.asked}
        used = {name: Tokens(each.read, each.written) for name, each in asked.items()}
        if asked:
            cost.calls = sum(each.calls for each in asked.values())
            cost.read = sum(each.read for each in asked.values())
            cost.money = sum(self.prices[name].of(tokens) for name, tokens in used.items()) or None

    # --- stages that train --------------------------------------------------------------------------------------------

    def _training(self, job: TrainingJob, inputs: "_Inputs", cost: Cost) -> None:
        """Adds the memory, the operations and the time of a training, and what is known of its model."""
        model = inputs[job.init]
        shape = None if model.shape is None else job.shape(model.shape)
        cost.outputs[MAIN] = replace(model, records=None, samples=(), added=0, shape=shape)
        if shape is None:
            cost.unknown.append(model.why)
            return
        self._peak(job, shape, self._scorers(job, inputs, cost), cost)
        if cost.tokens is not None:
            cost.flops = training_flops(shape, job.at(self.compute_dtype), cost.tokens, cost.tokens, 0)
            cost.flops += 2.0 * cost.load.forward * (shape.used_matrices + shape.embeddings)
            self._time(job.settings.type, cost)

    def _scorers(self, job: TrainingJob, inputs: "_Inputs", cost: Cost) -> list[Shape]:
        """The sizes of the reward models that stand beside a training, as far as they are known."""
        shapes = []
        for ref in job.scorers:
            model = inputs[ref]
            if model.shape is None:
                cost.unknown.append(f"peak memory: without the reward model {ref}, {model.why}")
            else:
                shapes.append(model.shape)
        return shapes

    def _peak(self, job: TrainingJob, shape: Shape, scorers: list[Shape], cost: Cost) -> None:
        """The peak memory: a micro-batch is as large as it may be, or as the step is; a longer example has its own."""
        here = job.at(self.compute_dtype)
        beside = job.beside(shape, self.compute_dtype, scorers)
        limit = job.settings.micro_batch_tokens
        room = math.inf
        if limit == "auto" and has_accelerator():
            why = "chosen of the accelerator's memory when the stage begins"
            cost.unknown.append(f"peak memory: micro_batch_tokens auto, {why}")
            return
        if limit == "auto":
            room = USABLE_CPU * available() / job.settings.processes
            limit = largest(shape, here, room - beside) or SMALLEST
        tokens = math.ceil(max(min(limit, cost.load.step), cost.load.example))
        cost.peak_bytes = predict(shape, here, tokens).peak + beside
        if room < math.inf:
            fits = f"{limit:,} tokens fit" if cost.peak_bytes <= room else "the peak is more than"
            cost.notes.append(f"micro_batch_tokens auto: {fits} the {room / 1e9:.2f} GB that may be used now")
        longest = ", the longest example" if tokens > limit else ""
        cost.notes.append(f"peak: with micro-batches of {tokens:,} tokens{longest}")

    def _time(self, kind: str, cost: Cost) -> None:
        """The time that the operations take at the speed of an earlier stage."""
        assert cost.flops is not None
        rate = achieved(self.store, kind)
        if rate is None:
            rate = achieved(self.store, "train.*")
            if rate is None:
                cost.unknown.append("time: no stage that trains has finished in this store yet")
                return
            cost.notes.append(f"time: at the speed of another kind of training, since no {kind} has finished")
        cost.seconds = cost.flops / rate


class _Inputs:
    """What a stage may ask about what it reads (stages/cost.py)."""

    def __init__(self, planner: _Planner, stage: PlannedStage) -> None:
        self.planner = planner
        self.stage = stage
        self.takers = kinds_taken()

    def __getitem__(self, ref: Ref, /) -> Known:
        target = self.stage.inputs[ref]
        if isinstance(target, ModelSource):
            return outside(target, self.planner.store)
        return self.planner.known[target, ref.output]

    @property
    def records(self) -> list[Known]:
        """What is known of the records that the stage reads."""
        refs = [Ref(ref) for ref in self.stage.inputs if not isinstance(ref, ModelRef | ScorerRef | EmbedderRef)]
        return [self[ref] for ref in refs]

    def read(self, calls: int, told: int | None) -> tuple[float, str]:
        """Tokens that `calls` requests about the records read, `told` where the stage says it, and how they are
        counted."""
        expected = [came.tokens + came.added for came in self.records if came.tokens is not None and not came.samples]
        if told is not None:
            return told, "as the recipe expects them" if expected else "in bytes of what is asked, which is more"
        if expected:
            mean = sum(expected) / len(expected)
            return calls * mean, "as the recipe expects the records, without instructions around them"
        return calls * self.mean_bytes(), "in bytes of the records, which is more, without instructions around them"

    def mean_bytes(self) -> float:
        """Mean bytes of the records that the stage reads, those that are known; 0 where none is."""
        samples: list[Any] = [record for came in self.records for record in came.samples[:COUNTED]]
        return sum(len(record.text.encode()) for record in samples) / len(samples) if samples else 0.0

    def lengths(self, refs: Sequence[Ref], model: Known, cost: Cost) -> tuple[float, int] | None:
        """Mean and most tokens of a record of `refs`, as the template of `model` writes it."""
        if all(self[ref].tokens is not None and not self[ref].samples for ref in refs):
            return expected([self[ref] for ref in refs], model, cost)
        folder = model.tokenizer
        if folder is None or not (folder / "tokenizer.json").exists():
            return None
        path = str(folder / "tokenizer.json")
        tokenizer = run_stranger(lambda: Tokenizer.from_file(path), InputError, f"{path}: it cannot be read")
        lengths: list[int] = []
        added = 0
        for ref in refs:
            came = self[ref]
            added = max(added, came.added)
            step = max(1, len(came.samples) // COUNTED)
            for record in came.samples[::step][:COUNTED]:
                written = texts(record, model.template, folder)
                encoded = tokenizer.encode_batch(written, add_special_tokens=False)
                lengths.append(came.added + sum(len(each.ids) for each in encoded))
        if not lengths:
            return None
        note = f"length: mean of {len(lengths)} records"
        cost.notes.append(note + (f", with at most {added} tokens of answers that are not there yet" if added else ""))
        return sum(lengths) / len(lengths), max(lengths)


def achieved(store: Path, kind: str) -> float | None:
    """Operations a second, everything in the stage's time included, of the last finished stage of this type."""
    done = sorted(store.glob(f"{kind}-*/DONE"), key=lambda path: path.stat().st_mtime)
    for path in reversed(done):
        memory = path.parent / "memory.json"
        found, done = read_cache(memory, {"flops": int | float}), read_cache(path, {"seconds": int | float})
        if found and done and found["flops"] and done["seconds"]:
            return float(found["flops"]) / float(done["seconds"])
    return None


def _products(store: Path) -> str:
    """The type that this machine chose for matrix multiplications; float32 if it has not chosen yet."""
    chosen = sorted(store.glob("arithmetic-*.json"), key=lambda path: path.stat().st_mtime)
    found = read_cache(chosen[-1], {"compute_dtype": str}) if chosen else None
    return found["compute_dtype"] if found else "float32"
