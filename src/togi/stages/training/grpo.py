"""`train.grpo`: a policy learns from groups of its own answers and a gated reward.

Method and sources: docs/methods.md; GRPO is arXiv 2402.03300, dynamic sampling and the punishment of overlong answers
are DAPO's (arXiv 2503.14476).
"""

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from togi.core.sampling import Sampling
from togi.core.settings import APART, PromptsRef, ScorerRef, Settings, references, runtime_setting
from togi.model.sizes import Job, Shape, adapter_size
from togi.objectives.rules import policy_problem
from togi.rewards.settings import GuardSettings, JudgeTerm, LengthGate, ModelTerm, OverlongTerm, RewardSettings
from togi.stages.base import StageType, gives
from togi.stages.cost import Asked, Cost, Inputs, Load, Sampled
from togi.stages.training.engine import EngineSettings
from togi.stages.training.job import TrainingJob
from togi.stages.training.optimisation import Optimisation, Share
from togi.stages.training.phases import Rollouts

ELSEWHERE = {
    "gspo": "type: grpo with level: sequence",
    "opsm": "a mask that any type takes: off_policy_threshold",
}


class PolicySampling(Sampling):
    """How the policy answers while it learns. What is sampled is exactly what is trained on."""

    temperature: float = Field(default=1.0, gt=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1, description="under 1 it biases the ratio: a warning says so")
    top_k: int = Field(default=0, ge=0, description="0: off; otherwise a warning, as for top_p")
    min_p: float = Field(default=0.0, ge=0, lt=1, description="0: off; otherwise a warning, as for top_p")
    repetition_penalty: float = Field(default=1.0, description="must stay 1: the trainer cannot recompute it")
    max_tokens: int = Field(default=64, ge=1, description="tokens of an answer, terminator included")
    stop: tuple[str, ...] = Field(default=(), description="must stay empty: the policy learns to end an answer itself")
    seed: int | None = Field(default=None, description="must stay absent: the stage has a seed")

    @field_validator("repetition_penalty")
    @classmethod
    def _off(cls, value: float) -> float:
        if value != 1.0:
            raise ValueError(f"must be 1 in training, found {value}: the trainer cannot recompute what it does")
        return value

    @field_validator("stop", "seed")
    @classmethod
    def _unset(cls, value: Any, info: ValidationInfo) -> Any:
        if value not in ((), None):
            why = "the policy learns to end an answer itself" if info.field_name == "stop" else "the stage has a `seed`"
            raise ValueError(f"must be absent in training: {why}")
        return value


class Correction(Settings):
    """Weights p_trainer / p_sampler, for a sampler that does not compute exactly what the trainer does."""

    level: Literal["token", "sequence"] = Field(default="sequence", description="a weight a token, or a whole answer")
    mode: Literal["truncate", "mask"] = Field(
        default="mask", description="what happens outside floor to cap: the weight stops there, or becomes 0"
    )
    cap: float = Field(default=3.0, gt=0, description="largest weight")
    floor: float | None = Field(default=None, gt=0, description="smallest weight; none when absent")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.floor is not None and self.floor >= self.cap:
            raise ValueError(f"floor is {self.floor} and cap {self.cap}: no weight lies between them")
        return self


class Loss(Settings):
    """Which member of the family, and its constants."""

    type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "luspo", "sapo", "vespo"] = "dapo"
    level: Literal["token", "sequence"] = Field(default="token", description="sequence: GSPO; luspo needs it")
    eps: float | None = Field(
        default=None, gt=0, lt=1, description="the ratio is clipped to 1 - eps and 1 + eps_high; 0.2 when absent"
    )
    eps_high: float | None = Field(default=None, gt=0, description="eps when absent; DAPO: 0.28")
    delta: float | None = Field(default=None, gt=1, description="two-sided clip: largest ratio below advantage 0")
    max_weight: float | None = Field(default=None, gt=0, description="cispo: largest ratio; 5 when absent")
    beta: float = Field(
        default=0.0,
        ge=0,
        description="weight of the KL to the initial model: the adapter switched off, or a frozen copy without one",
    )
    kl_bias_correction: bool = Field(default=True, description="the KL term is weighted by the ratio")
    reference_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="type of the frozen copy that beta needs where there is no adapter"
    )
    sampler_correction: Correction | None = Field(
        default=None, description="weights for what the sampler computed otherwise; the mismatch is logged in any case"
    )
    off_policy_threshold: float | None = Field(
        default=None,
        gt=0,
        description="an answer below advantage 0 that lost more nats a token than this carries no loss (DeepSeek-V3.2)",
    )

    @property
    def clip(self) -> float:
        """`eps`, or its default."""
        return 0.2 if self.eps is None else self.eps

    @field_validator("type", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if isinstance(value, str) and value in ELSEWHERE:
            raise ValueError(f"{value!r} is not a type here, but {ELSEWHERE[value]}")
        return value

    @model_validator(mode="after")
    def _reads_what_it_is_given(self) -> Self:
        """A setting that the loss does not read is a mistake in the recipe."""
        wrong = policy_problem(
            self.type,
            level=self.level,
            max_weight=self.max_weight,
            correction=self.sampler_correction,
            eps=self.eps,
            eps_high=self.eps_high,
            delta=self.delta,
        )
        if wrong:
            raise ValueError(wrong)
        narrow = self.reference_dtype != "float32"
        if self.beta == 0 and (narrow or not self.kl_bias_correction):
            name = "reference_dtype" if narrow else "kl_bias_correction"
            raise ValueError(f"{name} belongs to the KL, which beta: 0 leaves out; set beta or remove it")
        return self

    @model_validator(mode="after")
    def _delta_reaches_further(self) -> Self:
        high = 1 + (self.clip if self.eps_high is None else self.eps_high)
        if self.delta is not None and self.delta <= high:
            raise ValueError(
                f"delta is {self.delta}, but the ratio is clipped at {high:g} already; choose a larger one"
            )
        return self


class TrainGrpo(Optimisation):
    """Samples groups of answers, grades them, learns from them. Prompts come in a shuffled order, epoch after epoch.

    A batch of samples is minibatches x prompts_per_step prompts with group_size answers each. It serves minibatches x
    epochs_per_batch optimiser steps; then the next is sampled, from the policy as it is.
    """

    measures: ClassVar[tuple[str, ...]] = ("reward",)

    type: Literal["train.grpo"] = "train.grpo"
    prompts: PromptsRef
    reward: RewardSettings
    steps: int = Field(default=100, ge=1, description="optimiser steps")
    prompts_per_step: int = Field(default=8, ge=1, description="prompts that one optimiser step learns from")
    group_size: int = Field(default=8, ge=2, description="answers to each prompt")
    minibatches: int = Field(
        default=1, ge=1, le=1024, description="optimiser steps that a batch of samples is cut into"
    )
    epochs_per_batch: int = Field(default=1, ge=1, le=64, description="how often each batch of samples is learnt from")
    refill_rounds: int = Field(
        default=0,
        ge=0,
        le=100,
        description="dynamic sampling: how often the groups of a batch that teach nothing are replaced by groups of "
        "the next prompts; 0: never",
    )
    sampling: PolicySampling = PolicySampling()
    loss: Loss = Loss()
    key_cache: float | None = runtime_setting(
        None,
        "GB that keys and values of sampling may take; prompts wait until there is room; as much as a batch of samples "
        "needs when absent",
        gt=0,
    )
    engine: EngineSettings | None = Field(
        default=None, description="a server that samples the policy; the embedded engine when absent"
    )
    staleness: Literal[0, 1] = Field(
        default=0,
        description="1: the next batch of samples is drawn while this one is learnt from, so from the policy before; "
        "loss.sampler_correction makes up for that",
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        default="group", description="advantages are divided by the deviation of the group, of the batch, or not"
    )
    learning_rate: float = Field(default=1e-6, gt=0, description="peak of the schedule")
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    mask_truncated: bool = Field(
        default=False, description="answers whose text does not hold the terminator carry no loss"
    )
    validation: PromptsRef | Share | None = Field(
        default=None,
        description="prompts to answer and grade without learning, or the share of them to keep out",
        json_schema_extra=APART,
    )
    validation_samples: int = Field(default=1, ge=1, description="answers to each validation prompt")
    choose_by: Literal["reward"] = Field(default="reward", description="what best means: the mean reward")  # type: ignore[assignment]
    guards: tuple[GuardSettings, ...] = ()
    by_characters: bool = Field(
        default=False, description="measure diversity over characters: for languages written without spaces"
    )
    dead_steps: int = Field(
        default=10,
        ge=0,
        description="stop after this many first batches of samples in which none passed the gates; 0 never does",
    )
    save_every: int = Field(
        default=10, ge=1, description="optimiser steps between checkpoints, which fall between batches of samples"
    )
    keep: int = runtime_setting(2, "newest checkpoints to keep while the stage runs, beside the best one", ge=1)

    @property
    def updates(self) -> int:
        """Optimiser steps that one batch of samples serves."""
        return self.minibatches * self.epochs_per_batch

    @model_validator(mode="after")
    def _guards_measure(self) -> Self:
        for guard in self.guards:
            if guard.metric == "kl" and self.loss.beta == 0:
                raise ValueError("a guard on kl needs the KL to be computed: set loss.beta above 0")
        return self

    @model_validator(mode="after")
    def _whole_batches(self) -> Self:
        if self.steps % self.updates:
            below = self.steps - self.steps % self.updates
            raise ValueError(
                f"steps is {self.steps}, but a batch of samples serves {self.updates} optimiser steps (minibatches x "
                f"epochs_per_batch); set steps to {f'{below} or ' if below else ''}{below + self.updates}"
            )
        return self

    @model_validator(mode="after")
    def _one_reference(self) -> Self:
        if self.lora is not None and self.loss.reference_dtype != "float32":
            raise ValueError("loss.reference_dtype is of a frozen copy, which lora does not need; remove it")
        if self.validation is None and self.validation_samples > 1:
            raise ValueError("validation_samples needs validation: name prompts, or a share such as 0.05")
        return self

    @model_validator(mode="after")
    def _served(self) -> Self:
        """What an engine on a server, and samples of the policy before, ask of the other settings."""
        if self.staleness and self.loss.sampler_correction is None:
            raise ValueError(
                "staleness: 1 learns from answers of the policy before; say how they are weighed, for example "
                "loss.sampler_correction: {level: token, mode: truncate, cap: 2.0}"
            )
        if self.engine is None:
            return self
        sampling = self.sampling
        if sampling.top_p < 1 or sampling.top_k or sampling.min_p:
            raise ValueError(
                "with an engine samples are drawn by temperature alone, because the log-probabilities of a server "
                "cannot be compared with the trainer's otherwise; remove sampling.top_p, top_k and min_p"
            )
        if self.key_cache is not None:
            raise ValueError("key_cache bounds the embedded engine; remove it, or bound the server's own cache")
        adapter = self.engine.publish == "adapter"
        if adapter and self.lora is None:
            raise ValueError("engine.publish: adapter needs lora; use publish: disk for the whole model")
        if self.lora is not None and not adapter and self.processes > 1:
            raise ValueError("with lora and several processes, set engine.publish: adapter")
        return self

    @model_validator(mode="after")
    def _lengths_are_reached(self) -> Self:
        for gate in self.reward.gates:
            if isinstance(gate, LengthGate) and gate.unit == "tokens" and gate.min > self.sampling.max_tokens:
                raise ValueError(
                    f"the length gate asks for {gate.min} tokens, but sampling.max_tokens is "
                    f"{self.sampling.max_tokens}: no answer could pass"
                )
        for term in self.reward.terms:
            if isinstance(term, OverlongTerm) and term.free_tokens >= self.sampling.max_tokens:
                raise ValueError(
                    f"the overlong term begins after {term.free_tokens} tokens, but sampling.max_tokens is "
                    f"{self.sampling.max_tokens}: no answer could be punished"
                )
        return self


def scorers_of(settings: TrainGrpo) -> list[ScorerRef]:
    """The reward models that a policy is graded by, each once."""
    return sorted({ref for _, ref in references(settings.reward) if isinstance(ref, ScorerRef)})


def estimate(settings: TrainGrpo, inputs: Inputs) -> Cost:
    """Every answer as long as it may be; a prompt is computed once for its group, whose answers may be apart."""
    groups = settings.steps * settings.prompts_per_step
    samples = groups * settings.group_size // settings.epochs_per_batch
    cost = Cost(samples=samples, sampled=samples * settings.sampling.max_tokens)
    _graders(settings, inputs, samples * (1 + settings.refill_rounds), cost)
    prompts = inputs.lengths([settings.prompts], inputs[settings.init], cost)
    _engine(settings, groups // settings.epochs_per_batch, 0.0 if prompts is None else prompts[0], cost)
    if prompts is None:
        cost.unknown.append("tokens: the lengths of the prompts are unknown until they are on the disk")
        return cost
    mean, most = prompts
    answers = settings.group_size * settings.sampling.max_tokens
    cost.tokens = round(groups * (mean + answers))
    cost.notes.append("tokens: at most, if every answer were as long as max_tokens; sampling is not in the operations")
    cost.load = Load(
        step=settings.prompts_per_step * (most + answers),
        example=most + settings.sampling.max_tokens,
        forward=cost.tokens / settings.epochs_per_batch if settings.loss.beta > 0 else 0.0,
        sampling=Sampled(
            batches=settings.steps // settings.updates,
            rows=settings.minibatches * settings.prompts_per_step * settings.group_size,
            group=settings.group_size,
            prompt=most,
            answer=settings.sampling.max_tokens,
        ),
    )
    return cost


def _engine(settings: TrainGrpo, groups: int, mean: float, cost: Cost) -> None:
    """Adds what a server that samples is asked: each group is one request."""
    if settings.engine is None:
        return
    groups *= 1 + settings.refill_rounds
    written = groups * settings.group_size * settings.sampling.max_tokens
    cost.asked[settings.engine.model.name] = Asked(calls=groups, read=math.ceil(groups * mean), written=written)
    cost.notes.append("calls: without validations and probes of the server that samples")


def _graders(settings: TrainGrpo, inputs: Inputs, samples: int, cost: Cost) -> None:
    """Adds what judges and reward models are asked if every answer passes the gates; a group is one batch of scores."""
    asked = [term for term in settings.reward.terms if isinstance(term, JudgeTerm | ModelTerm)]
    prompts: list[Any] = list(inputs[settings.prompts].samples)
    shown = sum(len(prompt.text.encode()) for prompt in prompts) / len(prompts) if prompts else 0.0
    for term in asked:
        judge = isinstance(term, JudgeTerm)
        name, each = (term.judge.name, term.max_tokens) if judge else (term.scorer.name, 0)
        read = shown + settings.sampling.max_tokens + (term.prompt_bytes if judge else 0)
        before = cost.asked.get(name, Asked(calls=0))
        cost.asked[name] = Asked(
            calls=before.calls + (samples if judge else samples // settings.group_size),
            read=before.read + math.ceil(samples * read),
            written=before.written + samples * each,
        )
    if judges := [term for term in asked if isinstance(term, JudgeTerm)]:
        cost.answer = max(term.max_tokens for term in judges)
        more = "unreadable grades" if settings.validation is None else "unreadable grades and validations"
        cost.notes.append(f"calls: if every answer passes the gates; without those for {more}")
        if not prompts:
            cost.unknown.append("tokens read: the prompts that the judge is shown are not there yet")


def job(settings: TrainGrpo) -> TrainingJob:
    """A policy with the copy that it is sampled from, the frozen one of its KL, and its reward models."""

    def copies(job: Job, shape: Shape, compute_dtype: str) -> float:
        width = 2 if compute_dtype == "bfloat16" else 4
        sampled = float(shape.parameters * width)
        if settings.engine is not None:
            sampled = 0.0
        elif settings.processes == 1 and (width == 4 or job.weights != "float32"):
            frozen = job.rank and job.weights in ("bfloat16", "nf4")  # shared, so that the adapter alone is copied
            sampled = float(adapter_size(shape, job) * width) if frozen else 0.0 if width == 4 else sampled
        if settings.loss.beta > 0 and settings.lora is None:
            return sampled + shape.parameters * (2.0 if settings.loss.reference_dtype == "bfloat16" else 4.0)
        return sampled

    rollouts = Rollouts(
        rows=settings.minibatches * settings.prompts_per_step * settings.group_size,
        group=settings.group_size,
        answer=settings.sampling.max_tokens,
        bound=None if settings.key_cache is None else settings.key_cache * 1e9,
    )
    here = rollouts if settings.engine is None else None
    graders = tuple(scorers_of(settings))
    return TrainingJob(settings=settings, entropy=True, scorers=graders, rollouts=here, copies=copies)


STAGE = StageType(
    "train.grpo",
    TrainGrpo,
    outputs=gives("model", samples="samples"),
    work="togi.stages.training.grpo_work",
    version=6,
    estimate=estimate,
    job=job,
)
