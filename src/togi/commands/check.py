"""The preflight of `togi check`: reads data, inspects models, and renders, truncates and masks each stage's rows as a
run would. Loads no weights.
"""

import importlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from togi.commands.check_adapters import check_targets
from togi.commands.check_answers import KnownAnswers
from togi.commands.check_context import MOST_ROWS, Rehearsing
from togi.commands.check_counts import most_of
from togi.commands.check_data import DataCheck, checked_data
from togi.commands.check_rewards import check_functions
from togi.commands.check_rows import Lengths, Shown, Tokens, demo_of, lengths_of, shown_of
from togi.core.errors import InputError, RecipeError
from togi.core.hub import NotLookedUp
from togi.core.judging import JudgeSettings
from togi.core.record_streams import StoredRecords
from togi.core.records import Record
from togi.core.seeds import derive
from togi.core.settings import MAIN, EmbedderRef, Ref, ScorerRef, parts
from togi.core.sources import ModelSource
from togi.model.encoder_scorer import check_encoder
from togi.model.load import inspect
from togi.recipe.hardware import Device
from togi.stages.base import StageSettings, output_path
from togi.stages.context import Control, Resolved
from togi.stages.judging_work import judge_prompt
from togi.stages.models import refuse_initial
from togi.stages.refused import with_row
from togi.stages.rehearsal_work import Rehearsed, ServerRenders, preflight, read_weightless, rehearsal
from togi.stages.table import STAGES, kinds_taken
from togi.stages.training.job import TrainingJob
from togi.stages.training.resources import refuse_training
from togi.text.render import check_template


@dataclass(frozen=True, slots=True)
class CheckedStage:
    """A node of the graph: its settings, the targets of its references, its folder, whether it is done, its seed."""

    name: str
    settings: StageSettings
    inputs: Mapping[str, "str | ModelSource"]
    folder: Path
    done: bool
    seed: int


# --- models -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """A model's template with its tokenizer: the terminator and its ids, and the date that the template gets if it asks
    for one; `demo` is an example conversation if there is no row of the recipe to show. `pairs`: an encoder, which has
    no template and reads prompt and answer as a pair."""

    template: str
    terminator: str
    terminator_ids: tuple[int, ...]
    date: str = ""
    demo: Tokens | None = None
    pairs: bool = False


def check_model(source: ModelSource, cache: Path, kind: str = "causal") -> ModelCheck:
    """Inspects a model and checks its template against its tokenizer. Raises InputError and RecipeError as loading it
    would."""
    if kind == "scorer" and check_encoder(source, cache):
        return ModelCheck("", "", (), pairs=True)
    model = read_weightless(source, cache, kind)
    template = model.template
    terminator = check_template(template, model.tokenizer).terminator
    return ModelCheck(template.name, template.terminator, terminator, template.date)


def absent_devices(models: Mapping[str, Any], hardware: Sequence[Device] = ()) -> list[str]:
    """Notes about models whose device is not on this machine: another machine may have it. If the recipe names its
    hardware, `plan` reports devices that it lacks, and there are no notes here."""
    if hardware:
        return []
    there = torch.cuda.device_count()
    return [
        f"models.{name}.device: {spec.device} is not on this machine, which has {there} CUDA devices; a run needs a "
        "machine that has it"
        for name, spec in models.items()
        if spec.device.startswith("cuda") and int(spec.device.partition(":")[2] or 0) >= there
    ]


def _on_server(ref: str, target: "str | ModelSource") -> bool:
    """Whether a server renders the rows and their tokens are unknown, because the recipe names no tokenizer."""
    remote = isinstance(target, ModelSource) and target.kind == "endpoint" and not target.tokenizer
    return remote and not isinstance(ref, ScorerRef | EmbedderRef)


def _kind(ref: str) -> str:
    """The kind as which a model is loaded."""
    return "scorer" if isinstance(ref, ScorerRef) else "causal"


def check_prompts(settings: StageSettings) -> None:
    """Reads the prompt files of the judges of a stage. Raises InputError for one that cannot be used."""
    for part in parts(settings):
        if isinstance(part, JudgeSettings):
            judge_prompt(part, getattr(part, "method", "graded"))


# --- stages -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StageCheck:
    """The rows of a stage as it would train on them. `waits` names the stages that must run first, `asks` the models on
    servers that render the rows, `stands_in` the substitute source of the rows; `of` is the number of records if not
    all were rendered."""

    type: str
    waits: str = ""
    asks: str = ""
    stands_in: str = ""
    rows: int = 0
    of: int | None = None
    drops: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)
    lengths: Lengths | None = None
    shown: list[Shown] = field(default_factory=list)


@dataclass(slots=True)
class Checked:
    """The findings of a check. `unverified` lists what it would have asked a hub for; `problems` are errors that would
    end a run, in the order of the stages."""

    data: dict[str, DataCheck] = field(default_factory=dict)
    models: dict[str, ModelCheck] = field(default_factory=dict)
    stages: dict[str, StageCheck] = field(default_factory=dict)
    functions: list[str] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The records of a node, if they exist; `stands_in` is the node from which they were actually taken, and `most` the
    largest number that the node itself will have, if that is another one."""

    records: Sequence[Record] | None
    stands_in: str = ""
    most: int | None = None


def check(
    stages: Sequence[CheckedStage],
    cache: Path,
    progress: Callable[[str], None] = lambda _: None,
    contexts: Mapping[str, int] | None = None,
) -> Checked:
    """Checks the stages of a recipe, which are sorted after their inputs; a problem in one does not stop the others.
    `contexts` are the known context lengths of models on servers, by name."""
    checker = _Checker(cache, progress, contexts or {})
    checker.answers.read = {(str(target), Ref(ref).output) for stage in stages for ref, target in stage.inputs.items()}
    with tempfile.TemporaryDirectory(prefix="togi-check-") as folder:
        for stage in stages:
            checker.stage(stage, Path(folder) / stage.name)
    for ref, source in checker.unseen.items():
        kind = _kind(ref)
        demo = demo_of(read_weightless(source, cache, kind), kind)
        checker.found.models[ref] = replace(checker.found.models[ref], demo=demo)
    return checker.found


def _job(stage: CheckedStage) -> TrainingJob | None:
    """The training job of a stage; None for a stage that trains nothing."""
    job = STAGES[stage.settings.type].job
    return None if job is None else job(stage.settings)


class _Checker:
    def __init__(self, cache: Path, progress: Callable[[str], None], contexts: Mapping[str, int]) -> None:
        self.cache = cache
        self.contexts = contexts
        self.progress = progress
        self.found = Checked()
        self.rows: dict[tuple[str, str], _Rows] = {}  # by node and output
        self.sources: dict[str, ModelSource] = {}
        self.unseen: dict[str, ModelSource] = {}
        self.adapters: list[str] = []  # stages whose output is only an adapter
        self.answers = KnownAnswers(self._made)
        self.imports: list[StageSettings] = []
        self.broken: set[object] = set()  # stages with a problem, and those that read what they would give

    def stage(self, stage: CheckedStage, folder: Path) -> None:
        self.progress(stage.name)
        if not self.broken.isdisjoint(stage.inputs.values()):
            self.broken.add(stage.name)
        try:
            if STAGES[stage.settings.type].imports:
                self._data(stage)
                return
            self._models(stage)
            self._trains(stage)
            self.found.functions += check_functions(stage.settings, lambda ref: self._reads(stage, ref))
            self._pass_on(stage)
            check_prompts(stage.settings)
            preflight(STAGES[stage.settings.type])(stage.settings)
            self.answers.take(STAGES[stage.settings.type], stage.name, stage.settings, stage.inputs)
            self._rehearse(stage, folder)
        except NotLookedUp as error:
            if str(error) not in self.found.unverified:
                self.found.unverified.append(str(error))
        except (InputError, RecipeError) as error:
            self.broken.add(stage.name)
            if (told := str(with_row(error, self.imports))) not in self.found.problems:
                self.found.problems.append(told)

    def _data(self, stage: CheckedStage) -> None:
        kind = STAGES[stage.settings.type]
        self.imports.append(stage.settings)
        imported = importlib.import_module(kind.work).read(stage.settings, kinds_taken())
        self.found.data[stage.name] = checked_data(kind.outputs(stage.settings)[MAIN], imported)
        self.rows[stage.name, MAIN] = _Rows(imported.records)

    def _came(self, target: str, ref: str) -> _Rows:
        """The records of the node that a reference names."""
        return self.rows.get((target, Ref(ref).output), _Rows(None))

    def _made(self, node: str, output: str = MAIN) -> Sequence[Record] | None:
        """The records of an output, if they exist."""
        came = self.rows.get((node, output), _Rows(None))
        return None if came.stands_in else came.records

    def _reads(self, stage: CheckedStage, ref: Ref) -> Sequence[Record] | None:
        """The records that a stage reads, or those from which they are chosen, if they exist."""
        return self._came(str(stage.inputs[ref]), ref).records

    def _models(self, stage: CheckedStage) -> None:
        for ref, target in stage.inputs.items():
            if isinstance(target, ModelSource) and target.kind == "endpoint":
                continue
            if isinstance(ref, EmbedderRef) and isinstance(target, ModelSource):
                inspect(target, self.cache, weights=False)
            elif isinstance(target, ModelSource) and ref not in self.found.models:
                self.found.models[ref] = check_model(target, self.cache, _kind(ref))
                if not self.found.models[ref].pairs:
                    self.unseen[ref] = target

    def _trains(self, stage: CheckedStage) -> None:
        """Raises InputError if the model cannot be trained or saved with the stage's settings."""
        job = _job(stage)
        if job is None:
            return
        settings, target = job.settings, stage.inputs[job.init]
        known = target if isinstance(target, ModelSource) else self.sources.get(target)
        if known is not None:
            check_targets(settings, known, self.cache, job.init)
        if isinstance(target, ModelSource):
            refuse_initial(settings, inspect(target, self.cache, weights=False), target)
        elif target in self.adapters:
            refuse_training(settings, {}, job.init, adapter=True)
        if settings.lora is not None and settings.lora.save == "adapter":
            self.adapters.append(stage.name)

    def _pass_on(self, stage: CheckedStage) -> None:
        """Registers what later stages read from this one: its records, or those that it will choose from; its
        tokenizer."""
        if (job := _job(stage)) is not None:
            target = stage.inputs[job.init]
            known = target if isinstance(target, ModelSource) else self.sources.get(target)
            if known is not None:
                self.sources[stage.name] = known
        kind = STAGES[stage.settings.type]
        outputs = kind.outputs(stage.settings)
        made = {name: stage.folder / output_path(output, name) for name, output in outputs.items()}
        if stage.done and (found := {name: path for name, path in made.items() if path.is_file()}):
            self.rows |= {(stage.name, name): _Rows(StoredRecords(path)) for name, path in found.items()}
        elif kind.chooses is not None:
            ref = kind.chooses(stage.settings)
            source = str(stage.inputs[ref])
            came = self._came(source, ref)
            if came.records is not None:
                self._choose(stage, came, source)

    def _choose(self, stage: CheckedStage, came: _Rows, source: str) -> None:
        """Registers the records that a stage will choose from. Raises InputError if they are too few for it."""
        kind = STAGES[stage.settings.type]
        assert came.records is not None
        total = len(came.records) if came.most is None else came.most
        most = most_of(kind, stage.settings, total)
        self.rows |= {
            (stage.name, name): _Rows(came.records, came.stands_in or source, count) for name, count in most.items()
        }
        if kind.lacks is not None and (wrong := kind.lacks(stage.settings, total)):
            raise InputError(f"stage {stage.name}: {wrong}")

    def _rehearse(self, stage: CheckedStage, folder: Path) -> None:
        kind = stage.settings.type
        rehearse = rehearsal(STAGES[kind])
        if rehearse is None:
            return
        asked = ", ".join(ref for ref, target in stage.inputs.items() if _on_server(ref, target))
        context, waits, stands_in = self._context(stage, folder)
        if waits:
            if asked or stage.name not in self.broken:
                self.found.stages[stage.name] = StageCheck(kind, asks=asked, waits="" if asked else waits)
            return
        try:
            found = self._summary(stage, context, list(rehearse(stage.settings, context)), stands_in)
        except ServerRenders:
            self.found.stages[stage.name] = StageCheck(kind, asks=asked)
            return
        self.unseen = {
            ref: source
            for ref, source in self.unseen.items()
            if isinstance(ref, ScorerRef) or ref not in context.inputs
        }
        self.found.stages[stage.name] = found if found.rows else replace(found, asks=asked)
        if not (found.rows or found.counts) and found.drops and found.of is None:
            raise InputError(
                f"stage {stage.name}: it would keep no row ({context.drop_reasons()}); change its settings or its rows"
            )

    def _context(self, stage: CheckedStage, folder: Path) -> tuple[Rehearsing, str, str]:
        """A context with records in memory, the stages that have not run yet, and the substitute source of rows."""
        held: dict[str, Sequence[Record]] = {}
        inputs: dict[str, Resolved] = {}
        waits: list[str] = []
        stands_in = ""
        for ref, target in stage.inputs.items():
            if isinstance(target, ModelSource) or target in self.sources:
                source = target if isinstance(target, ModelSource) else self.sources[target]
                inputs[ref] = Resolved("model", source=source)
            elif (came := self._came(target, ref)).records is not None:
                held[ref], stands_in = came.records, came.stands_in or stands_in
            elif not isinstance(ref, ScorerRef):  # rows do not depend on a reward model
                waits.append(target)
        folder.mkdir()
        context = Rehearsing(
            name=stage.name,
            folder=folder,
            cache=self.cache,
            seed=stage.seed,
            inputs=inputs,
            control=Control(send=lambda event: None),
            held=held,
            reasons=STAGES[stage.settings.type].reasons,
            contexts=self.contexts,
        )
        return context, ", ".join(waits), stands_in

    def _summary(self, stage: CheckedStage, context: Rehearsing, rows: list[Rehearsed], stands_in: str) -> StageCheck:
        counts = {name: count for name, count in context.counts.items() if name != "in" and count}
        most = max((len(records) for records in context.held.values()), default=0)
        return StageCheck(
            stage.settings.type,
            stands_in=stands_in,
            rows=len(rows),
            of=most if most > MOST_ROWS else None,
            drops=context.drop_counts(),
            counts=counts,
            alarms=context.alarms,
            lengths=lengths_of(rows, getattr(stage.settings, "max_length", None)) if rows else None,
            shown=shown_of(rows, derive(stage.seed, "check")),
        )
