"""Computes the cost of a recipe's stages before they run: records, tokens, operations, peak memory, time.

Each stage estimates its own cost (stages/cost.py). This file has the common part: what is on disk, lengths in tokens,
and the memory, operations and time of a training. Importing it does not import torch.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tokenizers import Tokenizer

from togi.client.endpoint import Price, Tokens
from togi.commands.plan_machine import Machine
from togi.commands.plan_models import expected, outside
from togi.commands.plan_reading import Read, add_reading
from togi.commands.plan_services import Service, Standing, server_problems, standing, uncounted
from togi.commands.plan_texts import texts
from togi.commands.plan_training import Grader, Training, add_memory, add_time
from togi.core.errors import InputError, RecordError
from togi.core.files import read_cache
from togi.core.record_streams import StoredRecords
from togi.core.records import KINDS, Record
from togi.core.settings import MAIN, EmbedderRef, ModelRef, Ref, ScorerRef
from togi.core.sources import ModelSource
from togi.core.strangers import run_stranger
from togi.model.operations import training_flops
from togi.stages.base import StageSettings, output_path
from togi.stages.cost import Cost, Known
from togi.stages.refused import refused, with_row
from togi.stages.table import STAGES, kinds_taken
from togi.stages.training.estimates import tell_schedule
from togi.stages.training.job import TrainingJob, scorer_shape
from togi.stages.training.phases import Rollouts

COUNTED = 200
"""Records whose tokens are counted; the others are assumed to be as long on average."""


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A node of the graph: its settings, the targets of its references, its folder, and whether it is done."""

    name: str
    settings: StageSettings
    inputs: Mapping[str, "str | ModelSource"]
    folder: Path
    done: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """The surroundings of the stages. `prices` are those of models on servers, `servers` all models on servers,
    including those that the run starts, `devices` the devices of the other models; all by the models' names.
    `services` are those that the run starts."""

    machine: Machine = field(default_factory=Machine)
    prices: Mapping[str, Price] = field(default_factory=dict)
    servers: Collection[str] = ()
    devices: Mapping[str, str] = field(default_factory=dict)
    services: Sequence[Service] = ()


def estimates(
    stages: Sequence[PlannedStage], store: Path, compute: str = "", around: Around | None = None
) -> dict[str, Cost]:
    """The cost of each stage, by name; `stages` are sorted after their inputs. `compute` is the type of matrix
    multiplications; if it is empty, the machine's choice. Raises InputError for a row that a model's template
    refuses."""
    around = around or Around()
    planner = _Planner(store, compute or _products(store, around.machine), around)
    planner.left = [stage.name for stage in stages if not stage.done]
    try:
        return {stage.name: planner.stage(stage) for stage in stages}
    except RecordError as error:
        raise with_row(error, [stage.settings for stage in stages]) from None


class _Planner:
    def __init__(self, store: Path, compute_dtype: str, around: Around) -> None:
        self.store = store
        self.compute_dtype = compute_dtype
        self.around = around
        self.prices = around.prices
        self.known: dict[tuple[str, str], Known] = {}  # by stage and output
        self.left: list[str] = []  # the stages that are not done, in order
        self.served: dict[str, Known] = {}  # the models of services, by name

    def stage(self, stage: PlannedStage) -> Cost:
        kind = STAGES[stage.settings.type]
        inputs = _Inputs(self, stage)
        cost = Cost() if kind.estimate is None else kind.estimate(stage.settings, inputs)
        self._servers(stage, inputs, cost)
        if kind.job is not None:
            self._training(kind.job(stage.settings), inputs, cost)
        else:
            self._reading(stage, inputs, cost)
        for name, output in kind.outputs(stage.settings).items():
            found = cost.outputs.get(name, Known(records=cost.records if name == MAIN else None))
            path = stage.folder / output_path(output, name)
            if stage.done and output in KINDS and path.exists():
                samples = StoredRecords(path)
                found = Known(records=len(samples), samples=samples)
            self.known[stage.name, name] = replace(found, why=found.why or f"unknown until {stage.name} ran")
        return cost

    def _servers(self, stage: PlannedStage, inputs: "_Inputs", cost: Cost) -> None:
        """Reduces the requests of a stage to those that go to servers, and adds their cost."""
        models = {ref.name for ref in stage.inputs if isinstance(ref, ModelRef | ScorerRef | EmbedderRef)}
        if not models:
            return
        servers = sorted(models & self.prices.keys())
        asked = {name: cost.asked[name] for name in servers if name in cost.asked}
        cost.calls = cost.read = cost.money = None
        if silent := [name for name in servers if name not in asked]:
            cost.unknown.append(f"calls: how often {', '.join(silent)} is asked")
            return
        cost.calls = sum(each.calls for each in asked.values()) if asked else None
        if dark := [name for name, each in asked.items() if each.read is None]:
            cost.unknown.append(f"tokens read and money: how long the texts are that {', '.join(dark)} reads")
        elif asked:
            used = {name: Tokens(each.read or 0, each.written) for name, each in asked.items()}
            cost.read = sum(tokens.input for tokens in used.values())
            cost.money = sum(self.prices[name].of(tokens) for name, tokens in used.items()) or None
            cost.notes.append(f"tokens read: {inputs.counted()}")
        if one := [name for name, each in asked.items() if each.choices > 1]:
            cost.notes.append(f"calls: a server that gives one answer at a time is asked more often: {', '.join(one)}")

    def _reading(self, stage: PlannedStage, inputs: "_Inputs", cost: Cost) -> None:
        """Adds the memory of the models that a stage reads, by device of the recipe."""
        found: dict[str, Read] = {}
        for ref in stage.inputs:
            if isinstance(ref, ModelRef | ScorerRef | EmbedderRef) and ref.name not in self.around.servers:
                shape = inputs[ref].shape
                if shape is not None:
                    writes = isinstance(ref, ModelRef)
                    shape = replace(shape, tied=shape.tied or not writes)
                    device = self.around.devices.get(ref.name, "")
                    found[ref.name] = Read(shape, device, writes, isinstance(ref, ScorerRef))
        servers = self._standing(inputs, cost)
        add_reading(found, servers, self.around.machine, stage.name, self.compute_dtype, cost)

    def _standing(
        self, inputs: "_Inputs", cost: Cost, sampled: Rollouts | None = None, *, sleeps: bool = False
    ) -> list[Standing]:
        """The servers that run during a stage, if the recipe names hardware, and their own problems. `sampled` are the
        samples of the stage's policy on a server, which `sleeps` in between."""
        stage, machine, found = inputs.stage, self.around.machine, []
        left = [] if STAGES[stage.settings.type].imports or not machine.devices else self.left
        named = {Ref(ref).name: Ref(ref) for ref in stage.inputs}
        for service in self.around.services:
            if not service.runs(stage.name, left):
                continue
            if service.name in named:
                self.served[service.name] = inputs[named[service.name]]
            known = self.served.get(service.name, Known(why="its sizes are unknown"))
            why = uncounted(service, known)
            if why or known.shape is None:
                cost.unknown.append(f"memory of the server of {service.name}: {why}")
                continue
            own = service.samples_for == stage.name
            server = standing(service, known.shape, machine, self.compute_dtype, sampled if own else None)
            found.append(replace(server, sleeps=own and sleeps))
        where = f"{machine.where}: hardware: stage {stage.name}: "
        cost.problems += [where + wrong for wrong in server_problems(found, machine)]
        return found

    # --- stages that train --------------------------------------------------------------------------------------------

    def _training(self, job: TrainingJob, inputs: "_Inputs", cost: Cost) -> None:
        """Adds the memory, the operations and the time of a training, and registers its model."""
        tell_schedule(job.settings, cost.steps, cost)
        model = inputs[job.init]
        shape = None if model.shape is None else job.shape(model.shape)
        cost.outputs[MAIN] = replace(model, records=None, samples=(), added=0, shape=shape)
        if shape is None:
            cost.unknown.append(model.why)
            return
        training = Training(
            job=job,
            shape=shape,
            compute_dtype=self.compute_dtype,
            machine=self.around.machine,
            graders=self._graders(job, inputs, cost),
            load=cost.load,
        )
        training = replace(training, servers=self._standing(inputs, cost, training.rollouts, sleeps=job.sleeps))
        add_memory(training, inputs.stage.name, cost)
        if cost.tokens is not None:
            cost.flops = training_flops(shape, job.at(self.compute_dtype), cost.tokens, cost.tokens, 0)
            cost.flops += 2.0 * cost.load.forward * (shape.used_matrices + shape.embeddings)
            add_time(training, self.store, cost)

    def _graders(self, job: TrainingJob, inputs: "_Inputs", cost: Cost) -> list[Grader]:
        """The reward models and judges in memory during a training, if their sizes are known; models on servers take
        none."""
        found = []
        for ref, writes in (*((ref, 0) for ref in job.scorers), *job.judges):
            if ref.name in self.around.servers:
                continue
            model = inputs[ref]
            if model.shape is None:
                cost.unknown.append(
                    f"peak memory: without the {'judge' if writes else 'reward model'} {ref}, {model.why}"
                )
            else:
                shape = model.shape if writes else scorer_shape(model.shape)
                found.append(Grader(shape, self.around.devices.get(ref.name, ""), writes))
        return found


class _Inputs:
    """The known facts about a stage's inputs (stages/cost.py)."""

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
        """The known facts about the records that the stage reads."""
        refs = [Ref(ref) for ref in self.stage.inputs if not isinstance(ref, ModelRef | ScorerRef | EmbedderRef)]
        return [self[ref] for ref in refs]

    def counted(self) -> str:
        """How the tokens are counted that requests read."""
        elsewhere = any(came.tokens and not came.samples for came in self.records)
        return "as the recipe expects the records" if elsewhere else "bytes of the requests, an upper bound"

    def lengths(self, refs: Sequence[Ref], model: Known, cost: Cost) -> tuple[float, int] | None:
        """Mean and largest number of tokens of a record of `refs`, rendered with the template of `model`."""
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
                if (written := self._texts(record, model.template, folder)) is not None:
                    encoded = tokenizer.encode_batch(written, add_special_tokens=False)
                    lengths.append(came.added + sum(len(each.ids) for each in encoded))
        if not lengths:
            return None
        note = f"length: mean of {len(lengths)} records"
        cost.notes.append(note + (f", with at most {added} tokens of answers that do not exist yet" if added else ""))
        return sum(lengths) / len(lengths), max(lengths)

    def _texts(self, record: Record, template: str | None, folder: Path) -> list[str] | None:
        try:
            return texts(record, template, folder)
        except InputError as error:
            raise refused(self.stage.name, type(record).__name__.lower(), record.id, str(folder), error) from None


def _products(store: Path, machine: Machine) -> str:
    """The type of matrix multiplications: bfloat16 on a declared card, otherwise this machine's choice, or float32 if
    it has not chosen yet."""
    if machine.devices and machine.on_card:
        return "bfloat16"
    chosen = sorted(store.glob("arithmetic-*.json"), key=lambda path: path.stat().st_mtime)
    found = read_cache(chosen[-1], {"compute_dtype": str}) if chosen else None
    return found["compute_dtype"] if found else "float32"
