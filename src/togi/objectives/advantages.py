"""Advantages: one number per sample, from the rewards of a step.

A reward of None or NaN means that the sample has none (its grader failed, or no function graded it): it leaves its
group and gets no advantage.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from togi.core.errors import RecipeError, StageError

EPSILON = 1e-4
Scale = Literal["group", "batch", "none"]
Rewards = Sequence[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advantages:
    """`values[g][i]` is the advantage of sample i of group g; None where it has no reward (`num_failed` of them).

    A group has advantages of 0 if fewer than two of its samples are graded (`num_too_few`) or all its rewards are
    equal (`num_no_spread`).
    """

    values: tuple[tuple[float | None, ...], ...]
    num_failed: int
    num_too_few: int
    num_no_spread: int

    @property
    def idle_share(self) -> float:
        """Share of the groups whose advantages are all 0."""
        return (self.num_too_few + self.num_no_spread) / max(len(self.values), 1)


def compute_advantages(groups: Sequence[Rewards], scale: Scale = "group") -> Advantages:
    """Subtracts the group's mean from each reward, and divides by the unbiased standard deviation + 1e-4 of the group
    or the batch, or by nothing.

    Raises StageError for an infinite reward, RecipeError for an unknown scale.
    """
    if scale not in ("group", "batch", "none"):
        raise RecipeError(f"scale_rewards: found {scale!r}; allowed: group, batch, none")
    graded = [_graded(group) for group in groups]
    batch = np.concatenate([*graded, np.empty(0)])
    divisors = {"group": _deviation, "batch": lambda rewards: _deviation(batch), "none": lambda rewards: 1.0}
    values = [_spread(group, rewards, divisors[scale]) for group, rewards in zip(groups, graded, strict=True)]
    return Advantages(
        values=tuple(values),
        num_failed=sum(len(group) for group in groups) - len(batch),
        num_too_few=sum(len(rewards) < 2 for rewards in graded),
        num_no_spread=sum(len(rewards) >= 2 and _flat(rewards) for rewards in graded),
    )


def _failed(reward: float | None) -> bool:
    return reward is None or math.isnan(reward)


def _graded(group: Rewards) -> np.ndarray:
    rewards = np.array([reward for reward in group if not _failed(reward)], dtype=np.float64)
    if np.isinf(rewards).any():
        raise StageError(f"an infinite reward in {list(group)}: a grader must return a finite number or fail")
    return rewards


def _flat(rewards: np.ndarray) -> bool:
    # An exact comparison, because the mean of equal numbers may differ from them in the last bit.
    return bool(rewards.min() == rewards.max())


def _deviation(rewards: np.ndarray) -> float:
    return float(rewards.std(ddof=1)) + EPSILON


def _spread(group: Rewards, rewards: np.ndarray, divisor: Callable[[np.ndarray], float]) -> tuple[float | None, ...]:
    if len(rewards) < 2 or _flat(rewards):
        return tuple(None if _failed(reward) else 0.0 for reward in group)
    mean, scale = float(rewards.mean()), divisor(rewards)
    return tuple(None if reward is None or math.isnan(reward) else (reward - mean) / scale for reward in group)
