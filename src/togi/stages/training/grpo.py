"""Declares the stage `train.grpo`: trains a policy on groups of its own answers with a gated reward.

Method and sources: docs/methods.md. GRPO is arXiv 2402.03300; dynamic sampling and the penalty on overlong answers come
from DAPO (arXiv 2503.14476).
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from togi.core.sampling import Sampling
from togi.core.settings import APART, ModelRef, PromptsRef, ScorerRef, references, runtime_setting
from togi.model.sizes import Job, Shape
from togi.rewards.settings import GuardSettings, JudgeTerm, LengthGate, ModelTerm, OverlongTerm, RewardSettings
from togi.stages.base import StageType, gives
from togi.stages.bounds import TURN, ask_scores, prompt_size, read
from togi.stages.cost import Cost, Inputs, Load, Sampled
from togi.stages.training.engine import EngineSettings
from togi.stages.training.grpo_loss import Loss
from togi.stages.training.job import TrainingJob
from togi.stages.training.optimisation import Optimisation, Share
from togi.stages.training.phases import Rollouts, sampling_copy

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
        if self.engine.publish == "transfer" and self.processes > 1:
            raise ValueError("engine.publish: transfer works with one process; use publish: disk, or processes: 1")
        if self.engine.sleep and self.staleness:
            raise ValueError(
                "engine.sleep frees the server's memory during training, but with staleness: 1 it samples meanwhile; "
                "remove one of them"
            )
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


def judges_of(settings: TrainGrpo) -> list[tuple[ModelRef, int]]:
    """The distinct judges of the reward, sorted, with the most tokens that each writes."""
    found: dict[ModelRef, int] = {}
    for term in settings.reward.terms:
        if isinstance(term, JudgeTerm):
            found[term.judge] = max(term.max_tokens, found.get(term.judge, 0))
    return sorted(found.items())


def estimate(settings: TrainGrpo, inputs: Inputs) -> Cost:
    """Assumes that every answer has max_tokens. Each prompt is computed once per group; the answers of a group may be
    in different micro-batches."""
    groups = settings.steps * settings.prompts_per_step
    samples = groups * settings.group_size // settings.epochs_per_batch
    cost = Cost(steps=settings.steps, samples=samples, sampled=samples * settings.sampling.max_tokens)
    graded = samples * (1 + settings.refill_rounds)
    cost.stored_bytes = graded * (STORED_SAMPLE + settings.sampling.max_tokens * STORED_TOKEN)
    _graders(settings, inputs, graded, cost)
    prompts = inputs.lengths([settings.prompts], inputs[settings.init], cost)
    _engine(settings, inputs, groups // settings.epochs_per_batch, cost)
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


def _engine(settings: TrainGrpo, inputs: Inputs, groups: int, cost: Cost) -> None:
    """Adds the requests to the sampling server: one per group."""
    if settings.engine is None:
        return
    groups *= 1 + settings.refill_rounds
    written = groups * settings.group_size * settings.sampling.max_tokens
    cost.ask(settings.engine.model.name, groups, read(inputs[settings.prompts], groups), written, settings.group_size)
    cost.notes.append("calls: without validations and probes of the sampling server")


def _graders(settings: TrainGrpo, inputs: Inputs, samples: int, cost: Cost) -> None:
    """Adds the calls of judges and reward models if every answer passes the gates. A reward model scores the answers to
    one prompt together."""
    asked = [term for term in settings.reward.terms if isinstance(term, JudgeTerm | ModelTerm)]
    came, group, answer = inputs[settings.prompts], settings.group_size, settings.sampling.max_tokens
    for term in asked:
        judge = isinstance(term, JudgeTerm)
        around = prompt_size(term.prompt, "judge", "graded", term.language) if judge else 0
        of_one = read(came, samples // group, answer + around + 2 * TURN)
        found = None if of_one is None else group * of_one
        if judge:
            cost.ask(term.judge.name, samples, found, samples * term.max_tokens)
        else:
            ask_scores(cost, term.scorer.name, samples, found, group)
    if judges := [term for term in asked if isinstance(term, JudgeTerm)]:
        cost.answer = max(term.max_tokens for term in judges)
        more = "unreadable grades" if settings.validation is None else "unreadable grades and validations"
        cost.notes.append(f"calls: if every answer passes the gates; without calls for {more}")


def job(settings: TrainGrpo) -> TrainingJob:
    """The job: a policy with its sampling copy, the frozen copy for the KL, and its graders."""

    def copies(job: Job, shape: Shape, compute_dtype: str) -> float:
        width = 2 if compute_dtype == "bfloat16" else 4
        sampled = 0.0 if settings.engine is not None else sampling_copy(shape, job, width)
        if settings.loss.beta > 0 and settings.lora is None:
            return sampled + shape.parameters * (2.0 if settings.loss.reference_dtype == "bfloat16" else 4.0)
        return sampled

    rollouts = Rollouts(
        rows=settings.minibatches * settings.prompts_per_step * settings.group_size,
        group=settings.group_size,
        answer=settings.sampling.max_tokens,
        bound=None if settings.key_cache is None else settings.key_cache * 1e9,
    )
    return TrainingJob(
        settings=settings,
        entropy=True,
        scorers=tuple(scorers_of(settings)),
        judges=tuple(judges_of(settings)),
        rollouts=rollouts,
        served=settings.engine is not None,
        sleeps=settings.engine is not None and settings.engine.sleep,
        copies=copies,
    )


STAGE = StageType(
    "train.grpo",
    TrainGrpo,
    outputs=gives("model", samples="samples"),
    work="togi.stages.training.grpo_work",
    version=8,
    estimate=estimate,
    job=job,
)
