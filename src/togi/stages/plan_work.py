"""What the stages of a recipe will take, before they run: records, tokens, operations, peak memory, time.

Bounds come from the settings, counts from what is on the disk. What depends on a stage that has not run is said to be
unknown, never guessed. Importing this file does not import torch.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from togi.core.codec import read_records
from togi.core.errors import InputError
from togi.core.files import read_json
from togi.core.records import Chat, Document, Pair, Prompt, Record
from togi.core.settings import Ref
from togi.core.sources import ModelSource
from togi.data.border import DataSpec, load_records
from togi.model.folders import converted_folder
from togi.model.memory import Job, Shape, predict, training_flops
from togi.stages.base import MODEL_FOLDER, RECORDS_FILE, StageSettings
from togi.stages.contrast import Contrast
from togi.stages.curate import Curate
from togi.stages.diversify import Diversify
from togi.stages.evaluate import Evaluate
from togi.stages.fixed import FixedTraining, Optimisation
from togi.stages.imported import Import
from togi.stages.resources import job_of
from togi.stages.select import Select
from togi.stages.synthesize import Synthesize
from togi.stages.train_dpo import TrainDpo
from togi.stages.train_grpo import TrainGrpo, other_models
from togi.stages.train_pretrain import TrainPretrain

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
    """What is known of a node to those that read it: the records it holds or at most will hold, the texts of some of
    them, the sizes of its model and the folder of its tokenizer; `why` not."""

    records: int | None = None
    texts: Sequence[str] = ()
    shape: Shape | None = None
    tokenizer: Path | None = None
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
            self.known[stage.name] = replace(init, records=None, texts=())
            if stage.done:
                self.known[stage.name].tokenizer = stage.folder / MODEL_FOLDER
            return found
        found = self._data(stage, settings)
        texts: Sequence[str] = ()
        if stage.done and (stage.folder / RECORDS_FILE).exists():
            _, records = read_records(stage.folder / RECORDS_FILE)
            found.records, texts = len(records), _some(records)
        elif isinstance(settings, Import) and settings.path is not None:
            spec = DataSpec(**settings.model_dump(exclude={"type", "seed", "kind"}))
            records = load_records(spec, settings.kind).records
            found.records, texts = len(records), _some(records)
        why = "" if found.records is not None else f"unknown until {stage.name} ran"
        self.known[stage.name] = _Known(records=found.records, texts=texts, why=why)
        return found

    def _read(self, stage: PlannedStage, ref: Ref) -> _Known:
        target = stage.inputs[ref]
        return self._model(target) if isinstance(target, ModelSource) else self.known[target]

    def _model(self, source: ModelSource) -> _Known:
        """A model from outside, if its configuration is on this machine."""
        folder = Path(source.name) if source.kind == "path" else None
        if source.kind == "package":
            folder = converted_folder(source, self.store)
        if folder is None or not (folder / "config.json").exists():
            return _Known(why=f"the sizes of {source.name} are unknown until it is on this machine")
        try:
            shape = Shape.of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        except InputError as error:
            return _Known(why=str(error))
        return _Known(shape=shape, tokenizer=folder)

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
            if isinstance(settings, Contrast) and found.records is not None:
                found.sampled = 2 * found.records * settings.max_tokens
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
        if isinstance(settings, TrainGrpo):
            _grpo(settings, lengths, found)
        elif isinstance(settings, TrainPretrain):
            found.tokens = settings.tokens or (settings.steps or 0) * settings.batch_tokens
        elif isinstance(settings, FixedTraining):
            _fixed(settings, lengths, found)
        if model.shape is None:
            found.unknown.append(model.why)
            return found
        job = job_of(settings, self.products)
        tokens = settings.micro_batch_tokens
        if tokens == "auto":
            found.unknown.append("peak memory: micro_batch_tokens is auto, which is chosen when the stage begins")
        else:
            beside = other_models(settings, model.shape, self.products)
            found.peak_bytes = predict(model.shape, job, tokens).peak + beside
        if found.tokens is not None:
            found.flops = _flops(settings, model.shape, job, found.tokens)
            rate = achieved(self.store, settings.type)
            if rate is None:
                found.unknown.append(f"time: no {settings.type} has finished in this store yet")
            else:
                found.seconds = found.flops / rate
        return found


@dataclass(slots=True)
class _Lengths:
    """How many records a training reads, and how long they are."""

    planner: _Planner
    stage: PlannedStage
    model: _Known

    def records(self) -> tuple[int | None, str]:
        """How many records the stage reads from other than its validation; None and why, if that is not known."""
        total = 0
        for ref in _data_refs(self.stage.settings):
            came = self.planner._read(self.stage, ref)
            if came.records is None:
                return None, came.why
            total += came.records
        return total, ""

    def tokens(self, found: Estimate) -> float | None:
        """Mean tokens of a record, contents alone, from some that are on the disk."""
        texts = [text for ref in _data_refs(self.stage.settings) for text in self.planner._read(self.stage, ref).texts]
        path = None if self.model.tokenizer is None else self.model.tokenizer / "tokenizer.json"
        if not texts or path is None or not path.exists():
            return None
        tokenizer = Tokenizer.from_file(str(path))
        count = sum(len(encoded.ids) for encoded in tokenizer.encode_batch(texts, add_special_tokens=False))
        found.notes.append(f"length: mean of {len(texts)} records, templates not counted")
        return count / len(texts)


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
    return came


def _fixed(settings: FixedTraining, lengths: _Lengths, found: Estimate) -> None:
    if settings.steps is not None:
        found.samples = settings.steps * settings.batch_size
    else:
        count, why = lengths.records()
        if count is None:
            found.unknown.append(f"samples and tokens: {why}")
            return
        found.samples = max(1, round(count * (settings.epochs or 1.0)))
    mean = lengths.tokens(found)
    if mean is not None:
        found.tokens = round(found.samples * min(mean, settings.max_length or mean))
    elif settings.max_length is not None:
        sides = 2 if hasattr(settings, "pairs") else 1
        found.tokens = found.samples * settings.max_length * sides
        found.notes.append("tokens: at most, if every record were as long as max_length")
    else:
        found.unknown.append("tokens: lengths are unknown, and there is no max_length")


def _grpo(settings: TrainGrpo, lengths: _Lengths, found: Estimate) -> None:
    """Every answer as long as it may be; a prompt is computed once for its group."""
    groups = settings.steps * settings.prompts_per_step
    found.samples = groups * settings.group_size // settings.epochs_per_batch
    found.sampled = found.samples * settings.sampling.max_tokens
    mean = lengths.tokens(found)
    if mean is None:
        found.unknown.append("tokens: the lengths of the prompts are unknown until they are on the disk")
        return
    found.tokens = round(groups * (mean + settings.group_size * settings.sampling.max_tokens))
    found.notes.append("tokens: at most, if every answer were as long as max_tokens; sampling is not in the operations")


def _flops(settings: Optimisation, shape: Shape, job: Job, tokens: int) -> float:
    """Operations of training, the pass of the initial model included where there is one."""
    found = training_flops(shape, job, tokens, tokens, 0)
    reference = isinstance(settings, TrainDpo) or (isinstance(settings, TrainGrpo) and settings.loss.beta > 0)
    return found + (2.0 * tokens * (shape.used_matrices + shape.embeddings) if reference else 0.0)


def _some(records: Sequence[Record]) -> list[str]:
    """The texts of some records, spread over all."""
    step = max(1, len(records) // COUNTED)
    return [_text(record) for record in records[::step][:COUNTED]]


def _text(record: Record) -> str:
    if isinstance(record, Pair):
        messages = (*record.prompt, *record.chosen, *record.rejected)
    elif isinstance(record, Prompt | Chat):
        messages = record.messages
    else:
        return record.text if isinstance(record, Document) else ""
    return "\n".join(message.content for message in messages)


def achieved(store: Path, kind: str) -> float | None:
    """Operations a second, everything in the stage's time included, of the last finished stage of this type."""
    done = sorted(store.glob(f"{kind}-*/DONE"), key=lambda path: path.stat().st_mtime)
    for path in reversed(done):
        memory = path.parent / "memory.json"
        flops = read_json(memory).get("flops") if memory.exists() else None
        if flops:
            return float(flops) / float(read_json(path)["seconds"])
    return None


def _products(store: Path) -> str:
    """The type that this machine chose to compute products in; float32 where it has not chosen yet."""
    chosen = sorted(store.glob("arithmetic-*.json"), key=lambda path: path.stat().st_mtime)
    return read_json(chosen[-1])["compute_dtype"] if chosen else "float32"
