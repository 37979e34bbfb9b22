"""Rollouts of `train.grpo`: which prompts come next, the policy's answers to them, and what those are worth.

Everything random follows from (seed, batch, place in the batch, prompt id, sample index) and from how many prompts were
consumed before, which a checkpoint keeps. So a batch can be sampled again after a kill and gives the same bits.
"""

import copy
import importlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from togi.core.errors import InputError
from togi.core.records import Completion, Prompt, SamplingParams
from togi.core.seeds import derive
from togi.model.load import LoadedModel
from togi.objectives.advantages import compute_advantages
from togi.rewards.build import RewardResources, build_reward
from togi.rewards.combine import Graded, Reward
from togi.rewards.language import Detector
from togi.rewards.settings import LanguageGate
from togi.rewards.statistics import reward_statistics
from togi.rollout.local import Sampler
from togi.rollout.sampling_model import context_limit
from togi.stages.arithmetic import arithmetic
from togi.stages.context import Context, timed
from togi.stages.models import load_scorer
from togi.stages.training.grpo import TrainGrpo, scorers_of
from togi.text.render import render_prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One sampled answer. `truncated`: its text does not hold the terminator. `counts`: it belongs to the loss, because
    it was graded and is not masked. `advantage` is None where a grader failed."""

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
    """A batch of samples. `groups` are learnt from; `sampled` are all, those that were replaced in `rounds` included.
    `times` are seconds by phase."""

    groups: list[AnswerGroup]
    sampled: list[AnswerGroup]
    rounds: int
    times: dict[str, float] = field(default_factory=dict)

    @property
    def answers(self) -> list[Answer]:
        """All answers that were sampled."""
        return [answer for group in self.sampled for answer in group]

    @property
    def refilled(self) -> int:
        """Groups that were replaced."""
        return len(self.sampled) - len(self.groups)


class Rollouts:
    """Samples from `net` and grades; `held_out` prompts are for validation alone. `consumed` counts the prompts that
    were taken from the shuffled epochs. Ranks share the sampling; the rewards are asked for once. Raises InputError for
    a prompt that is too long.

    `net` is the policy itself where that can be sampled from: on one process in float32. Elsewhere it is a copy, which
    whoever trains must keep as the policy is.
    """

    def __init__(
        self,
        settings: TrainGrpo,
        context: Context,
        model: LoadedModel,
        prompts: Sequence[Prompt],
        held_out: Sequence[Prompt] = (),
    ) -> None:
        self.settings = settings
        self.context = context
        self.model = model
        self.prompts = prompts
        self.held_out = held_out
        self.prompt_ids = {
            prompt.id: tuple(render_prompt(model.template, model.tokenizer, prompt.messages))
            for prompt in (*prompts, *held_out)
        }
        _check_lengths(self.prompt_ids, settings, context, context_limit(model.net))
        self.consumed = 0
        self.size = settings.minibatches * settings.prompts_per_step
        dtype = arithmetic(context).dtype
        itself = dtype == torch.float32 and not context.ranks.several
        self.net = model.net if itself else copy.deepcopy(model.net).to(dtype)
        rows = self.size * settings.group_size
        self.sampler = Sampler(self.net, model.tokenizer, model.template.terminator, batch_rows=rows)
        self.reward = _reward(settings, context, model)

    def state(self) -> dict[str, Any]:
        return {"consumed": self.consumed}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.consumed = state["consumed"]

    # --- training -----------------------------------------------------------------------------------------------------

    def draw(self, number: int) -> Rollout:
        """Batch `number` (from 0). A group that teaches nothing gives its place to one of the next prompt, for at most
        `refill_rounds` rounds; what then still teaches nothing stays, and counts as it does without refilling."""
        times: dict[str, float] = {}
        groups = self._groups(number, [], self.size, times)
        sampled = list(groups)
        rounds = 0
        while rounds < self.settings.refill_rounds:
            idle = [place for place, group in enumerate(groups) if not teaches(group)]
            if not idle:
                break
            for place, group in zip(idle, self._groups(number, sampled, len(idle), times), strict=True):
                groups[place] = group
                sampled.append(group)
            rounds += 1
        return Rollout(groups=self._with_advantages(groups), sampled=sampled, rounds=rounds, times=times)

    def _groups(
        self, number: int, before: Sequence[AnswerGroup], count: int, times: dict[str, float]
    ) -> list[AnswerGroup]:
        """The next `count` groups of a batch that has those `before`."""
        size, first = self.settings.group_size, len(before)
        prompts = self._next(count)
        seeds = [
            [derive(self.context.seed, number, first + place, prompt.id, i) for i in range(size)]
            for place, prompt in enumerate(prompts)
        ]
        with timed(times, "sample"):
            completions = self._sample(prompts, size, seeds)
        with timed(times, "reward"):
            earlier = [answer.graded for group in before for answer in group]
            asked = list(zip(prompts, completions, strict=True))
            graded = self.context.ranks.on_first_rank(lambda: self.reward.grade_groups(asked, earlier))
        return [
            tuple(self._answer(prompt, *pair) for pair in zip(own, grades, strict=True))
            for prompt, own, grades in zip(prompts, completions, graded, strict=True)
        ]

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

    def _next(self, count: int) -> list[Prompt]:
        """The next prompts of the shuffled epochs, which are laid end to end."""
        places = range(self.consumed, self.consumed + count)
        self.consumed += count
        orders: dict[int, list[Prompt]] = {}
        chosen = []
        for at in places:
            epoch, place = divmod(at, len(self.prompts))
            if epoch not in orders:
                orders[epoch] = list(self.prompts)
                random.Random(derive(self.context.seed, "epoch", epoch)).shuffle(orders[epoch])
            chosen.append(orders[epoch][place])
        return chosen

    # --- validation ---------------------------------------------------------------------------------------------------

    def validate(self) -> dict[str, float]:
        """What the policy gets for prompts that it does not learn from, under validation/, with the same random streams
        each time; nothing where there are none, and no reward where graders failed on every answer."""
        prompts = self.held_out
        if not prompts:
            return {}
        size = self.settings.validation_samples
        seeds = [[derive(self.context.seed, "validation", prompt.id, i) for i in range(size)] for prompt in prompts]
        completions = self._sample(prompts, size, seeds)
        asked = list(zip(prompts, completions, strict=True))
        graded = self.context.ranks.on_first_rank(lambda: self.reward.grade_groups(asked))
        statistics = reward_statistics([row for group in graded for row in group])
        lengths = [len(completion.token_ids) for own in completions for completion in own]
        total = statistics.components.get("total")
        return {
            **({} if total is None else {"validation/reward": total.mean}),
            "validation/gate_pass_rate": statistics.gate_pass_rate,
            "validation/length": sum(lengths) / len(lengths),
        }

    def _sample(self, prompts: Sequence[Prompt], count: int, seeds: Sequence[Sequence[int]]) -> list[list[Completion]]:
        """`count` answers to each prompt; with several ranks each samples every so many of the prompts."""
        sampling = self.settings.sampling
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=sampling.max_tokens,
            n=count,
        )
        ranks = self.context.ranks
        mine = [self.prompt_ids[prompt.id] for prompt in prompts[ranks.rank :: ranks.size]]
        every = ranks.gather(self.sampler.generate(mine, params, seeds[ranks.rank :: ranks.size]))
        return [every[at % ranks.size][at // ranks.size] for at in range(len(prompts))]


def teaches(group: AnswerGroup) -> bool:
    """Whether a group has an answer in the loss whose advantage is not 0, whatever advantages are divided by."""
    values = compute_advantages(_totals([group]), "none").values[0]
    return any(answer.counts and value for answer, value in zip(group, values, strict=True))


def _totals(groups: Sequence[AnswerGroup]) -> list[list[float | None]]:
    return [[answer.graded.total for answer in group] for group in groups]


def _check_lengths(
    prompt_ids: Mapping[str, Sequence[int]], settings: TrainGrpo, context: Context, limit: int | None
) -> None:
    """Raises InputError where a prompt leaves no room for an answer, however late its turn would come."""
    most = settings.sampling.max_tokens
    long = {name: len(ids) for name, ids in prompt_ids.items() if limit is not None and len(ids) + most > limit}
    if long:
        name, length = max(long.items(), key=lambda item: item[1])
        raise InputError(
            f"stage {context.name}: {len(long)} of {len(prompt_ids)} prompts are too long; the longest, {name}, has "
            f"{length} tokens, which with max_tokens {most} are {length + most}, but the model's context is {limit}. "
            "Leave such prompts out, or lower sampling.max_tokens"
        )


def _reward(settings: TrainGrpo, context: Context, model: LoadedModel) -> Reward:
    around = RewardResources(
        terminator=model.template.terminator,
        turn_starts=model.template.turn_starts,
        scorers={str(ref): load_scorer(context, ref) for ref in scorers_of(settings)},
        detect=_detect() if any(isinstance(gate, LanguageGate) for gate in settings.reward.gates) else None,
    )
    return build_reward(settings.reward, around)


def _detect() -> Detector:
    """What tells languages, loaded where a gate asks for it."""
    return importlib.import_module("togi.text.language").detect
