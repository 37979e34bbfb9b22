"""`train.grpo`: trains a policy on groups of its own answers with a gated reward.

Method and sources: docs/methods.md. GRPO is arXiv 2402.03300; dynamic sampling and the penalty on overlong answers come
from DAPO (arXiv 2503.14476).
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
from togi.stages.training.correction import Correction
from togi.stages.training.engine import EngineSettings
from togi.stages.training.job import TrainingJob
from togi.stages.training.optimisation import Optimisation, Share
from togi.stages.training.phases import Rollouts

ELSEWHERE = {
    "gspo": "type: grpo with level: sequence",
    "opsm": "a mask that works with every type: off_policy_threshold",
}


STORED_TOKEN = 28
"""Bytes on disk of a sampled token: its id, its text and two log-probabilities, compressed. Measured: 24 to 28."""
STORED_SAMPLE = 300
"""Bytes on disk of a sample besides its tokens: prompt, scores and ids, compressed."""


class PolicySampling(Sampling):
    """How the policy samples its answers during training. It is trained on exactly these samples."""

    temperature: float = Field(default=1.0, gt=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1, description="values below 1 bias the ratio and raise a warning")
    top_k: int = Field(default=0, ge=0, description="0: off; other values raise a warning, as for top_p")
    min_p: float = Field(default=0.0, ge=0, lt=1, description="0: off; other values raise a warning, as for top_p")
    repetition_penalty: float = Field(default=1.0, description="must stay 1: the trainer cannot recompute it")
    max_tokens: int = Field(default=64, ge=1, description="maximum length of an answer in tokens, terminator included")
    stop: tuple[str, ...] = Field(default=(), description="must stay empty: the policy learns to end its answers")
    seed: int | None = Field(default=None, description="must stay absent: the stage's seed is used")

    @field_validator("repetition_penalty")
    @classmethod
    def _off(cls, value: float) -> float:
        if value != 1.0:
            raise ValueError(f"must be 1 in training, found {value}: the trainer cannot recompute its effect")
        return value

    @field_validator("stop", "seed")
    @classmethod
    def _unset(cls, value: Any, info: ValidationInfo) -> Any:
        if value not in ((), None):
            why = "the policy learns to end its answers" if info.field_name == "stop" else "use the stage's `seed`"
            raise ValueError(f"must be absent in training: {why}")
        return value


class Loss(Settings):
    """The loss variant and its constants."""

    type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "luspo", "sapo", "vespo"] = "dapo"
    level: Literal["token", "sequence"] = Field(default="token", description="sequence: GSPO; luspo needs it")
    eps: float | None = Field(
        default=None, gt=0, lt=1, description="the ratio is clipped to [1 - eps, 1 + eps_high]; 0.2 when absent"
    )
    eps_high: float | None = Field(default=None, gt=0, description="eps when absent; DAPO: 0.28")
    delta: float | None = Field(
        default=None, gt=1, description="two-sided clip: largest ratio of tokens with a negative advantage"
    )
    max_weight: float | None = Field(default=None, gt=0, description="cispo: largest ratio; 5 when absent")
    beta: float = Field(
        default=0.0,
        ge=0,
        description="weight of the KL to the initial model, which is computed with the adapter switched off, or "
        "without lora by a frozen copy",
    )
    kl_bias_correction: bool = Field(default=True, description="weight the KL term by the ratio")
    reference_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="type of the frozen copy that beta needs when there is no adapter"
    )
    sampler_correction: Correction | None = Field(
        default=None,
        description="importance weights that correct for a sampler that computes other probabilities than the trainer; "
        "the mismatch is logged in any case",
    )
    off_policy_threshold: float | None = Field(
        default=None,
        gt=0,
        description="an answer with a negative advantage carries no loss if its log-probability fell by more than this "
        "many nats per token (DeepSeek-V3.2)",
    )

    @property
    def clip(self) -> float:
        """`eps`, or its default."""
        return 0.2 if self.eps is None else self.eps

    @field_validator("type", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if isinstance(value, str) and value in ELSEWHERE:
            raise ValueError(f"{value!r} is not a type here; it is {ELSEWHERE[value]}")
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
            raise ValueError(
                f"{name} belongs to the KL term, which beta: 0 switches off; set beta, or remove the setting"
            )
        return self

    @model_validator(mode="after")
    def _delta_reaches_further(self) -> Self:
        high = 1 + (self.clip if self.eps_high is None else self.eps_high)
        if self.delta is not None and self.delta <= high:
            raise ValueError(
                f"delta is {self.delta}, but the ratio is already clipped at {high:g}; choose a larger delta"
            )
        return self


class TrainGrpo(Optimisation):
    """Samples groups of answers, grades them and trains on them. Prompts are shuffled anew in each epoch.

    A batch of samples is minibatches x prompts_per_step prompts with group_size answers each. It is used for
    minibatches x epochs_per_batch optimiser steps; then the current policy samples the next batch.
    """

    measures: ClassVar[tuple[str, ...]] = ("reward",)

    type: Literal["train.grpo"] = "train.grpo"
    prompts: PromptsRef
    reward: RewardSettings
    steps: int = Field(default=100, ge=1, description="optimiser steps")
    prompts_per_step: int = Field(default=8, ge=1, description="prompts per optimiser step")
    group_size: int = Field(default=8, ge=2, description="answers per prompt")
    minibatches: int = Field(
        default=1, ge=1, le=1024, description="optimiser steps in one pass over a batch of samples"
    )
    epochs_per_batch: int = Field(default=1, ge=1, le=64, description="passes over each batch of samples")
    refill_rounds: int = Field(
        default=0,
        ge=0,
        le=100,
        description="dynamic sampling: maximum number of rounds in which groups without a learning signal are replaced "
        "by groups of the next prompts; 0: off",
    )
    sampling: PolicySampling = PolicySampling()
    loss: Loss = Loss()
    key_cache: float | None = runtime_setting(
        None,
        "GB for the key-value cache while sampling; prompts wait until there is room; absent: as much as a batch of "
        "samples needs",
        gt=0,
    )
    engine: EngineSettings | None = Field(
        default=None, description="a server that samples from the policy; the embedded engine when absent"
    )
    staleness: Literal[0, 1] = Field(
        default=0,
        description="1: the next batch is sampled while this one is trained on, and so from the previous policy; "
        "loss.sampler_correction corrects for that",
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        default="group", description="advantages are divided by the standard deviation of their group or batch, or not"
    )
    learning_rate: float = Field(default=1e-6, gt=0, description="peak of the schedule")
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    mask_truncated: bool = Field(default=False, description="answers whose text lacks the terminator carry no loss")
    validation: PromptsRef | Share | None = Field(
        default=None,
        description="prompts for validation, or the share of the prompts to keep out of training for it",
        json_schema_extra=APART,
    )
    validation_samples: int = Field(default=1, ge=1, description="answers per validation prompt")
    choose_by: Literal["reward"] = Field(default="reward", description="metric of the best validation: the mean reward")  # type: ignore[assignment]
    guards: tuple[GuardSettings, ...] = ()
    by_characters: bool = Field(
        default=False, description="measure diversity over characters; for languages written without spaces"
    )
    dead_steps: int = Field(
        default=10,
        ge=0,
        description="stop the run if no answer has passed the gates after this many batches of samples; 0: never",
    )
    save_every: int = Field(
        default=10, ge=1, description="optimiser steps between checkpoints, rounded up to whole batches of samples"
    )
    keep: int = runtime_setting(2, "newest checkpoints to keep while the stage runs, besides the best one", ge=1)

    @property
    def updates(self) -> int:
        """Optimiser steps per batch of samples."""
        return self.minibatches * self.epochs_per_batch

    def limited(self, rows: int) -> Self:
        """Limits the training to the batches of samples that `rows` prompts fill."""
        steps = -(-rows // (self.minibatches * self.prompts_per_step)) * self.updates
        return self if steps >= self.steps else self.model_copy(update={"steps": steps, **self.brief(steps)})

    @model_validator(mode="after")
    def _guards_measure(self) -> Self:
        for guard in self.guards:
            if guard.metric == "kl" and self.loss.beta == 0:
                raise ValueError("a guard on kl needs the KL, which is computed only if loss.beta is above 0")
        return self

    @model_validator(mode="after")
    def _whole_batches(self) -> Self:
        if self.steps % self.updates:
            below = self.steps - self.steps % self.updates
            raise ValueError(
                f"steps is {self.steps}, but a batch of samples covers {self.updates} optimiser steps (minibatches x "
                f"epochs_per_batch); set steps to {f'{below} or ' if below else ''}{below + self.updates}"
            )
        return self

    @model_validator(mode="after")
    def _one_reference(self) -> Self:
        if self.lora is not None and self.loss.reference_dtype != "float32":
            raise ValueError("loss.reference_dtype is the type of a frozen copy, which lora does not need; remove it")
        if self.validation is None and self.validation_samples > 1:
            raise ValueError("validation_samples needs validation: name prompts, or a share such as 0.05")
        return self

    @model_validator(mode="after")
    def _served(self) -> Self:
        """Checks the other settings against an engine on a server and against samples of the previous policy."""
        if self.staleness and self.loss.sampler_correction is None:
            raise ValueError(
                "staleness: 1 trains on answers of the previous policy, which need importance weights; set for example "
                "loss.sampler_correction: {level: token, mode: truncate, cap: 2.0}"
            )
        if self.engine is None:
            return self
        sampling = self.sampling
        if sampling.top_p < 1 or sampling.top_k or sampling.min_p:
            raise ValueError(
                "an engine samples by temperature alone, because otherwise the server's log-probabilities cannot be "
                "compared with the trainer's; remove sampling.top_p, top_k and min_p"
            )
        if self.key_cache is not None:
            raise ValueError("key_cache limits the embedded engine; remove it, or limit the cache on the server")
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
                    f"the length gate requires {gate.min} tokens, but sampling.max_tokens is "
                    f"{self.sampling.max_tokens}: no answer could pass"
                )
        for term in self.reward.terms:
            if isinstance(term, OverlongTerm) and term.free_tokens >= self.sampling.max_tokens:
                raise ValueError(
                    f"the overlong penalty starts after {term.free_tokens} tokens, but sampling.max_tokens is "
                    f"{self.sampling.max_tokens}: no answer could be penalised"
                )
        return self


def scorers_of(settings: TrainGrpo) -> list[ScorerRef]:
    """The distinct reward models of the reward, sorted."""
    return sorted({ref for _, ref in references(settings.reward) if isinstance(ref, ScorerRef)})


def estimate(settings: TrainGrpo, inputs: Inputs) -> Cost:
    """Assumes that every answer has max_tokens. Each prompt is computed once per group; the answers of a group may be
    in different micro-batches."""
    groups = settings.steps * settings.prompts_per_step
    samples = groups * settings.group_size // settings.epochs_per_batch
    cost = Cost(samples=samples, sampled=samples * settings.sampling.max_tokens)
    graded = samples * (1 + settings.refill_rounds)
    cost.stored_bytes = graded * (STORED_SAMPLE + settings.sampling.max_tokens * STORED_TOKEN)
    _graders(settings, inputs, graded, cost)
    prompts = inputs.lengths([settings.prompts], inputs[settings.init], cost)
    _engine(settings, groups // settings.epochs_per_batch, 0.0 if prompts is None else prompts[0], cost)
    if prompts is None:
        cost.unknown.append("tokens: the lengths of the prompts are unknown until the prompts are on disk")
        return cost
    mean, most = prompts
    answers = settings.group_size * settings.sampling.max_tokens
    cost.tokens = round(groups * (mean + answers))
    cost.notes.append("tokens: upper bound, with every answer at max_tokens; operations do not include sampling")
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
    """Adds the requests to the sampling server: one per group."""
    if settings.engine is None:
        return
    groups *= 1 + settings.refill_rounds
    written = groups * settings.group_size * settings.sampling.max_tokens
    cost.asked[settings.engine.model.name] = Asked(calls=groups, read=math.ceil(groups * mean), written=written)
    cost.notes.append("calls: without validations and probes of the sampling server")


def _graders(settings: TrainGrpo, inputs: Inputs, samples: int, cost: Cost) -> None:
    """Adds the calls of judges and reward models if every answer passes the gates. A reward model scores a group in one
    call."""
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
        cost.notes.append(f"calls: if every answer passes the gates; without calls for {more}")
        if not prompts:
            cost.unknown.append("tokens read: the prompts that the judge reads do not exist yet")


def job(settings: TrainGrpo) -> TrainingJob:
    """The job: a policy with its sampling copy, the frozen copy for the KL, and its reward models."""

    def copies(job: Job, shape: Shape, compute_dtype: str) -> float:
        width = 2 if compute_dtype == "bfloat16" else 4
        sampled = float(shape.parameters * width)
        if settings.engine is not None:
            sampled = 0.0
        elif settings.processes == 1 and (width == 4 or job.weights != "float32"):
            frozen = job.rank and job.weights in ("bfloat16", "nf4")  # shared: only the adapter is copied
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
    version=7,
    estimate=estimate,
    job=job,
)
