"""What the stages of a recipe will take, before they run: records, tokens, operations, peak memory, time.

Bounds come from the settings, counts and lengths from what is on the disk, through stages that pass records on. What
cannot be bounded is said to be unknown, never guessed. Importing this file does not import torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from togi.commands.plan_texts import texts
from togi.core.codec import read_records
from togi.core.errors import InputError
from togi.core.files import read_cache
from togi.core.records import Record
from togi.core.settings import Ref
from togi.core.sources import ModelSource, lineage
from togi.core.strangers import run_stranger
from togi.model.folders import converted_folder
from togi.model.inspect import inspect_model
from togi.model.sizes import Shape, largest, predict, training_flops
from togi.stages.base import RECORDS_FILE, StageSettings
from togi.stages.data.contrast import Contrast
from togi.stages.data.curate import Curate
from togi.stages.data.diversify import Diversify
from togi.stages.data.importing import Import
from togi.stages.data.importing_work import read
from togi.stages.data.select import Select
from togi.stages.data.synthesize import Synthesize
from togi.stages.evaluation.evaluate import Evaluate
from togi.stages.training.dpo import TrainDpo
from togi.stages.training.grpo import TrainGrpo, other_models, scorers_of
from togi.stages.training.optimisation import FixedTraining, Optimisation
from togi.stages.training.pretrain import TrainPretrain
from togi.stages.training.resources import USABLE_CPU, job_of, shape_of
from togi.stages.training.reward import TrainReward
from togi.stages.training.sft import TrainSft
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


@dataclass(slots=True)
class Estimate:
    """What is known of a stage beforehand. `records` and `tokens` are the most that it can yield and compute;
    `sampled` the most tokens that it writes; `unknown` says what else would have to be known, and why."""

    records: int | None = None
    samples: int | None = None
    tokens: int | None = None
    sampled: int | None = None
    flops: float | None = None
    peak_bytes: float | None = None
    seconds: float | None = None
    notes: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As a plain mapping."""
        return asdict(self)


@dataclass(slots=True)
class _Known:
    """What is known of a node to those that read it: the records it holds or at most will hold, some of them, or some
    that they will be made from, with the tokens that are at most added to each; the sizes of its model, its context,
    the folder of its tokenizer and its template; `why` not."""

    records: int | None = None
    samples: Sequence[Record] = ()
    added: int = 0
    shape: Shape | None = None
    context: int | None = None
    tokenizer: Path | None = None
    template: str | None = None
    why: str = ""


def estimates(stages: Sequence[PlannedStage], store: Path, compute: str = "") -> dict[str, Estimate]:
    """An estimate of each stage, by name; `stages` stand after their inputs. `compute` is the type of products."""
    planner = _Planner(store, compute or _products(store))
    return {stage.name: planner.stage(stage) for stage in stages}


class _Planner:
    def __init__(self, store: Path, products: str) -> None:
        self.store = store
        self.products = products
        self.known: dict[str, _Known] = {}

    def stage(self, stage: PlannedStage) -> Estimate:
        settings = stage.settings
        if isinstance(settings, Optimisation):
            found = self._training(stage, settings)
            init = self._read(stage, settings.init)
            shape = init.shape and shape_of(settings, init.shape)
            self.known[stage.name] = replace(init, records=None, shape=shape)
            return found
        found = self._data(stage, settings)
        known = _Known(why=f"unknown until {stage.name} ran")
        if stage.done and (stage.folder / RECORDS_FILE).exists():
            known.samples = read_records(stage.folder / RECORDS_FILE)[1]
            found.records = len(known.samples)
        elif isinstance(settings, Import) and settings.path is not None:
            known.samples = read(settings).records
            found.records = len(known.samples)
        elif isinstance(settings, Curate | Diversify | Select | Contrast):
            came = self._read(stage, settings.input)
            known.samples, known.added = came.samples, came.added
            if isinstance(settings, Contrast):
                known.added += 2 * settings.max_tokens
        known.records = found.records
        self.known[stage.name] = known
        return found

    def _read(self, stage: PlannedStage, ref: Ref) -> _Known:
        target = stage.inputs[ref]
        return self._model(target) if isinstance(target, ModelSource) else self.known[target]

    def _model(self, source: ModelSource) -> _Known:
        """A model from outside, if it is on this machine. Raises InputError for a folder that is damaged."""
        folder = converted_folder(source, self.store) if source.kind == "package" else None
        away = folder is not None and not folder.exists()
        if away or lineage(source)[-1].kind == "hub":
            return _Known(why=f"the sizes of {source.name} are unknown until it is on this machine")
        facts = inspect_model(source, folder=folder, bare=True)
        try:
            shape = Shape.of(facts.config)
        except InputError as error:
            return _Known(why=str(error))
        return _Known(shape=shape, context=facts.context, tokenizer=facts.tokenizer, template=source.template)

    # --- stages that make data ----------------------------------------------------------------------------------------

    def _data(self, stage: PlannedStage, settings: StageSettings) -> Estimate:
        found = Estimate()
        if isinstance(settings, Synthesize):
            found.records, found.sampled = settings.count, settings.count * settings.max_tokens
        elif isinstance(settings, Curate | Diversify | Select | Contrast):
            came = self._read(stage, settings.input)
            if came.records is None:
                found.unknown.append(came.why)
            found.records = _kept(settings, came.records)
            if isinstance(settings, Contrast) and came.records is not None:
                found.sampled = (1 + len(settings.careless)) * came.records * settings.max_tokens
        elif isinstance(settings, Evaluate):
            came = self._read(stage, settings.prompts)
            if came.records is None:
                found.unknown.append(came.why)
            else:
                found.samples = 2 * settings.samples * came.records
                found.sampled = found.samples * settings.max_tokens
        return found

    # --- stages that train --------------------------------------------------------------------------------------------

    def _training(self, stage: PlannedStage, settings: Optimisation) -> Estimate:
        found = Estimate()
        model = self._read(stage, settings.init)
        lengths = _Lengths(self, stage, model)
        most = _Most()
        if isinstance(settings, TrainGrpo):
            most = _grpo(settings, lengths, found)
        elif isinstance(settings, TrainPretrain):
            found.tokens = settings.tokens or (settings.steps or 0) * settings.batch_tokens
            window = settings.max_length or model.context or 0
            most = _Most(step=settings.batch_tokens + window, example=window)
        elif isinstance(settings, FixedTraining):
            most = _fixed(settings, lengths, found)
            if isinstance(settings, TrainReward):
                _repeat(settings, found)
        if model.shape is None:
            found.unknown.append(model.why)
            return found
        shape = shape_of(settings, model.shape)
        self._peak(settings, shape, most, self._scorers(stage, settings, found), found)
        if found.tokens is not None:
            found.flops = training_flops(shape, job_of(settings, self.products), found.tokens, found.tokens, 0)
            found.flops += 2.0 * _reference_tokens(settings, lengths, found) * (shape.used_matrices + shape.embeddings)
            self._time(settings, found)
        return found

    def _scorers(self, stage: PlannedStage, settings: Optimisation, found: Estimate) -> list[Shape]:
        """The sizes of the reward models that a policy is graded by, as far as they are known."""
        shapes = []
        for ref in scorers_of(settings):
            model = self._read(stage, ref)
            if model.shape is None:
                found.unknown.append(f"peak memory: without the reward model {ref}, {model.why}")
            else:
                shapes.append(model.shape)
        return shapes

    def _peak(self, settings: Optimisation, shape: Shape, most: "_Most", scorers: list[Shape], found: Estimate) -> None:
        """The peak memory: a micro-batch is as large as it may be, or as the step is; a longer example has its own."""
        job = job_of(settings, self.products)
        beside = other_models(settings, shape, self.products, scorers)
        limit = settings.micro_batch_tokens
        room = math.inf
        if limit == "auto" and has_accelerator():
            why = "chosen of the accelerator's memory when the stage begins"
            found.unknown.append(f"peak memory: micro_batch_tokens auto, {why}")
            return
        if limit == "auto":
            room = USABLE_CPU * available() / settings.processes
            limit = largest(shape, job, room - beside) or SMALLEST
        tokens = math.ceil(max(min(limit, most.step), most.example))
        found.peak_bytes = predict(shape, job, tokens).peak + beside
        if room < math.inf:
            fits = f"{limit:,} tokens fit" if found.peak_bytes <= room else "the peak is more than"
            found.notes.append(f"micro_batch_tokens auto: {fits} the {room / 1e9:.2f} GB that may be used now")
        longest = ", the longest example" if tokens > limit else ""
        found.notes.append(f"peak: with micro-batches of {tokens:,} tokens{longest}")

    def _time(self, settings: Optimisation, found: Estimate) -> None:
        """The time that the operations take at the speed of an earlier stage."""
        assert found.flops is not None
        rate = achieved(self.store, settings.type)
        if rate is None:
            rate = achieved(self.store, "train.*")
            if rate is None:
                found.unknown.append("time: no stage that trains has finished in this store yet")
                return
            found.notes.append(f"time: at the speed of another kind of training, since no {settings.type} has finished")
        found.seconds = found.flops / rate


@dataclass(frozen=True, slots=True, kw_only=True)
class _Most:
    """The most tokens of a step and of an example, as far as they can be said."""

    step: float = math.inf
    example: float = 0


@dataclass(slots=True)
class _Lengths:
    """How many records a training reads, and how long they are."""

    planner: _Planner
    stage: PlannedStage
    model: _Known

    def records(self, *more: Ref) -> tuple[int | None, str]:
        """How many records the stage trains on, with those of `more`; None and why, if that is not known."""
        total = 0
        for ref in (*_data_refs(self.stage.settings), *more):
            came = self.planner._read(self.stage, ref)
            if came.records is None:
                return None, came.why
            total += came.records
        return total, ""

    def tokens(self, found: Estimate) -> tuple[float, int] | None:
        """Mean and most tokens of a record, as a template writes it, from some that are on the disk."""
        folder = self.model.tokenizer
        if folder is None or not (folder / "tokenizer.json").exists():
            return None
        path = str(folder / "tokenizer.json")
        tokenizer = run_stranger(lambda: Tokenizer.from_file(path), InputError, f"{path}: it cannot be read")
        lengths: list[int] = []
        added = 0
        for ref in _data_refs(self.stage.settings):
            came = self.planner._read(self.stage, ref)
            added = max(added, came.added)
            step = max(1, len(came.samples) // COUNTED)
            for record in came.samples[::step][:COUNTED]:
                written = texts(record, self.model.template, folder)
                encoded = tokenizer.encode_batch(written, add_special_tokens=False)
                lengths.append(came.added + sum(len(each.ids) for each in encoded))
        if not lengths:
            return None
        note = f"length: mean of {len(lengths)} records"
        found.notes.append(note + (f", with at most {added} tokens of answers that are not there yet" if added else ""))
        return sum(lengths) / len(lengths), max(lengths)


def _data_refs(settings: StageSettings) -> list[Ref]:
    """The records that a stage trains on."""
    values = [getattr(settings, name, None) for name in ("chats", "pairs", "prompts")]
    found = [value for value in values if value is not None]
    return [ref for value in found for ref in ([value] if isinstance(value, Ref) else value)]


def _kept(settings: StageSettings, came: int | None) -> int | None:
    """The most records that a stage leaves of those that came."""
    if isinstance(settings, Select):
        left = None if came is None else max(0, came - settings.skip)
        return settings.count if left is None else min(left, settings.count or left)
    if isinstance(settings, Diversify):
        return settings.keep if came is None else min(came, settings.keep)
    if isinstance(settings, Contrast):
        ways = len(settings.careless) + settings.off_topic + settings.questions
        return None if came is None else came * ways
    return came


def _fixed(settings: FixedTraining, lengths: _Lengths, found: Estimate) -> _Most:
    """Samples and tokens."""
    if settings.steps is not None:
        found.samples = settings.steps * settings.batch_size
    else:
        count, why = lengths.records()
        if count is None:
            found.unknown.append(f"samples and tokens: {why}")
            return _Most()
        share = settings.validation if isinstance(settings.validation, float) else 0.0
        found.samples = max(1, round(count * (1 - share) * (settings.epochs or 1.0)))
    sides = 2 if hasattr(settings, "pairs") else 1
    limit = math.inf if settings.max_length is None else settings.max_length * sides
    found_lengths = lengths.tokens(found)
    if found_lengths is not None:
        mean, most = found_lengths
        found.tokens = round(found.samples * min(mean, limit))
        if isinstance(settings, TrainSft) and settings.packing == "blocks":
            most = limit = 1 + (settings.max_length or lengths.model.context or most)
        return _Most(step=settings.batch_size * min(most, limit), example=min(most, limit))
    if settings.max_length is None:
        found.unknown.append("tokens: lengths are unknown, and there is no max_length")
        return _Most()
    found.tokens = round(found.samples * limit)
    found.notes.append("tokens: at most, if every record were as long as max_length")
    return _Most(step=settings.batch_size * limit, example=limit)


def _repeat(settings: TrainReward, found: Estimate) -> None:
    """A training for each rate of a sweep, and one of the control. A frozen trunk is computed once for all of them."""
    trainings = max(1, len(settings.sweep)) + settings.shuffled_control
    if trainings == 1:
        return
    found.notes.append(f"samples and tokens: of {trainings} trainings")
    found.samples = None if found.samples is None else trainings * found.samples
    if found.tokens is not None and settings.train_layers != 0:
        found.tokens *= trainings


def _grpo(settings: TrainGrpo, lengths: _Lengths, found: Estimate) -> _Most:
    """Every answer as long as it may be; a prompt is computed once for its group, whose answers may be apart."""
    groups = settings.steps * settings.prompts_per_step
    found.samples = groups * settings.group_size // settings.epochs_per_batch
    found.sampled = found.samples * settings.sampling.max_tokens
    prompts = lengths.tokens(found)
    if prompts is None:
        found.unknown.append("tokens: the lengths of the prompts are unknown until they are on the disk")
        return _Most()
    mean, most = prompts
    answers = settings.group_size * settings.sampling.max_tokens
    found.tokens = round(groups * (mean + answers))
    found.notes.append("tokens: at most, if every answer were as long as max_tokens; sampling is not in the operations")
    return _Most(step=settings.prompts_per_step * (most + answers), example=most + settings.sampling.max_tokens)


def _reference_tokens(settings: Optimisation, lengths: _Lengths, found: Estimate) -> float:
    """Tokens of the pass of the initial model, where there is one: each pair once, those of the validation too; each
    batch of samples once."""
    if isinstance(settings, TrainGrpo):
        return (found.tokens or 0) / settings.epochs_per_batch if settings.loss.beta > 0 else 0.0
    if not (isinstance(settings, TrainDpo) and settings.reference and found.tokens and found.samples):
        return 0.0
    validation = settings.validation
    count, why = lengths.records(*([validation] if isinstance(validation, Ref) else []))
    if count is None:
        found.unknown.append(f"operations of the reference, once per pair: {why}")
        return 0.0
    return found.tokens / found.samples * count


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
    """The type that this machine chose to compute products in; float32 where it has not chosen yet."""
    chosen = sorted(store.glob("arithmetic-*.json"), key=lambda path: path.stat().st_mtime)
    found = read_cache(chosen[-1], {"compute_dtype": str}) if chosen else None
    return found["compute_dtype"] if found else "float32"
