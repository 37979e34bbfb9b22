"""Fits a training stage into the available memory: predicts its peak, chooses the micro-batch size, measures the peak.

Predictions, choice and measurements are stored in memory.json in the stage's folder. The choice is made only once: a
resumed stage splits its steps as before, so its results are bit-identical.
"""

from contextlib import suppress
from typing import Any

from togi.core.errors import InputError, StageError
from togi.core.files import read_lines, read_object, write_json
from togi.core.settings import Ref, ScorerRef
from togi.model.adapter import lora_library
from togi.model.load import inspect, load_config, load_tokenizer_of
from togi.model.operations import training_flops
from togi.model.sizes import Shape, largest, predict, rank_peak
from togi.stages.arithmetic import arithmetic, device
from togi.stages.context import Context
from togi.stages.models import forget_models
from togi.stages.training.job import TrainingJob, scorer_shape
from togi.stages.training.resources import USABLE, USABLE_CPU
from togi.train import usage

MOST = 2**16  # the most tokens of a micro-batch that auto chooses; more are not faster
LONGEST = 2**20  # tokens of an example; more than any model's context
FILE = "memory.json"
NEEDED = {"tokens_per_second", "time/update", "memory/most_gb"}  # every undamaged line of metrics has these


class MemoryBudget:
    """One training and the available memory. `settings` are the stage's settings with `auto` replaced by the choice.

    Raises StageError if no micro-batch fits, and InputError for `auto` if the model's sizes are unknown.
    """

    def __init__(self, job: TrainingJob, context: Context) -> None:
        settings = job.settings
        self.context = context
        self.where = device()
        forget_models()
        _bring_in(job, context)
        usage.begin_peak(self.where)
        self.before = usage.at_rest(self.where)
        self.shape: Shape | None = None
        tokens = settings.micro_batch_tokens
        # one rank after the other: the first may have to convert the weights of a package
        config = context.ranks.in_turn(lambda: load_config(context.model(settings.init), context.cache))
        try:
            self.shape = job.shape(Shape.of(config))
        except InputError as error:
            if tokens == "auto":
                raise
            context.log(f"peak memory is not predicted: {error}")
        else:
            compute_dtype = arithmetic(context).compute_dtype
            self.job = job.at(compute_dtype, cuda=self.where.type == "cuda")
            self.beside = job.beside(self.shape, compute_dtype, self._graders(job))
            if tokens == "auto":
                path = context.folder / FILE
                chosen = context.ranks.on_first_rank(lambda: read_object(path) if path.exists() else {})
                fits = int(chosen.get("fits") or self._most(settings.processes, self.shape))
                tokens = chosen.get("micro_batch_tokens") or min(fits, MOST)
                context.fits = fits
        self.settings = settings.model_copy(update={"micro_batch_tokens": tokens})
        if context.ranks.first:
            write_json(context.folder / FILE, {"micro_batch_tokens": tokens, "fits": context.fits})

    def _graders(self, job: TrainingJob) -> list[Shape]:
        """The sizes of the reward models and judges loaded in this process; those on servers do not count."""
        found = []
        for ref in (*job.scorers, *(judge for judge, _ in job.judges)):
            if self.context.inputs[ref].endpoint is not None:
                continue
            try:
                shape = Shape.of(load_config(self.context.model(ref), self.context.cache))
            except InputError as error:
                self.context.log(f"peak memory is predicted without the {_called(ref)} {ref}: {error}")
            else:
                found.append(scorer_shape(shape) if isinstance(ref, ScorerRef) else shape)
        return found

    def _most(self, processes: int, shape: Shape) -> int:
        """The largest number of tokens that fits into the memory that is free now."""
        free = self.context.ranks.on_first_rank(lambda: usage.available(self.where))
        cpu = self.where.type == "cpu"
        room = USABLE_CPU * free / processes if cpu else USABLE * free
        tokens = largest(shape, self.job, room - self.beside, most=LONGEST)
        if not tokens:
            need = rank_peak(shape, self.job, 256) + self.beside
            raise StageError(
                f"stage {self.context.name}: no micro-batch fits: the smallest, 256 tokens, needs {gigabytes(need)}, "
                f"but only {gigabytes(room)} can be used. Set activation_checkpointing: true, lora, or optimizer: "
                "adamw-8bit"
            )
        self.context.log(f"micro-batches of {min(tokens, MOST)} tokens: {tokens} fit {gigabytes(room)}")
        return tokens

    def finish(self) -> None:
        """Writes to memory.json, and logs, the measured peak of training, that of the stage including saving, and the
        prediction for the largest micro-batch that occurred.

        On the CPU, the measured peaks are all of the process's memory except the program itself.
        """
        if not self.context.ranks.first:
            return
        lines = self._lines()
        steps = [round(line["tokens_per_second"] * line["time/update"]) for line in lines]
        most = max((line.get("largest_micro_batch", 0) for line in lines), default=0)
        whole = usage.peak(self.where) - self.before
        measured = max((round(line["memory/most_gb"] * 1e9) - self.before for line in lines), default=whole)
        found: dict[str, Any] = {"micro_batch_tokens": self.settings.tokens_at_once}
        found |= {"measured": measured, "measured_with_saving": whole}
        found |= {"tokens": sum(steps), "flops": 0.0}
        phases = {phase: size - self.before for phase, size in usage.phases(self.where).items()}
        if len(phases) > 1:
            found["phases"] = phases
        told = f"peak memory: {gigabytes(measured)} measured ({gigabytes(whole)} with saving)"
        if self.shape is not None and most:  # a head on stored features computes no tokens of the model
            floor = predict(self.shape, self.job, most).floor / self.job.ranks
            found |= {
                "largest_micro_batch": most,
                "predicted": round(rank_peak(self.shape, self.job, most) + self.beside),
                "floor": round(floor),
                "flops": sum(steps) * training_flops(self.shape, self.job, 1, 1, 0),
            }
            told += (
                f", {gigabytes(found['predicted'])} predicted for the largest micro-batch of {most:,} tokens, of which "
                f"{gigabytes(found['floor'])} are weights, gradients and optimiser state"
            )
        write_json(self.context.folder / FILE, found)
        self.context.log(told)

    def _lines(self) -> list[dict[str, Any]]:
        """The metrics of all trainings of the stage. Those of a sweep have their own folders; the file in the stage's
        folder is then a copy of one of them."""
        folder = self.context.folder
        own = [] if getattr(self.settings, "sweep", ()) else [folder / "metrics.jsonl"]
        paths = (*own, *sorted(folder.glob("runs/*/metrics.jsonl")))
        return [line for path in paths for line in read_lines(path) if line.keys() >= NEEDED]


def _called(ref: Ref) -> str:
    return "reward model" if isinstance(ref, ScorerRef) else "judge"


def _bring_in(job: TrainingJob, context: Context) -> None:
    """Imports the libraries that a model, its adapter and its tokenizer need, some 0.2 GB, before memory is measured.
    Files that cannot be read are reported later, when the model is loaded."""
    if job.settings.lora is not None:
        lora_library()
    with suppress(InputError):
        source = context.model(job.settings.init)
        context.ranks.in_turn(lambda: load_tokenizer_of(inspect(source, context.cache, weights=False)))


def gigabytes(size: float) -> str:
    """ "1.25 GB" """
    return f"{size / 1e9:.2f} GB"
