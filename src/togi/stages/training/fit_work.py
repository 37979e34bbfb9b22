"""Training on fixed data: micro-batches, validation, the best weights.

A stage brings a `Task`: its examples (`examples_work`) and how a model learns from them. `fit` does the rest.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from togi.core.ranks import ALONE, Ranks
from togi.core.seeds import derive
from togi.model.forest import Forest, move, num_tokens, plant
from togi.model.load import LoadedModel
from togi.model.policy import Policy, unwrapped
from togi.model.router import own_weight
from togi.objectives.base import Batch, Metrics, Objective, Output, add_metrics, on_host, read_metrics
from togi.stages.arithmetic import in_machine_type
from togi.stages.context import Context
from togi.stages.timing import timed
from togi.stages.training.examples_work import BatchSource, Data, Example, ShuffledEpochs, check_fits
from togi.stages.training.optimisation import Optimisation
from togi.stages.training.token_files_work import largest
from togi.stages.training.trainer_work import BestValidation, Trainer
from togi.train.loop import MicroBatch
from togi.train.optimizer import AdamWSettings, Schedule, Update, build_adamw, trained
from togi.train.sharding import ShardedModel

Inputs = TypeVar("Inputs")


# --- what a stage brings ----------------------------------------------------------------------------------------------


class Task(ABC, Generic[Inputs]):
    """How a model learns from examples. `Inputs` is what one forward reads.

    `module` is a `Policy` or `RewardModel`; None where the trained weights are few, so that each rank holds them whole.
    While it is trained on several ranks its weights are empty, and another one, whose weights are shards, is handed to
    `forward`.
    """

    def __init__(self, data: Data, device: torch.device, module: Any = None) -> None:
        self.data = data
        self.device = device
        self.module = module

    @abstractmethod
    def objective(self, step: int) -> Objective:
        """The loss of a step (from 0)."""

    def validated(self, step: int) -> Objective:
        """The loss that validation measures after `step` steps; the same at all of them where they are compared."""
        return self.objective(max(step - 1, 0))

    @abstractmethod
    def forward(self, module: Any, inputs: Inputs) -> Output:
        """What the model says about a micro-batch, with a graph where gradients are on. `module` is the task's, or what
        stands in for it."""

    @abstractmethod
    def plant(self, examples: Sequence[Example]) -> Inputs:
        """What the forward reads for some examples."""

    def batch(self, examples: Sequence[Example], inputs: Inputs) -> Batch:
        """What the objective reads for the same examples."""
        return Batch(num_sequences=sum(len(example.group) for example in examples))

    def size(self, example: Example) -> int:
        """Tokens that the model computes for an example."""
        return num_tokens(example.group)

    def longest(self) -> int:
        """The size of the largest example to train on."""
        known = largest(self.data.training)
        return max((self.size(example) for example in self.data.training), default=0) if known is None else known

    def source(self, settings: Any, seed: int) -> BatchSource:
        """The order of training."""
        return ShuffledEpochs(settings, self.data.training, seed)

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Called after each step with what it measured: where a guard stands. What it remembers is its `state`."""

    def state(self) -> dict[str, Any]:
        """What of the task must survive a kill, besides what follows from the step."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave."""

    def rates(self) -> Mapping[str, float]:
        """Peak learning rates of parameters whose name begins with a key, where they differ from the setting."""
        return {}


class TokenTask(Task[Forest]):
    """A task whose objective reads log-probabilities of scored tokens."""

    def __init__(self, data: Data, model: LoadedModel) -> None:
        super().__init__(data, model.net.device, Policy(model.net))

    def plant(self, examples: Sequence[Example]) -> Forest:
        return plant([example.group for example in examples])

    def forward(self, module: Any, inputs: Forest) -> Output:
        found = module(move(inputs, self.device))
        return Output(logp_N=found.logp_N, aux=found.aux)

    def batch(self, examples: Sequence[Example], inputs: Forest) -> Batch:
        return Batch(num_sequences=inputs.num_sequences, sequence_N=inputs.sequence_N.to(self.device))


def cut(task: Task[Any], examples: Sequence[Example], budget: int) -> list[list[Example]]:
    """Examples in order, in parts of at most `budget` tokens; a longer example is a part of its own."""
    parts: list[list[Example]] = []
    tokens = 0
    for example in examples:
        size = task.size(example)
        if not parts or tokens + size > budget:
            parts.append([])
            tokens = 0
        parts[-1].append(example)
        tokens += size
    return parts


def micro_batches(
    task: Task[Inputs], examples: Sequence[Example], budget: int, ranks: Ranks = ALONE
) -> Iterator[tuple[list[Example], MicroBatch[Inputs]]]:
    """This rank's micro-batches of some examples; the cut is the same on any number of ranks."""
    for part, idle in ranks.share(cut(task, examples, budget)):
        inputs = task.plant(part)
        yield (
            part,
            MicroBatch(
                inputs=inputs,
                batch=task.batch(part, inputs),
                rows=tuple(example.id for example in part),
                num_tokens=_computed(task, part, inputs),
                idle=idle,
            ),
        )


def _computed(task: Task[Any], part: Sequence[Example], inputs: Any) -> int:
    """Tokens of a micro-batch: examples that begin alike may have fewer together than each alone."""
    return len(inputs.ids_T) if isinstance(inputs, Forest) else sum(task.size(example) for example in part)


# --- validation -------------------------------------------------------------------------------------------------------


class Validation(Generic[Inputs]):
    """One pass without gradients over the held-out examples: their loss as if they were one batch, and its metrics."""

    def __init__(
        self, task: Task[Inputs], forward: Callable[[Inputs], Output], budget: int, ranks: Ranks = ALONE
    ) -> None:
        self.task = task
        self.forward = forward
        self.ranks = ranks
        self.budget = budget

    @torch.no_grad()
    def measure(self, step: int) -> dict[str, float]:
        """Metrics under validation/, after `step` finished steps; nothing where nothing is held out."""
        if not len(self.task.data.validation):
            return {}
        objective = self.task.validated(step)
        totals = self._totals(objective)
        own: list[tuple[float, Metrics]] = []
        for micro in self._micro_batches():
            loss, found = objective.loss(self.forward(micro.inputs), micro.batch, totals)
            if not micro.idle:
                own.append(
                    (float(loss), {name: (float(total), float(weight)) for name, (total, weight) in found.items()})
                )
        parts = [part for found in self.ranks.gather(own) for part in found]
        metrics: Metrics = {}
        for _, found in parts:
            add_metrics(metrics, found)
        values = {"loss": sum(loss for loss, _ in parts), **read_metrics(metrics)}
        return {f"validation/{name}": value for name, value in values.items()}

    def _micro_batches(self) -> Iterator[MicroBatch[Inputs]]:
        """Made each time anew: only one of them is in memory."""
        return (micro for _, micro in micro_batches(self.task, self.task.data.validation, self.budget, self.ranks))

    def _totals(self, objective: Objective) -> dict[str, float]:
        """The objective's counts over all held-out examples."""
        own = [objective.counts(micro.batch) for micro in self._micro_batches() if not micro.idle]
        totals: dict[str, float] = {}
        for counts in (counts for found in self.ranks.gather(own) for counts in found):
            for name, count in counts.items():
                totals[name] = totals.get(name, 0.0) + count
        return totals


def outputs(
    task: Task[Inputs], context: Context, examples: Sequence[Example], budget: int
) -> Iterator[tuple[list[Example], Output]]:
    """What the model says about examples, micro-batch by micro-batch, without gradients; ranks share the work."""
    forward = _forward(task, task.module, context)

    def say(micro: MicroBatch[Inputs]) -> Output:
        with torch.no_grad():
            return forward(micro.inputs)

    mine = ((part, say(micro)) for part, micro in micro_batches(task, examples, budget, context.ranks))
    if context.ranks.several:
        every = context.ranks.gather([(part, on_host(output)) for part, output in mine])
        count = len(cut(task, examples, budget))
        yield from (every[i % len(every)][i // len(every)] for i in range(count))
    else:
        yield from mine


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """A finished training: after which step the model's weights are, and what they reached on the validation."""

    step: int
    validation: dict[str, float]


@dataclass(slots=True)
class _Progress:
    """What a checkpoint keeps besides weights: the states of source and task, and the best validation so far."""

    source: BatchSource
    task: Task[Any]
    validated: BestValidation

    def state(self) -> dict[str, Any]:
        return {"source": self.source.state(), "task": self.task.state(), "best": self.validated.best}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.source.restore(state["source"])
        self.task.restore(state["task"])
        self.validated.best = state["best"]


def fit(settings: Optimisation, context: Context, model: LoadedModel, task: Task[Any]) -> TrainingResult:
    """Trains `model` in place, and leaves it with the weights that `choose` names.

    Goes on from the newest checkpoint of the stage's folder where there is one. Raises StageError for a loss that is
    not finite and for an example that the memory has no room for, Interrupted when asked to stop (everything finished
    is saved).
    """
    check_fits(context, task.longest(), "max_length")
    spread = ShardedModel(task.module, context.ranks) if task.module is not None else None
    module = None if spread is None else _prepared(settings, spread.module)
    params = trained((model if module is None else module).net.named_parameters())
    source = task.source(settings, derive(context.seed, "order"))
    validated = BestValidation(settings.choose_by, settings.choose == "best")
    trainer = Trainer(
        context=context,
        params=params,
        update=adamw_update(settings, params, task.rates(), source.total_steps),
        total_steps=source.total_steps,
        save_every=settings.save_every,
        keep=settings.keep,
        progress=_Progress(source, task, validated),
    )
    trainer.resume()
    if trainer.step == 0:
        for name, message in task.data.warnings:
            context.alarm(name, message)
    validated.resume(trainer)
    forward = _forward(task, module, context)
    last = _train(settings, trainer, task, forward, source, validated)
    best = validated.take(trainer)
    if spread is not None:
        spread.gather()
    if best is not None:
        return TrainingResult(step=best["step"], validation=best["metrics"])
    return TrainingResult(step=trainer.total_steps, validation=last)


def _prepared(settings: Optimisation, module: Any) -> Any:
    """A module as the settings want it trained."""
    module.recompute = settings.activation_checkpointing
    if isinstance(module, Policy):
        module.weigh_router(router_weight(settings, module))
    return module


def _forward(task: Task[Inputs], module: Any, context: Context) -> Callable[[Inputs], Output]:
    """The task's forward through `module`, in the arithmetic of the machine."""
    return in_machine_type(lambda inputs: task.forward(module, inputs), context)


def _train(
    settings: Optimisation,
    trainer: Trainer,
    task: Task[Any],
    forward: Callable[[Any], Output],
    source: BatchSource,
    validated: BestValidation,
) -> dict[str, float]:
    """All steps that are left; gives the metrics of the last validation."""
    validation = Validation(task, forward, settings.tokens_at_once, trainer.context.ranks)
    found: dict[str, float] = {}
    for info in trainer.run(forward, task.objective, _steps(settings, task, source, trainer)):
        times: dict[str, float] = {}
        due = trainer.step == trainer.total_steps or _is_due(settings.evaluate_every, trainer.step)
        if due:
            with timed(times, "validation"):
                found = validation.measure(trainer.step)
        metrics = {**source.metrics(), "num_tokens": float(info.num_tokens)}
        trainer.log(info, {**metrics, **(found if due else {})}, times, _note(info.loss, found))
        task.observe(trainer.step, info.metrics)
        if due:
            validated.observe(trainer, found)
    return found or validation.measure(trainer.step)


def _is_due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _note(loss: float, validation: Mapping[str, float]) -> str:
    shown = f", validation {validation['validation/loss']:.4f}" if validation else ""
    return f"loss {loss:.4f}{shown}"


def _steps(
    settings: Optimisation, task: Task[Inputs], source: BatchSource, trainer: Trainer
) -> Iterator[list[MicroBatch[Inputs]]]:
    """The micro-batches of each step, made when they are asked for."""
    for step in range(trainer.step, source.total_steps):
        taken, ranks = source.take(step), trainer.context.ranks
        yield [micro for _, micro in micro_batches(task, taken, settings.tokens_at_once, ranks)]


def router_weight(settings: Optimisation, policy: Policy) -> float:
    """The weight of the router loss: the setting, else the model's own where a stage adds it by itself."""
    if settings.router_loss is not None:
        return settings.router_loss
    return own_weight(unwrapped(policy.net)) if settings.adds_router_loss else 0.0


def adamw_update(settings: Optimisation, params: Mapping[str, Any], rates: Mapping[str, float], total: int) -> Update:
    adamw = AdamWSettings(
        learning_rate=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        bits=8 if settings.optimizer == "adamw-8bit" else 32,
        masters=settings.weights == "bfloat16-master",
        offload=settings.offload_optimizer,
    )
    schedule = Schedule(
        kind=settings.schedule,
        total_steps=total,
        warmup_steps=settings.warmup_steps,
        final=settings.final_rate,
        final_steps=settings.final_steps,
    )
    return Update(optimizer=build_adamw(params, adamw, rates), schedule=schedule, max_grad_norm=settings.max_grad_norm)
