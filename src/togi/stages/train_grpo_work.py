"""The work of `train.grpo`: each step samples groups, grades them and makes one update.

Everything random in a step follows from (seed, step, prompt id, sample index), so a step can be done again after a kill
and gives the same bits. A checkpoint holds weights, optimiser, step and the length of every append-only file.
"""

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from togi.core.errors import StageError
from togi.core.files import append_line
from togi.core.records import Completion, Prompt, SamplingParams
from togi.core.seeds import derive
from togi.core.settings import ScorerRef, references
from togi.evaluate.diversity import distinct
from togi.model import forest as forests
from togi.model.forest import move
from togi.model.load import LoadedModel, save_model
from togi.model.logprobs import Policy
from togi.model.lora import LoraSettings, add_lora
from togi.objectives.advantages import Advantages, compute_advantages
from togi.objectives.base import Batch, Output
from togi.objectives.grpo import GRPO
from togi.rewards.build import Surroundings, build_reward, build_watch
from togi.rewards.combine import Graded, Reward
from togi.rewards.guards import Watch, stop_on
from togi.rewards.statistics import reward_statistics
from togi.rollout.local import Sampler
from togi.stages.arithmetic import arithmetic, in_machine_type
from togi.stages.base import MODEL_FOLDER, Context, timed
from togi.stages.models import load_scorer, load_trainable
from togi.stages.train_grpo import Lora, TrainGrpo
from togi.stages.training import Trainer
from togi.text.language import detect
from togi.text.render import render_prompt
from togi.train.loop import MicroBatch
from togi.train.optimizer import AdamWSettings, Schedule, Update, build_adamw, trained


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled answer with what it is worth and where its group's mean lies."""

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    completion: Completion
    graded: Graded
    advantage: float | None


@dataclass(slots=True)
class Step:
    """What one step sampled, and what is logged of it besides the loss."""

    answers: list[Answer]
    micro_batches: list[MicroBatch[forests.Forest]]
    metrics: dict[str, float]
    guarded: dict[str, float] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)


def run(settings: TrainGrpo, context: Context) -> None:
    prompts: list[Prompt] = context.records(settings.prompts)
    model = load_trainable(context, settings.init)
    if settings.lora is not None:
        model = replace(model, net=add_lora(model.net, _lora(settings.lora), seed=derive(context.seed, "lora")))
    source = Rollouts(settings, context, model, prompts)
    params = trained(model.net.named_parameters())
    trainer = Trainer(
        context=context,
        params=params,
        update=Update(
            optimizer=build_adamw(
                params,
                AdamWSettings(
                    learning_rate=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
                ),
            ),
            schedule=Schedule(kind=settings.schedule, total_steps=settings.steps, warmup_steps=settings.warmup_steps),
            max_grad_norm=settings.max_grad_norm,
        ),
        total_steps=settings.steps,
        save_every=settings.save_every,
        keep=settings.keep,
        progress=source,
    )
    trainer.resume()
    if trainer.step == 0:
        _warn_biased_sampling(settings, context)
    forward = in_machine_type(source.forward, context)
    for info in trainer.run(forward, source.objective(), source.steps(trainer.step)):
        step = source.made
        trainer.log(info, step.metrics, step.times, _note(step.metrics))
        _keep_samples(context, trainer.step, step.answers)
        kl = {"kl": info.metrics["kl"]} if "kl" in info.metrics else {}
        source.guard(trainer.step, {**step.guarded, **kl})
    context.summary["steps"] = settings.steps
    save_model(model, context.folder / MODEL_FOLDER)


class Rollouts:
    """The batch source of on-policy training: an iterator of batches that looks at the policy."""

    def __init__(self, settings: TrainGrpo, context: Context, model: LoadedModel, prompts: list[Prompt]) -> None:
        self.settings = settings
        self.context = context
        self.model = model
        self.prompts = prompts
        self.policy = Policy(model.net)
        self.reference = _reference(settings, model)
        self.device = model.net.device
        dtype = arithmetic(context).dtype
        self.sampled_net = model.net if dtype == torch.float32 else copy.deepcopy(model.net).to(dtype)
        self.sampler = Sampler(
            self.sampled_net,
            model.tokenizer,
            model.template.terminator,
            batch_rows=settings.prompts_per_step * settings.group_size,
        )
        self.reward = _reward(settings, context, model)
        self.watch: Watch = build_watch(settings.guards)
        self.prompt_ids = {p.id: tuple(render_prompt(model.template, model.tokenizer, p.messages)) for p in prompts}
        self.made = Step([], [], {})
        self.dead = 0
        self.first_variety = 0.0

    # --- state that a checkpoint keeps ------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {"dead": self.dead, "crossed": list(self.watch.crossed), "first_variety": self.first_variety}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.dead, self.watch.crossed = state["dead"], list(state["crossed"])
        self.first_variety = state["first_variety"]

    # --- the model's side -------------------------------------------------------------------------------------

    def objective(self) -> GRPO:
        loss = self.settings.loss
        return GRPO(
            loss_type=loss.type,
            level=loss.level,
            eps=loss.eps,
            eps_high=loss.eps_high,
            delta=loss.delta,
            max_weight=loss.max_weight,
            beta=loss.beta,
            max_tokens=self.settings.sampling.max_tokens if loss.type == "dr_grpo" else None,
        )

    def forward(self, forest: forests.Forest) -> Output:
        temperature = self.settings.sampling.temperature
        found = self.policy(move(forest, self.device), temperature=temperature, entropy=True)
        return Output(logp_N=found.logp_N, entropy_N=found.entropy_N)

    @torch.no_grad()
    def _publish(self) -> None:
        """Gives the sampler the weights of this step; in float32 it reads the trained ones where they are."""
        if self.sampled_net is not self.model.net:
            for sampled, trained_one in zip(self.sampled_net.parameters(), self.model.net.parameters(), strict=True):
                sampled.copy_(trained_one)

    # --- a step -----------------------------------------------------------------------------------------------

    def steps(self, first: int) -> Iterator[list[MicroBatch[forests.Forest]]]:
        """The micro-batches of each step from `first` on, made when they are asked for."""
        for number in range(first, self.settings.steps):
            self.made = self._step(number)
            yield self.made.micro_batches

    def _step(self, number: int) -> Step:
        times: dict[str, float] = {}
        chosen = self._choose(number)
        with timed(times, "sample"):
            self._publish()
            completions = self._sample(number, chosen)
        with timed(times, "reward"):
            graded = self.reward.grade_groups(list(zip(chosen, completions, strict=True)))
        found = compute_advantages([[g.total for g in group] for group in graded], self.settings.scale_rewards)
        answers = [
            Answer(prompt, self.prompt_ids[prompt.id], completion, grade, value)
            for prompt, group, grades, values in zip(chosen, completions, graded, found.values, strict=True)
            for completion, grade, value in zip(group, grades, values, strict=True)
        ]
        with timed(times, "prepare"):
            micro_batches = self._micro_batches(answers)
        metrics, guarded = self._metrics(answers, found)
        return Step(answers, micro_batches, metrics, guarded, times)

    def _metrics(self, answers: Sequence[Answer], found: Advantages) -> tuple[dict[str, float], dict[str, float]]:
        """What is logged of a step's answers, and what guards watch, under their names."""
        statistics = reward_statistics([answer.graded for answer in answers])
        lengths = [len(answer.completion.token_ids) for answer in answers]
        texts = [answer.completion.text for answer in answers]
        variety = distinct(texts, 2, "characters" if self.settings.by_characters else "words").value
        self.first_variety = self.first_variety or variety
        guarded = {
            "gate_pass_rate": statistics.gate_pass_rate,
            "no_spread_share": found.idle_share,
            "length": sum(lengths) / len(lengths),
            "failed_share": statistics.failed_share,
            "below_fail_share": statistics.below_fail_share,
            "diversity": variety / self.first_variety if self.first_variety else 0.0,
        }
        metrics = statistics.metrics([gate.name for gate in self.reward.gates])
        shown = {name: guarded[name] for name in ("failed_share", "below_fail_share", "length")}
        rest = {"groups/no_spread": found.idle_share, "distinct-2": variety}
        return {**metrics, **shown, **rest, "num_tokens": float(sum(lengths))}, guarded

    def _choose(self, number: int) -> list[Prompt]:
        """The prompts of a step: the shuffled epochs laid end to end, cut into steps."""
        size, count = self.settings.prompts_per_step, len(self.prompts)
        return [self._epoch(place // count)[place % count] for place in range(number * size, (number + 1) * size)]

    def _epoch(self, epoch: int) -> list[Prompt]:
        order = list(self.prompts)
        random.Random(derive(self.context.seed, "epoch", epoch)).shuffle(order)
        return order

    def _sample(self, number: int, prompts: Sequence[Prompt]) -> list[list[Completion]]:
        sampling, size = self.settings.sampling, self.settings.group_size
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=sampling.max_tokens,
            n=size,
        )
        seeds = [
            [derive(self.context.seed, number, place, p.id, i) for i in range(size)] for place, p in enumerate(prompts)
        ]
        return self.sampler.generate([self.prompt_ids[p.id] for p in prompts], params, seeds)

    def _micro_batches(self, answers: Sequence[Answer]) -> list[MicroBatch[forests.Forest]]:
        groups: list[list[forests.Sequence]] = []
        kept: list[Answer] = []
        previous: Prompt | None = None
        counted = [answer for answer in answers if self._counts(answer)]
        learning = [answer for answer in counted if self._learns(answer)]
        # Where nothing is to be learnt, one answer of advantage 0 stands in, so that the step changes nothing.
        for answer in learning or [replace(answers[0], advantage=0.0)]:
            if answer.prompt is not previous:
                groups.append([])
                previous = answer.prompt
            groups[-1].append(_sequence(answer))
            kept.append(answer)
        cuts = forests.split_by_tokens(groups, self.settings.micro_batch_tokens)
        made = [self._batch(cut, [kept[i] for i in cut.index_S]) for cut in cuts]
        return _with_idle(made, counted, kept)

    def _counts(self, answer: Answer) -> bool:
        """Whether an answer belongs to the loss: it was graded, and is not masked for being cut off."""
        cut_off = self.settings.mask_truncated and answer.completion.stop == "length"
        return answer.advantage is not None and not cut_off

    def _learns(self, answer: Answer) -> bool:
        """Whether an answer has a gradient. One of a group without spread has none and is not computed, but counts."""
        return answer.advantage != 0 or self.settings.loss.beta > 0

    def _batch(self, cut: forests.MicroBatch, answers: Sequence[Answer]) -> MicroBatch[forests.Forest]:
        forest = forests.plant(cut.groups)
        reference_N: Tensor | None = None
        if self.reference is not None:
            with torch.no_grad():
                reference_N = self.reference(
                    move(forest, self.device), temperature=self.settings.sampling.temperature
                ).logp_N
        advantages = [answer.advantage for answer in answers]
        sampler = [value for answer in answers for value in answer.completion.logprobs]
        batch = Batch(
            num_sequences=forest.num_sequences,
            sequence_N=forest.sequence_N.to(self.device),
            advantage_S=torch.tensor(advantages, dtype=torch.float32, device=self.device),
            sampler_logp_N=torch.tensor(sampler, dtype=torch.float32, device=self.device),
            ref_logp_N=reference_N,
        )
        rows = tuple(answer.prompt.id for answer in answers)
        return MicroBatch(inputs=forest, batch=batch, rows=rows, num_tokens=len(forest.ids_T))

    # --- guards -----------------------------------------------------------------------------------------------

    def guard(self, step: int, metrics: dict[str, float]) -> None:
        """Alarms where a guard's threshold is crossed. Raises StageError where the recipe wants that to end the run,
        and where nothing passed a gate for as many steps as it allows."""
        alarms = self.watch.observe(step, metrics)
        for alarm in alarms:
            self.context.alarm(alarm.name, alarm.message, step=step, value=alarm.value, threshold=alarm.threshold)
        stop_on(alarms)
        limit = self.settings.dead_steps
        if metrics["gate_pass_rate"] == 0 and self.dead == step - 1:
            self.dead = step
        if limit and self.dead == step == limit:
            raise StageError(
                f"stage {self.context.name}: in its first {limit} steps not one of "
                f"{limit * self.settings.prompts_per_step * self.settings.group_size} answers passed the gates, so "
                "there is nothing to learn from. Show the terminator in the prompt (a template whose turns end with "
                "it), raise sampling.max_tokens, lower the temperature, or loosen the gate"
            )


def _lora(settings: Lora) -> LoraSettings:
    return LoraSettings(
        rank=settings.rank, alpha=settings.alpha, targets=settings.targets, rslora=settings.rank_stabilised
    )


def _reference(settings: TrainGrpo, model: LoadedModel) -> Policy | None:
    """A frozen copy of the initial model, only if the recipe asks for KL."""
    if settings.loss.beta == 0:
        return None
    net = copy.deepcopy(model.net).requires_grad_(False)
    return Policy(net, check=False)


def _reward(settings: TrainGrpo, context: Context, model: LoadedModel) -> Reward:
    refs = [ref for _, ref in references(settings.reward) if isinstance(ref, ScorerRef)]
    scorers = {str(ref): load_scorer(context, ref) for ref in refs}
    around = Surroundings(
        terminator=model.template.terminator,
        turn_starts=model.template.turn_starts,
        scorers=scorers,
        detect=detect,
    )
    return build_reward(settings.reward, around)


def _with_idle(
    made: list[MicroBatch[forests.Forest]], counted: Sequence[Answer], computed: Sequence[Answer]
) -> list[MicroBatch[forests.Forest]]:
    """The micro-batches, the first of which also counts the answers that are not computed."""
    sequences = len(counted) - len(computed)
    tokens = sum(len(a.completion.token_ids) for a in counted) - sum(len(a.completion.token_ids) for a in computed)
    if sequences <= 0:
        return made
    first = replace(made[0], batch=replace(made[0].batch, idle_sequences=sequences, idle_tokens=tokens))
    return [first, *made[1:]]


def _sequence(answer: Answer) -> forests.Sequence:
    """A prompt with one answer: every sampled token is scored."""
    prompt, ids = answer.prompt_ids, answer.completion.token_ids
    return forests.Sequence(prompt + ids, (False,) * len(prompt) + (True,) * len(ids))


def _note(metrics: Mapping[str, float]) -> str:
    return f"gates passed {metrics['gate/all']:.0%}, reward {metrics['reward/total/mean']:.2f}"


def _keep_samples(context: Context, step: int, answers: Sequence[Answer]) -> None:
    """The best and the worst answer of each step, for the report."""
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


def _warn_biased_sampling(settings: TrainGrpo, context: Context) -> None:
    sampling = settings.sampling
    used = [
        n
        for n, on in (("top_p", sampling.top_p < 1), ("top_k", sampling.top_k > 0), ("min_p", sampling.min_p > 0))
        if on
    ]
    if used:
        context.alarm(
            "biased_sampling",
            f"{', '.join(used)} cuts the sampled distribution, which the trainer's log-probabilities do not know of: "
            "the policy gradient is biased; sample with temperature alone",
        )
