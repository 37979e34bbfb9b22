"""Rollouts of `train.grpo`: selects the next prompts, samples the policy's answers to them, and grades these.

All randomness derives from (seed, batch, index in the batch, prompt id, sample index) and from the number of prompts
consumed so far, which a checkpoint keeps. Samples are stored before they are used, so a resumed stage trains on the
same samples, whatever the engine would answer now.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from togi.core.errors import InputError, StageError
from togi.core.protocols import Engine, Request
from togi.core.records import Completion, Prompt
from togi.core.seeds import derive
from togi.model.load import LoadedModel
from togi.objectives.advantages import compute_advantages
from togi.rewards.build import RewardResources, build_reward
from togi.rewards.calls import Calls
from togi.rewards.columns import Columns
from togi.rewards.combine import Graded, Reward
from togi.rewards.language import Detector
from togi.rewards.settings import JudgeTerm, LanguageGate
from togi.rewards.statistics import reward_statistics
from togi.rollout.engine import answer
from togi.rollout.local import Sampler
from togi.rollout.sampling_model import beside_training, context_limit
from togi.stages.arithmetic import arithmetic, device
from togi.stages.context import Context, hold_numerics
from togi.stages.endpoints import scorer
from togi.stages.judging_work import JudgeScorer
from togi.stages.refused import refused
from togi.stages.timing import timed
from togi.stages.training.epochs import Epochs
from togi.stages.training.grading_watch import GradingWatch
from togi.stages.training.grading_work import at_once, beside_sampling, graded_columns, is_elsewhere
from togi.stages.training.grpo import TrainGrpo, scorers_of
from togi.stages.training.grpo_samples_work import GradedGroup, StoredSamples
from togi.text.marks import Marks
from togi.text.render import render_prompt
from togi.text.turns import Unrendered
from togi.train import usage

TRIES = 3  # attempts at a unit if the engine loses its weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One sampled answer. `truncated`: its text lacks the terminator. `counts`: it is part of the loss, because it was
    graded and is not masked. `advantage` is None if it has no reward."""

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    completion: Completion
    graded: Graded
    truncated: bool
    counts: bool
    advantage: float | None = None


AnswerGroup = tuple[Answer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A batch of samples. `groups` are trained on; `sampled` are all groups, including those replaced in `rounds`.
    `consumed` is the number of prompts taken up to its end. `times` holds seconds by phase."""

    groups: list[AnswerGroup]
    sampled: list[AnswerGroup]
    rounds: int
    consumed: int = 0
    times: dict[str, float] = field(default_factory=dict)

    @property
    def answers(self) -> list[Answer]:
        """All sampled answers."""
        return [answer for group in self.sampled for answer in group]

    @property
    def refilled(self) -> int:
        """Groups that were replaced."""
        return len(self.sampled) - len(self.groups)


class Rollouts:
    """Samples with `engine` (None: the embedded one) and grades the answers.

    `held_out` prompts are for validation only. `consumed` counts the prompts taken from the shuffled epochs. Ranks
    share the sampling; only the first computes rewards. Raises InputError for a prompt that is too long.

    The caller publishes the policy's weights in `prepare`, which is called before the engine samples, but not for
    stored samples. Afterwards `confirm` returns whether all answers came from those weights; if not, the engine samples
    again.
    """

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
        self.model = model
        self.prompts = prompts
        self.held_out = held_out
        check_marks(context, model, (*prompts, *held_out))
        self.prompt_ids = {prompt.id: _ids(context, model, prompt) for prompt in (*prompts, *held_out)}
        context.ranks.on_first_rank(lambda: hold_numerics(context.folder, {"key_cache": settings.key_cache}))
        _check_lengths(self.prompt_ids, settings, context, context_limit(model.net))
        self.consumed = 0
        self.epochs = Epochs(prompts, context.seed)
        self.size = settings.minibatches * settings.prompts_per_step
        self.prepare: Callable[[], None] = lambda: None
        self.confirm: Callable[[], bool] = lambda: True
        self._begun: dict[str, Iterator[list[Completion]]] = {}
        self._ahead: dict[str, float] = {}  # times of the batch that was started with `begin`
        self.engine = engine or _embedded(settings, context, model)
        self.watch = GradingWatch(Calls(), context)
        with self.watch.watching():
            columns = graded_columns(settings, prompts, held_out)
            self.reward: Reward = _reward(settings, context, model, self.watch.calls, columns)
        self.beside = is_elsewhere(context, settings)
        self.stored = StoredSamples(context, self.engine.repeatable)

    def state(self) -> dict[str, Any]:
        return {"consumed": self.consumed}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.consumed = state["consumed"]

    # --- training -----------------------------------------------------------------------------------------------------

    def draw(self, number: int) -> Rollout:
        """Batch `number` (from 0). Groups without a learning signal are replaced by groups of the next prompts, for at
        most `refill_rounds` rounds; those that remain are kept, and count as they do without refilling."""
        times, self._ahead = self._ahead, {}
        groups = self._groups(number, 0, [], self.size, times)
        sampled = list(groups)
        rounds = 0
        while rounds < self.settings.refill_rounds:
            idle = [place for place, group in enumerate(groups) if not teaches(group)]
            if not idle:
                break
            rounds += 1
            for place, group in zip(idle, self._groups(number, rounds, sampled, len(idle), times), strict=True):
                groups[place] = group
                sampled.append(group)
        groups = self._with_advantages(groups)
        return Rollout(groups=groups, sampled=sampled, rounds=rounds, consumed=self.consumed, times=times)

    def begin(self, number: int) -> None:
        """Starts sampling batch `number`, the next to be drawn, on an engine that works in the background. Everything
        sampled for this batch comes from the current weights."""
        prompts = self.epochs.take(range(self.consumed, self.consumed + self.size))
        unit = _batch_unit(number, 0)
        stored = self.stored.holds(unit)
        if not stored or self.settings.refill_rounds:
            with timed(self._ahead, "publish"):
                self.prepare()
        if not stored:
            self._begun[unit] = self._sample(prompts, self._seeds(number, 0, prompts))

    def _seeds(self, number: int, first: int, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The seeds of a batch's groups, from index `first` on."""
        return [
            [derive(self.context.seed, number, first + place, prompt.id, i) for i in range(self.settings.group_size)]
            for place, prompt in enumerate(prompts)
        ]

    def _groups(
        self, number: int, rounds: int, before: Sequence[AnswerGroup], count: int, times: dict[str, float]
    ) -> list[AnswerGroup]:
        """The next `count` groups of a batch that already has the groups `before`."""
        prompts = self.next_prompts(count)
        seeds = self._seeds(number, len(before), prompts)
        earlier = [answer.graded for group in before for answer in group]
        found = self._graded(_batch_unit(number, rounds), prompts, seeds, times, earlier)
        return [
            tuple(self._answer(prompt, *pair) for pair in group) for prompt, group in zip(prompts, found, strict=True)
        ]

    def _graded(
        self,
        unit: str,
        prompts: Sequence[Prompt],
        seeds: Sequence[Sequence[int]],
        times: dict[str, float],
        earlier: Sequence[Graded] = (),
    ) -> list[GradedGroup]:
        """The graded answers to each prompt: stored ones, or else new ones, which are stored before they are used.

        One group is one batch for a grader. It is graded as soon as it and all earlier groups are sampled. If the
        reward's models are on servers or other devices, the engine continues meanwhile.

        Raises StageError, and stores nothing, if graders failed too often on these and the `earlier` answers of the
        batch, or if the engine keeps losing its weights.
        """
        stored = self.stored.replay(unit, prompts)
        if stored is not None:
            return stored
        with timed(times, "publish"):
            self.prepare()
        for _ in range(TRIES):
            found = self._asked(prompts, self._begun.pop(unit, None) or self._sample(prompts, seeds), times)
            if self.confirm():
                break
        else:
            raise StageError(
                f"stage {self.context.name}: the engine lost the policy's weights {TRIES} times in one batch of "
                "samples; find out why its server restarts, and run the same command again"
            )
        self.reward.check_failures([*earlier, *(graded for group in found for _, graded in group)])
        with timed(times, "store"):
            self.stored.keep(unit, prompts, found)
        return found

    def _asked(
        self, prompts: Sequence[Prompt], answers: Iterator[list[Completion]], times: dict[str, float]
    ) -> list[GradedGroup]:
        """Collects the engine's answers and grades them."""
        ranks, found = self.context.ranks, []
        grading = beside_sampling if self.beside and ranks.first else at_once
        with grading(self.reward) as grade, self.watch.watching():
            for prompt in prompts:
                usage.enter("sample", device())
                with timed(times, "sample"):
                    completions = next(answers)
                if not self.beside:
                    usage.enter("score", device())
                with timed(times, "reward"):
                    found.append((completions, grade(prompt, completions) if ranks.first else None))
            usage.enter("score", device())
            with timed(times, "reward"):
                groups = [_paired(*group) for group in found]
        return ranks.on_first_rank(lambda: groups)

    def _answer(self, prompt: Prompt, completion: Completion, graded: Graded) -> Answer:
        truncated = self.model.template.terminator not in completion.text
        masked = truncated and self.settings.mask_truncated
        return Answer(
            prompt=prompt,
            prompt_ids=self.prompt_ids[prompt.id],
            completion=completion,
            graded=graded,
            truncated=truncated,
            counts=graded.total is not None and not masked,
        )

    def _with_advantages(self, groups: Sequence[AnswerGroup]) -> list[AnswerGroup]:
        found = compute_advantages(_totals(groups), self.settings.scale_rewards)
        return [
            tuple(replace(answer, advantage=value) for answer, value in zip(group, values, strict=True))
            for group, values in zip(groups, found.values, strict=True)
        ]

    def next_prompts(self, count: int) -> list[Prompt]:
        """The next prompts of the shuffled epochs."""
        places = range(self.consumed, self.consumed + count)
        self.consumed += count
        return self.epochs.take(places)

    # --- validation ---------------------------------------------------------------------------------------------------

    def validate(self, step: int) -> dict[str, float]:
        """The policy's metrics on the held-out prompts after `step` steps, under validation/, with the same seeds each
        time. Empty if there are no such prompts; without a reward if graders failed on every answer."""
        prompts = self.held_out
        if not prompts:
            return {}
        size = self.settings.validation_samples
        seeds = [[derive(self.context.seed, "validation", prompt.id, i) for i in range(size)] for prompt in prompts]
        pairs = [pair for group in self._graded(f"validation-{step:08d}", prompts, seeds, {}) for pair in group]
        statistics = reward_statistics([graded for _, graded in pairs])
        total = statistics.components.get("total")
        return {
            **({} if total is None else {"validation/reward": total.mean}),
            "validation/gate_pass_rate": statistics.gate_pass_rate,
            "validation/length": sum(len(completion.token_ids) for completion, _ in pairs) / len(pairs),
        }

    def _sample(self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]]) -> Iterator[list[Completion]]:
        """Yields the answers to each prompt in order, one per seed. With several ranks, each samples every
        `ranks.size`-th prompt."""
        ranks, params = self.context.ranks, self.settings.sampling.params(n=len(seeds[0]))
        requests = [
            Request(prompt_ids=self.prompt_ids[prompt.id], params=params, seeds=tuple(own))
            for prompt, own in zip(prompts, seeds, strict=True)
        ]
        answers = answer(self.engine, requests[ranks.rank :: ranks.size])
        return self._shared(answers, len(prompts)) if ranks.several else answers

    def _shared(self, answers: Iterator[list[Completion]], count: int) -> Iterator[list[Completion]]:
        """Yields the answers of all ranks to `count` prompts, in the order of the prompts."""
        ranks = self.context.ranks
        every = ranks.gather(list(answers))
        yield from (every[at % ranks.size][at // ranks.size] for at in range(count))


def _batch_unit(number: int, rounds: int) -> str:
    return f"batch-{number:06d}-{rounds:03d}"


def _embedded(settings: TrainGrpo, context: Context, model: LoadedModel) -> Sampler:
    """The embedded engine. With one process and float32 it samples from the policy itself, otherwise from a copy in the
    machine's compute type; if the frozen weights already have that type, only the trained ones are copied."""
    dtype = arithmetic(context).dtype
    itself = dtype == torch.float32 and not context.ranks.several
    net = model.net if itself else beside_training(model.net, dtype)
    rows = max(settings.minibatches * settings.prompts_per_step * settings.group_size, settings.validation_samples)
    sampler = Sampler(net, model.tokenizer, model.template.terminator, batch_rows=rows)
    if settings.key_cache is not None:
        sampler.bound(settings.key_cache * 1e9)
    return sampler


def teaches(group: AnswerGroup) -> bool:
    """Whether a group has an answer in the loss with a nonzero advantage, whatever the scaling of advantages."""
    values = compute_advantages(_totals([group]), "none").values[0]
    return any(answer.counts and value for answer, value in zip(group, values, strict=True))


def _paired(completions: list[Completion], graded: Future[list[Graded]] | None) -> GradedGroup:
    """Answers with their grades; empty on all ranks except the first, which do not grade."""
    return [] if graded is None else list(zip(completions, graded.result(), strict=True))


def _totals(groups: Sequence[AnswerGroup]) -> list[list[float | None]]:
    return [[answer.graded.total for answer in group] for group in groups]


def check_marks(context: Context, model: LoadedModel, prompts: Sequence[Prompt]) -> None:
    """Raises InputError for a prompt whose text contains the template's own marks."""
    marks = Marks.of(model.template, model.tokenizer)
    for prompt in prompts:
        try:
            marks.check(prompt.messages)
        except Unrendered as error:
            raise refused(context.name, "prompt", prompt.id, model.name, error) from None


def _ids(context: Context, model: LoadedModel, prompt: Prompt) -> tuple[int, ...]:
    """The rendered prompt. Raises InputError, naming stage, prompt and model, for one that the template refuses."""
    try:
        return tuple(render_prompt(model.template, model.tokenizer, prompt.messages))
    except InputError as error:
        raise refused(context.name, "prompt", prompt.id, model.name, error) from None


def _check_lengths(
    prompt_ids: Mapping[str, Sequence[int]], settings: TrainGrpo, context: Context, limit: int | None
) -> None:
    """Raises InputError if any prompt, however late it would be used, leaves no room for an answer."""
    most = settings.sampling.max_tokens
    long = {name: len(ids) for name, ids in prompt_ids.items() if limit is not None and len(ids) + most > limit}
    if long:
        name, length = max(long.items(), key=lambda item: item[1])
        raise InputError(
            f"stage {context.name}: {len(long)} of {len(prompt_ids)} prompts are too long; the longest, {name}, has "
            f"{length} tokens, which with max_tokens {most} makes {length + most}, but the model's context is {limit}. "
            "Remove such prompts, or lower sampling.max_tokens"
        )


def _reward(
    settings: TrainGrpo, context: Context, model: LoadedModel, calls: Calls, columns: Sequence[Columns]
) -> Reward:
    around = RewardResources(
        terminator=model.template.terminator,
        turn_starts=model.template.turn_starts,
        scorers={str(ref): scorer(context, ref) for ref in scorers_of(settings)},
        judges={
            term.name: JudgeScorer(term, context, batch_rows=settings.group_size)
            for term in settings.reward.terms
            if isinstance(term, JudgeTerm)
        },
        detect=_detect() if any(isinstance(gate, LanguageGate) for gate in settings.reward.gates) else None,
        calls=calls,
        ends=context.leaving,
        columns=columns,
    )
    return build_reward(settings.reward, around)


def _detect() -> Detector:
    """The language detector, imported only when a gate needs it."""
    return importlib.import_module("togi.text.language").detect
