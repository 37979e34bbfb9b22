"""The work of `train.grpo`: samples and grades a batch, trains on it for one or more optimiser steps, and repeats.

Checkpoints are written between batches of samples. They hold weights, optimiser state, step, the number of consumed
prompts, and the length of every append-only file.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from togi.core.errors import StageError
from togi.core.files import append_line
from togi.core.protocols import Engine
from togi.core.records import Prompt
from togi.core.seeds import derive
from togi.core.settings import PromptsRef
from togi.evaluate.distinct import distinct
from togi.model.load import LoadedModel
from togi.objectives.advantages import compute_advantages
from togi.rewards.build import build_watch
from togi.rewards.guards import GuardState, stop_on
from togi.rewards.statistics import reward_statistics
from togi.stages.arithmetic import device, in_machine_type
from togi.stages.base import MODEL_FOLDER
from togi.stages.context import Context
from togi.stages.models import free_for_saving, keep_model, load_trainable
from togi.stages.rehearsal_work import Rehearsed, asked, prompt_rows, weightless
from togi.stages.seen_prompts import keep_learnt
from togi.stages.spoken import Spoken, common_system
from togi.stages.system_turns import tell_replaced
from togi.stages.timing import timed
from togi.stages.training.examples_work import Example, check_fits, split
from togi.stages.training.fit_work import adamw_update, tell_long_warmup, tell_lost_decay
from togi.stages.training.grpo import TrainGrpo
from togi.stages.training.grpo_doubts import doubts
from togi.stages.training.grpo_rollouts_work import Answer, Rollout, Rollouts, check_marks, teaches
from togi.stages.training.grpo_updates_work import Micro, Updates
from togi.stages.training.trainer_work import BestValidation, Trainer
from togi.train import usage
from togi.train.loop import StepInfo
from togi.train.optimizer import trained
from togi.train.sharding import ShardedModel

FLAT_BATCHES = 4
"""Batches of samples in a row without anything to learn from, before an alarm; in a shorter stage, all of them."""


def run(settings: TrainGrpo, context: Context, engine: Engine | None = None) -> None:
    """Trains the policy on samples from `engine`, or from the embedded engine if None."""
    training, held_out = _prompts(settings, context)
    keep_learnt(context, settings.init, (prompt.messages for prompt in training))
    model = load_trainable(context, settings.init, settings)
    remote = _train(settings, context, model, (training, held_out), engine)
    free_for_saving(model.net)
    usage.enter("save", device())
    sampled = settings.sampling.model_dump(exclude={"stop", "seed"})
    spoken = Spoken(common_system(prompt.messages for prompt in training), sampled)
    keep_model(context, model, context.folder / MODEL_FOLDER, settings, spoken)
    if remote is not None:
        remote.leave()


def _train(
    settings: TrainGrpo,
    context: Context,
    model: LoadedModel,
    prompts: tuple[list[Prompt], list[Prompt]],
    engine: Engine | None,
) -> Any:
    """Runs all steps. On return, sampler, reward models and optimiser are freed, and `model` has the trained weights.
    Returns the policy on a server, if there is one."""
    training, held_out = prompts
    source = GrpoBatches(settings, context, model, training, held_out, engine)
    longest = max(len(source.rollouts.prompt_ids[prompt.id]) for prompt in training) + settings.sampling.max_tokens
    check_fits(context, longest, "sampling.max_tokens")
    params = trained(source.updates.policy.net.named_parameters())
    trainer = Trainer(
        context=context,
        params=params,
        update=adamw_update(settings, params, {}, settings.steps),
        total_steps=settings.steps,
        save_every=settings.save_every,
        keep=settings.keep,
        progress=source,
        together=settings.updates,
    )
    trainer.resume()
    if trainer.step == 0:
        tell_long_warmup(settings, context, settings.steps)
        tell_lost_decay(settings, context, settings.steps)
        _tell_doubts(settings, context, model, [*training, *held_out])
        _warn_overlap(context, training, held_out)
    source.validated.resume(trainer)
    forward = in_machine_type(source.forward, context)
    for info in trainer.run(forward, source.updates.objective(), source.steps(trainer.step)):
        source.finish(trainer, info)
    source.validated.take(trainer)
    trainer.forget()
    source.spread.give_back()
    source.rollouts.stored.publish()
    context.summary["steps"] = settings.steps
    context.summary["prompts_used"] = source.rollouts.consumed
    if (best := source.validated.best) is not None:
        context.summary["best_validation"] = {"step": best["step"], "reward": best["value"]}
    if source.remote is not None:
        source.remote.free()
        return source.remote
    source.rollouts.engine.close()
    return None


def rehearse(settings: TrainGrpo, context: Context) -> Iterator[Rehearsed]:
    training, held_out = _prompts(settings, context)
    model = weightless(context, settings.init)
    check_marks(context, model, [*training, *held_out])
    _tell_doubts(settings, context, model, [*training, *held_out])
    return prompt_rows(context, model, asked([*training, *held_out]), settings.sampling.max_tokens)


class GrpoBatches:
    """The batch source of on-policy training, which samples batches from the policy. `made` is the current batch of
    samples, `ahead` the next one if it is drawn before the current one is trained on."""

    def __init__(
        self,
        settings: TrainGrpo,
        context: Context,
        model: LoadedModel,
        prompts: Sequence[Prompt],
        held_out: Sequence[Prompt] = (),
        engine: Engine | None = None,
    ) -> None:
        self.settings = settings
        self.context = context
        self.updates = Updates(settings, context, model)
        self.forward = self.updates.forward
        self.remote = None if settings.engine is None or engine is not None else _remote(settings, context, model)
        self.served = engine if self.remote is None else self.remote.engine
        self.rollouts = Rollouts(settings, context, model, prompts, held_out, self.served)
        self.rollouts.prepare = self._publish
        if self.remote is not None:
            self.remote.probe = self.rollouts.prompt_ids[prompts[0].id][: self.remote.longest]
            self.rollouts.confirm = self.remote.confirm
        self.spread = ShardedModel(self.updates.policy, context.ranks)  # last: it empties the weights
        self.updates.policy = self.spread.module
        self.watch: GuardState = build_watch(settings.guards)
        self.made = Rollout(groups=[], sampled=[], rounds=0)
        self.ahead: Rollout | None = None
        self.step = 0  # optimiser steps in the policy's weights the next time the engine samples
        self.published: int | None = None  # optimiser steps in the engine's weights
        self.dead = 0  # of the first batches of samples, those without a passed gate
        self.flat = 0  # of the last batches of samples, those without a group to learn from
        self.told_below = False  # whether the alarm of `_tell_below_fail` was raised
        self.first_variety = 0.0
        self.validated = BestValidation(settings.choose_by, settings.choose == "best")

    # --- state that a checkpoint keeps --------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {
            **self.rollouts.state(),
            "consumed": self.made.consumed or self.rollouts.consumed,
            "dead": self.dead,
            "flat": self.flat,
            "told_below": self.told_below,
            "crossed": list(self.watch.crossed),
            "first_variety": self.first_variety,
            "best": self.validated.best,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.rollouts.restore(state)
        self.dead, self.flat, self.watch.crossed = state["dead"], state.get("flat", 0), list(state["crossed"])
        self.told_below = state.get("told_below", False)
        self.first_variety, self.validated.best = state["first_variety"], state["best"]

    # --- steps --------------------------------------------------------------------------------------------------------

    def steps(self, first: int) -> Iterator[list[Micro]]:
        """Yields the micro-batches of each optimiser step from `first` on, which starts a batch of samples."""
        updates, count = self.settings.updates, self.settings.steps // self.settings.updates
        for number in range(first // updates, count):
            self.step = number * updates
            self.made, self.ahead = self.ahead or self.rollouts.draw(number), None
            if self.settings.staleness and number + 1 < count:
                self._go_ahead(number + 1)
            if self.remote is not None:
                self.remote.rest()
            usage.enter("update", device())
            yield from self.updates.steps(self.made)

    def _go_ahead(self, number: int) -> None:
        """Starts sampling the next batch before the current one changes the policy. A separate engine samples during
        training; the embedded one shares the trained weights, so it finishes before."""
        if self.served is None:
            self.ahead = self.rollouts.draw(number)
        else:
            self.rollouts.begin(number)

    def _publish(self) -> None:
        """Gives the engine the current weights, unless it has them."""
        if self.published == self.step:
            return
        self.rollouts.engine.publish(self.spread.weights())
        if self.remote is not None:
            self.remote.check(self.updates.logprobs)
        self.published = self.step

    def finish(self, trainer: Trainer, info: StepInfo) -> None:
        """Logs a finished step and its samples, validates when due, and checks the guards. Raises StageError if a guard
        stops the run."""
        number, update = divmod(info.step, self.settings.updates)
        times: dict[str, float] = {}
        metrics, guarded = self._metrics() if update == 0 else ({}, {})
        if self.settings.staleness and trainer.step % self.settings.updates == 0:
            self._finish_ahead(number + 1)
        found: dict[str, float] = {}
        if self._validates(trainer.step):
            with timed(times, "validation"):
                self.step = trainer.step
                found = self.rollouts.validate(trainer.step)
            usage.enter("update", device())
        note = _note(metrics) if metrics else f"update {update + 1} of {self.settings.updates}"
        sampled = self.made.times if update == 0 else {}
        trainer.log(info, {**metrics, **found}, {**sampled, **times}, note)
        if update == 0:
            if self.context.ranks.first:
                _keep_samples(self.context, trainer.step, self.made.answers)
            kl = {"kl": info.metrics["kl"]} if "kl" in info.metrics else {}
            self._guard(number, trainer.step, {**guarded, **kl})
        self.validated.observe(trainer, found)

    def _finish_ahead(self, number: int) -> None:
        """Waits for the batch that is sampled ahead, and grades and stores it. A checkpoint after this step needs it,
        because the weights that it was sampled from are gone by then."""
        if self.ahead is None and number < self.settings.steps // self.settings.updates:
            self.ahead = self.rollouts.draw(number)

    def _metrics(self) -> tuple[dict[str, float], dict[str, float]]:
        """The logged metrics of the batch of samples, and the metrics of the guards, over all samples."""
        rollouts, made = self.rollouts, self.made
        answers = made.answers
        statistics = reward_statistics([answer.graded for answer in answers])
        idle = compute_advantages([[answer.graded.total for answer in group] for group in made.sampled]).idle_share
        lengths = [len(answer.completion.token_ids) for answer in answers]
        texts = [answer.completion.text for answer in answers]
        variety = distinct(texts, 2, "characters" if self.settings.by_characters else "words").value
        self.first_variety = self.first_variety or variety
        guarded = {
            "gate_pass_rate": statistics.gate_pass_rate,
            "no_spread_share": idle,
            "length": sum(lengths) / len(lengths),
            "failed_share": statistics.failed_share,
            "below_fail_share": statistics.below_fail_share,
            "diversity": variety / self.first_variety if self.first_variety else 0.0,
        }
        shown = {name: guarded[name] for name in ("failed_share", "below_fail_share", "length")}
        shown["ungraded_share"] = statistics.ungraded_share
        groups = {
            "groups/no_spread": idle,
            "groups/refilled": float(made.refilled),
            "groups/refill_rounds": float(made.rounds),
            "groups/teaching": sum(map(teaches, made.groups)) / len(made.groups),
        }
        metrics = {
            **statistics.metrics([gate.name for gate in rollouts.reward.gates]),
            **shown,
            **groups,
            "distinct-2": variety,
            "truncated": sum(answer.truncated for answer in answers) / len(answers),
            "epoch": made.consumed / len(rollouts.prompts),
            "num_tokens": float(sum(lengths)),
        }
        if self.remote is not None and self.remote.off is not None:
            metrics["engine/probe"] = self.remote.off
        return metrics, guarded

    # --- validation ---------------------------------------------------------------------------------------------------

    def _validates(self, step: int) -> bool:
        """Whether a validation is due after `step` steps: between batches of samples, and at the end."""
        every, together = self.settings.evaluate_every, self.settings.updates
        due = every is not None and step % every < together
        return step % together == 0 and (due or step == self.settings.steps)

    # --- guards -------------------------------------------------------------------------------------------------------

    def _guard(self, number: int, step: int, metrics: Mapping[str, float]) -> None:
        """Raises alarms for crossed guards. Raises StageError if such a guard stops the run, and if no answer passed
        the gates in the first `dead_steps` batches of samples."""
        alarms = self.watch.observe(step, metrics)
        for alarm in alarms:
            self.context.alarm(alarm.name, alarm.message, step=step, value=alarm.value, threshold=alarm.threshold)
        stop_on(alarms)
        self._tell_flat(step)
        self._tell_below_fail(step, metrics["below_fail_share"])
        if metrics["gate_pass_rate"] == 0 and self.dead == number:
            self.dead = number + 1
        if self.settings.dead_steps and self.dead == number + 1 == self.settings.dead_steps:
            raise StageError(
                f"stage {self.context.name}: in its first {self.dead} batches of samples no answer passed the gates: "
                "there is nothing to learn from. Show the terminator in the prompt (with a template whose turns end "
                "with it), raise sampling.max_tokens, lower the temperature, or loosen the gates"
            )

    def _tell_flat(self, step: int) -> None:
        """Raises an alarm, once, if no group of the last batches of samples had an answer to learn from."""
        patience = min(FLAT_BATCHES, self.settings.steps // self.settings.updates)
        if self.flat >= patience:
            return
        self.flat = 0 if any(map(teaches, self.made.groups)) else self.flat + 1
        if self.flat == patience:
            self.context.alarm(
                "nothing_to_learn",
                f"batches of samples in a row without a group to learn from: {self.flat}. The rewards of each group "
                "are equal, or its answers are masked or not graded; read some answers in the report, and change the "
                "prompts, the reward or sampling.max_tokens",
                step=step,
                value=self.flat,
                threshold=patience,
            )

    def _tell_below_fail(self, step: int, share: float) -> None:
        """Raises an alarm, once, if an answer that passed the gates got less than one that fails can get, unless
        `floor` lifts it or a guard watches the share."""
        watched = any(guard.metric == "below_fail_share" for guard in self.settings.guards)
        if self.told_below or watched or self.settings.reward.floor or share == 0:
            return
        self.told_below = True
        self.context.alarm(
            "below_fail_share",
            f"{share:.0%} of the answers at step {step} passed every gate, but their terms put them below the best "
            "failing answer. So the policy learns to fail a gate: set reward.floor: true, raise the bonus of the last "
            "gate, or limit negative scores with negative_scale. A guard on below_fail_share sets the allowed share",
            step=step,
            value=share,
            threshold=0.0,
        )


def _remote(settings: TrainGrpo, context: Context, model: LoadedModel) -> Any:
    """The policy on a server. Code for servers is imported only when one is used."""
    return importlib.import_module("togi.stages.training.grpo_engine_work").RemotePolicy(settings, context, model)


def _prompts(settings: TrainGrpo, context: Context) -> tuple[list[Prompt], list[Prompt]]:
    """The training prompts and the validation prompts."""
    prompts: list[Prompt] = context.records(settings.prompts)
    context.count_in(len(prompts))
    validation = settings.validation
    if validation is None:
        return prompts, []
    if isinstance(validation, PromptsRef):
        held_out: list[Prompt] = context.records(validation)
        context.count_in(len(held_out))
        return prompts, held_out
    examples = [Example(id=str(i), prompt=prompt.messages, group=()) for i, prompt in enumerate(prompts)]
    sides = split(examples, validation, derive(context.seed, "held_out"), context.name)
    training, held = ([prompts[int(example.id)] for example in side] for side in sides)
    return training, held


def _warn_overlap(context: Context, training: Sequence[Prompt], held_out: Sequence[Prompt]) -> None:
    known = dict.fromkeys(prompt.messages for prompt in training)
    shared = sum(prompt.messages in known for prompt in held_out)
    if shared:
        context.alarm("validation_overlap", f"{shared} of {len(held_out)} validation prompts are also trained on")


def _tell_doubts(settings: TrainGrpo, context: Context, model: LoadedModel, prompts: Sequence[Prompt]) -> None:
    for name, message in doubts(settings):
        context.alarm(name, message)
    conversations = (prompt.messages for prompt in prompts)
    tell_replaced(context, model.template, conversations, "the policy does not see it; to show it")


def _note(metrics: Mapping[str, float]) -> str:
    reward = metrics.get("reward/total/mean")
    shown = "no answer graded" if reward is None else f"reward {reward:.2f}"
    return f"gates passed {metrics['gate/all']:.0%}, {shown}"


def _keep_samples(context: Context, step: int, answers: Sequence[Answer]) -> None:
    """Stores the best and the worst answer of a batch of samples, for the report."""
    graded = [answer for answer in answers if answer.graded.total is not None]
    if not graded:
        return
    best = max(graded, key=lambda a: a.graded.total or 0.0)
    worst = min(graded, key=lambda a: a.graded.total or 0.0)
    for kind, answer in (("best", best), ("worst", worst)):
        row = {
            "step": step,
            "kind": kind,
            "question": answer.prompt.text,
            "answer": answer.completion.text,
            "reward": answer.graded.total,
        }
        append_line(context.folder / "samples.jsonl", row)
