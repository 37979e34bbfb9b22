"""A stage's training, as described to the prediction of its memory and operations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from togi.core.settings import ModelRef, ScorerRef
from togi.model.sizes import LINEARS, Job, Shape
from togi.stages.training.optimisation import Optimisation
from togi.stages.training.phases import Rollouts


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """One training. `entropy`: the loss reads the entropy of the head's distribution. `scorer`: a head with one output
    replaces the vocabulary head. Of the `keep_layers` lowest layers, the top `train_layers` are trained; None: all.
    `scorers` are the reward models in memory, `judges` the language models that grade, with the most tokens that each
    writes.

    `rollouts` describes how a policy samples, itself or, if `served`, on a server, which `sleeps` while the policy is
    trained. `copies(job, shape, compute_dtype)`
    returns the bytes of other copies of the model in memory during training.
    """

    settings: Optimisation
    entropy: bool = False
    scorer: bool = False
    train_layers: int | None = None
    keep_layers: int | None = None
    scorers: tuple[ScorerRef, ...] = ()
    judges: tuple[tuple[ModelRef, int], ...] = ()
    rollouts: Rollouts | None = None
    served: bool = False
    sleeps: bool = False
    copies: Callable[[Job, Shape, str], float] = lambda job, shape, compute_dtype: 0.0

    @property
    def init(self) -> ModelRef:
        """The model to train."""
        return self.settings.init

    def at(self, compute_dtype: str, *, cuda: bool = False) -> Job:
        """The job on a machine that multiplies matrices in `compute_dtype`."""
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
            ranks=settings.processes,
            whole=lora is not None or self.scorer or self.rollouts is not None,
        )

    def shape(self, init: Shape) -> Shape:
        """The sizes of the trained model, given those of the initial model."""
        if not self.scorer:
            return init
        return replace(init, tied=True, layers=min(self.keep_layers or init.layers, init.layers))

    def beside(self, shape: Shape, compute_dtype: str, graders: Sequence[Shape]) -> float:
        """Bytes of the models kept in memory besides the trained one, which has the sizes `shape`; `graders` are the
        sizes of its reward models and judges."""
        return self.copies(self.at(compute_dtype), shape, compute_dtype) + grader_bytes(graders, compute_dtype)


def scorer_shape(shape: Shape) -> Shape:
    """The sizes of a reward model, which has no head over the vocabulary."""
    return replace(shape, tied=True)


def grader_bytes(graders: Sequence[Shape], compute_dtype: str) -> float:
    """Bytes of reward models and judges of these sizes."""
    width = 2 if compute_dtype == "bfloat16" else 4
    return float(width * sum(grader.parameters for grader in graders))


def training_job(settings: Optimisation) -> TrainingJob:
    """The job of a training that needs no other models in memory."""
    return TrainingJob(settings=settings)
