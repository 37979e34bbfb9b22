"""Training on fixed data: micro-batches, validation, the best weights.

A stage provides a `Task`: its examples (`examples_work`) and how a model is trained on them. `fit` does the rest.
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
from togi.stages.arithmetic import device, in_machine_type
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


# --- what a stage provides --------------------------------------------------------------------------------------------


class Task(ABC, Generic[Inputs]):
    """How a model is trained on examples. `Inputs` is the input type of one forward pass.

    `module` is a `Policy` or `RewardModel`; None if the trained weights are so few that each rank holds all of them.
    During training on several ranks its weights are empty, and `forward` gets another module, whose weights are
    shards. With `read` they are empty before, too, and `read` reads a process's part of them (`ShardedModel`).
    """

    def __init__(
        self, data: Data, device: torch.device, module: Any = None, read: Callable[[Any], None] | None = None
    ) -> None:
        self.data = data
        self.device = device
        self.module = module
        self.read = read
        self._spread: ShardedModel | None = None

    def spread(self, ranks: Ranks) -> ShardedModel:
        """The module, sharded over `ranks` at the first call."""
        self._spread = self._spread or ShardedModel(self.module, ranks, self.read)
        self._spread.rest()
        return self._spread

    def readable(self, ranks: Ranks) -> Any:
        """A module with weights that `forward` can use before training."""
        return self.module if self.read is None else self.spread(ranks).module

    @abstractmethod
    def objective(self, step: int) -> Objective:
        """The loss of a step (from 0)."""

    def validated(self, step: int) -> Objective:
        """The loss that validation measures after `step` steps. For validations to be comparable, it must be the same
        after every step."""
        return self.objective(max(step - 1, 0))

    @abstractmethod
    def forward(self, module: Any, inputs: Inputs) -> Output:
        """The model's output for a micro-batch, with a graph if gradients are enabled. `module` is the task's, or its
        replacement."""

    @abstractmethod
    def plant(self, examples: Sequence[Example]) -> Inputs:
        """The inputs of a forward pass over some examples."""

    def batch(self, examples: Sequence[Example], inputs: Inputs) -> Batch:
        """The objective's inputs for the same examples."""
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
        """Called after each step with its metrics; a guard goes here. What it must remember belongs in `state`."""

    def state(self) -> dict[str, Any]:
        """The task's state that a checkpoint must keep because it does not follow from the step."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""

    def rates(self) -> Mapping[str, float]:
        """Peak learning rates that differ from the setting, by prefix of the parameter's name."""
        return {}


class TokenTask(Task[Forest]):
    """A task whose objective reads log-probabilities of scored tokens."""

    def __init__(self, data: Data, model: LoadedModel) -> None:
        policy = Policy(model.net, check=model.read is None)
        super().__init__(data, device() if model.read else model.net.device, policy, model.read)

    def plant(self, examples: Sequence[Example]) -> Forest:
        return plant([example.group for example in examples])

    def forward(self, module: Any, inputs: Forest) -> Output:
        found = module(move(inputs, self.device))
        return Output(logp_N=found.logp_N, aux=found.aux)

    def batch(self, examples: Sequence[Example], inputs: Forest) -> Batch:
        return Batch(num_sequences=inputs.num_sequences, sequence_N=inputs.sequence_N.to(self.device))


def cut(task: Task[Any], examples: Sequence[Example], budget: int) -> list[list[Example]]:
    """Splits examples, in order, into parts of at most `budget` tokens. A longer example forms its own part."""
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
    """This rank's micro-batches of some examples. The split does not depend on the number of ranks."""
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
    """Tokens of a micro-batch. Examples with a common prefix may share its tokens."""
    return len(inputs.ids_T) if isinstance(inputs, Forest) else sum(task.size(example) for example in part)


# --- validation -------------------------------------------------------------------------------------------------------


class Validation(Generic[Inputs]):
    """A pass without gradients over the held-out examples, which gives their loss and metrics as of one batch."""

    def __init__(
        self, task: Task[Inputs], forward: Callable[[Inputs], Output], budget: int, ranks: Ranks = ALONE
    ) -> None:
        self.task = task
        self.forward = forward
        self.ranks = ranks
        self.budget = budget

    @torch.no_grad()
    def measure(self, step: int) -> dict[str, float]:
        """Metrics under validation/, after `step` finished steps; empty if no examples are held out."""
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
        """Built anew on each call, so that only one of them is in memory."""
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
    """Yields the model's outputs for examples by micro-batch, without gradients. Ranks share the work."""
    forward = _forward(task, task.readable(context.ranks), context)

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
    """A finished training: the step that the model's weights are from, and their validation metrics."""

    step: int
    validation: dict[str, float]


@dataclass(slots=True)
class _Progress:
    """What a checkpoint keeps besides weights: the state of source and task, and the best validation so far."""

    source: BatchSource
    task: Task[Any]
    validated: BestValidation

    def state(self) -> dict[str, Any]:
        return {"source": self.source.state(), "task": self.task.state(), "best": self.validated.best}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.source.restore(state["source"])
        self.task.restore(state["task"])
        self.validated.best = state["best"]


def fit(
    settings: Optimisation, context: Context, model: LoadedModel, task: Task[Any], *, everywhere: bool = False
) -> TrainingResult:
    """Trains `model` in place, and leaves it with the weights that `choose` selects. Several processes leave their
    shards of them, to be saved, or whole weights `everywhere`.

    Resumes from the newest checkpoint in the stage's folder, if there is one. Raises StageError if the loss is not
    finite or an example does not fit into memory, and Interrupted when asked to stop, after saving all finished work.
    """
    check_fits(context, task.longest(), "max_length")
    spread = task.spread(context.ranks) if task.module is not None else None
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
        tell_long_warmup(settings, context, source.total_steps)
        tell_lost_decay(settings, context, source.total_steps)
        for name, message in task.data.warnings:
            context.alarm(name, message)
    validated.resume(trainer)
    forward = _forward(task, module, context)
    last = _train(settings, trainer, task, forward, source, validated)
    best = validated.take(trainer)
    if spread is not None:
        trainer.forget()
        (spread.gather if everywhere else spread.give_back)()
    if best is not None:
        return TrainingResult(step=best["step"], validation=best["metrics"])
    return TrainingResult(step=trainer.total_steps, validation=last)


def tell_long_warmup(settings: Optimisation, context: Context, total: int) -> None:
    """Raises an alarm if the warm-up covers half of all steps or more."""
    if told := settings.long_warmup(total):
        context.alarm("long_warmup", f"training takes {told}", value=settings.warmup_steps, threshold=total / 2)


def tell_lost_decay(settings: Optimisation, context: Context, total: int) -> None:
    """Raises an alarm if warm-up and final steps leave no step for the decay of the learning rate."""
    if told := settings.lost_decay(total):
        left = total - settings.warmup_steps - settings.final_steps
        context.alarm("lost_decay", f"training takes {told}", value=max(left, 0), threshold=1)


def _prepared(settings: Optimisation, module: Any) -> Any:
    """Applies the settings of the training to a module, and returns it."""
    module.recompute = settings.activation_checkpointing
    if isinstance(module, Policy):
        module.weigh_router(router_weight(settings, module))
    return module


def _forward(task: Task[Inputs], module: Any, context: Context) -> Callable[[Inputs], Output]:
    """The task's forward pass through `module`, in the machine's compute type."""
    return in_machine_type(lambda inputs: task.forward(module, inputs), context)


def _train(
    settings: Optimisation,
    trainer: Trainer,
    task: Task[Any],
    forward: Callable[[Any], Output],
    source: BatchSource,
    validated: BestValidation,
) -> dict[str, float]:
    """Runs all remaining steps. Returns the metrics of the last validation."""
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
    """Yields the micro-batches of each step, built on demand."""
    for step in range(trainer.step, source.total_steps):
        taken, ranks = source.take(step), trainer.context.ranks
        yield [micro for _, micro in micro_batches(task, taken, settings.tokens_at_once, ranks)]


def router_weight(settings: Optimisation, policy: Policy) -> float:
    """The weight of the router loss: the setting, or else the model's own if the stage adds it by default."""
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
