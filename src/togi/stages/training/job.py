"""How a stage trains, as the prediction of its memory and of its operations sees it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from togi.core.settings import ModelRef, ScorerRef
from togi.model.sizes import LINEARS, Job, Shape
from togi.stages.training.optimisation import Optimisation
from togi.stages.training.phases import Rollouts


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """One training. `entropy`: the loss reads the entropy of the head's distribution. `scorer`: the head over the
    vocabulary gives way to one number. `train_layers` are trained, from the top, of the `keep_layers` lowest; None:
    all. `scorers` are the reward models that stand beside it.

    `rollouts` says how a policy samples. `copies(job, shape, compute_dtype)` are the bytes of other copies of the model
    that stand beside the trained one.
    """

    settings: Optimisation
    entropy: bool = False
    scorer: bool = False
    train_layers: int | None = None
    keep_layers: int | None = None
    scorers: tuple[ScorerRef, ...] = ()
    rollouts: Rollouts | None = None
    copies: Callable[[Job, Shape, str], float] = lambda job, shape, compute_dtype: 0.0

    @property
    def init(self) -> ModelRef:
        """The model that is trained."""
        return self.settings.init

    def at(self, compute_dtype: str, *, cuda: bool = False) -> Job:
        """The job on a machine whose matrix multiplications are in the type `compute_dtype`."""
        settings, lora = self.settings, self.settings.lora
        return Job(
            weights="nf4" if lora is not None and lora.base == "nf4" else settings.weights,
            compute_dtype="bfloat16" if compute_dtype == "bfloat16" or settings.weights != "float32" else "float32",
            bits=8 if settings.optimizer == "adamw-8bit" else 32,
            rank=0 if lora is None else lora.rank,
            targets=LINEARS if lora is None else lora.targets,
            checkpointing=settings.activation_checkpointing,
            offload=settings.offload_optimizer and cuda,
            entropy=self.entropy,
            scorer=self.scorer,
            accelerator=cuda,
            layers=self.train_layers,
        )

    def shape(self, init: Shape) -> Shape:
        """The sizes of what is trained from a model of the sizes `init`."""
        if not self.scorer:
            return init
        return replace(init, tied=True, layers=min(self.keep_layers or init.layers, init.layers))

    def beside(self, shape: Shape, compute_dtype: str, scorers: Sequence[Shape]) -> float:
        """Bytes of the models that stand beside the trained one, of the sizes `shape`, as long as the stage runs;
        `scorers` are the sizes of its reward models."""
        return self.copies(self.at(compute_dtype), shape, compute_dtype) + grader_bytes(scorers, compute_dtype)


def grader_bytes(scorers: Sequence[Shape], compute_dtype: str) -> float:
    """Bytes of reward models of these sizes."""
    width = 2 if compute_dtype == "bfloat16" else 4
    return float(width * sum(replace(scorer, tied=True).parameters for scorer in scorers))


def training_job(settings: Optimisation) -> TrainingJob:
    """The job of a training of the whole model, with nothing beside it."""
    return TrainingJob(settings=settings)
