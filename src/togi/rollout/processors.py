"""Turns logits into tokens: pure functions on rows, each row independent of the others.

The order is that of transformers: repetition penalty, temperature, top-k, top-p, min-p. A uniform random number and the
cumulative sum in vocabulary order select a token. Shapes: R rows, V vocabulary, L seen tokens, K candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from togi.core.errors import InputError
from togi.core.records import SamplingParams

BLOCK = 256
"""Tokens in a block of the two-level cumulative sum."""

CANDIDATES = 128
"""The number of most likely tokens that top-p considers first; eight times as many if their mass does not suffice."""

LEAST, MOST = 0.0001, 10000
"""Factors beyond these can push logits out of the range of float32."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def check_params(params: SamplingParams) -> None:
    """Raises InputError for a setting outside its range."""
    ranges = [
        (
            "temperature",
            params.temperature,
            params.temperature == 0 or LEAST <= params.temperature <= MOST,
            f"0 (greedy), or from {LEAST} to {MOST}",
        ),
        ("top_p", params.top_p, 0 < params.top_p <= 1, "above 0, at most 1 (off)"),
        ("top_k", params.top_k, 0 <= params.top_k < 2**31, "0 (off) or more, below 2**31"),
        ("min_p", params.min_p, 0 <= params.min_p <= 1, "from 0 (off) to 1"),
        (
            "repetition_penalty",
            params.repetition_penalty,
            LEAST <= params.repetition_penalty <= MOST,
            f"from {LEAST} to {MOST}; 1 is off",
        ),
        ("max_tokens", params.max_tokens, params.max_tokens >= 1, "1 or more"),
        ("n", params.n, params.n >= 1, "1 or more"),
        ("logprobs", params.logprobs, params.logprobs >= 0, "0 (off) or more"),
        ("stop", params.stop, "" not in params.stop, "strings that are not empty"),
    ]
    for name, value, good, allowed in ranges:
        if not good:
            raise InputError(f"sampling: {name} is {value!r}; allowed: {allowed}")


def uniform(seeds_R: np.ndarray, positions_R: np.ndarray) -> np.ndarray:
    """One number in [0, 1) per (stream, position): SplitMix64 (Steele et al. 2014) in counter form, float64."""
    with np.errstate(over="ignore"):
        state = _mix(seeds_R.astype(np.uint64) + _GOLDEN) + positions_R.astype(np.uint64) * _GOLDEN
        return (_mix(state + _GOLDEN) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class Settings:
    """Sampling settings of R rows as (R, 1) columns; None if a filter is off in every row."""

    temperature: Tensor | None
    greedy: Tensor | None
    top_k: Tensor | None
    top_p: Tensor | None
    min_p: Tensor | None
    penalty: Tensor | None

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device) -> "Settings":
        """The settings of rows with these parameters."""

        def column(values: list[float], off: float) -> Tensor | None:
            if all(value == off for value in values):
                return None
            return torch.tensor(values, device=device)[:, None]

        greedy = column([p.temperature == 0 for p in params], False)
        return cls(
            temperature=column([p.temperature or 1.0 for p in params], 1.0),
            greedy=greedy,
            top_k=column([p.top_k for p in params], 0),
            top_p=column([p.top_p for p in params], 1.0),
            min_p=column([p.min_p for p in params], 0.0),
            penalty=column([p.repetition_penalty for p in params], 1.0),
        )

    @property
    def plain(self) -> bool:
        """Whether tokens are drawn from the whole vocabulary, with no setting but temperature."""
        return all(x is None for x in (self.greedy, self.top_k, self.top_p, self.min_p, self.penalty))


@dataclass(frozen=True, slots=True)
class Draw:
    """The chosen tokens (R,) and their log-probabilities (float64, nats): `logp` with temperature only, `sampled_logp`
    with all settings.

    In greedy rows `logp` is at temperature 1, and `sampled_logp` is 0, since no other token could have been chosen.
    """

    token: Tensor
    logp: Tensor
    sampled_logp: Tensor


def draw(logits_RV: Tensor, settings: Settings, uniform_R: Tensor, seen_RL: Tensor | None = None) -> Draw:
    """Chooses one token per row; overwrites `logits_RV` (float32). `seen_RL`: ids for the repetition penalty."""
    if settings.plain:
        weight = _weights(temper(logits_RV, settings))
        token, total = pick(weight, uniform_R)
        logp = weight.gather(1, token[:, None])[:, 0].double().log() - total.log()
        return Draw(token, logp, logp)
    base = temper(logits_RV.clone(), settings)
    filtered = keep(temper(penalise(logits_RV, settings, seen_RL), settings), settings)
    best = filtered.argmax(-1)
    base_total, base_best = _log_total(base)
    total, filtered_best = _log_total(filtered)
    weight = (filtered - filtered_best).exp_()
    token, _ = pick(weight, uniform_R)
    if settings.greedy is not None:
        token = torch.where(settings.greedy[:, 0], best, token)
    at = token[:, None]
    logp = (base.gather(1, at).double() - base_best.double())[:, 0] - base_total
    sampled = (filtered.gather(1, at).double() - filtered_best.double())[:, 0] - total
    if settings.greedy is not None:
        sampled = sampled.masked_fill(settings.greedy[:, 0], 0.0)
    return Draw(token, logp, sampled)


def likeliest(logits_RV: Tensor, settings: Settings, count: int) -> tuple[Tensor, Tensor]:
    """The `count` most likely tokens of each row, best first: ids (R, K) and log-probabilities (R, K), float64, nats.

    Only temperature is applied; greedy rows are at temperature 1. `logits_RV` is not modified.
    """
    base = temper(logits_RV.clone(), settings)
    top_RK, id_RK = base.topk(min(count, base.shape[1]), -1)
    total, best = _log_total(base)
    return id_RK, top_RK.double() - best.double() - total[:, None]


def temper(logits_RV: Tensor, settings: Settings) -> Tensor:
    """Divides by the temperature, in place; greedy rows stay unchanged."""
    return logits_RV if settings.temperature is None else logits_RV.div_(settings.temperature)


def penalise(logits_RV: Tensor, settings: Settings, seen_RL: Tensor | None) -> Tensor:
    """Lowers the logit of every token that prompt or answer already contains (CTRL, Keskar et al. 2019), in place.

    `seen_RL` may contain a token twice.
    """
    if settings.penalty is None or seen_RL is None:
        return logits_RV
    old = logits_RV.gather(1, seen_RL)
    return logits_RV.scatter_(1, seen_RL, torch.where(old < 0, old * settings.penalty, old / settings.penalty))


def keep(scores_RV: Tensor, settings: Settings) -> Tensor:
    """Sets tokens that top-k, top-p and min-p exclude to -inf, in place. Ties at the threshold are all kept."""
    lowest = None
    if settings.top_k is not None or settings.top_p is not None:
        lowest = _lowest_kept(scores_RV, settings)
    if settings.min_p is not None:
        by_peak = scores_RV.amax(-1, keepdim=True) + settings.min_p.clamp_min(0).log()
        lowest = by_peak if lowest is None else torch.maximum(lowest, by_peak)
    return scores_RV if lowest is None else scores_RV.masked_fill_(scores_RV < lowest, -torch.inf)


def _lowest_kept(scores_RV: Tensor, settings: Settings) -> Tensor:
    vocabulary = scores_RV.shape[1]
    largest_k = 0 if settings.top_k is None else min(int(settings.top_k.max()), vocabulary)
    count = min(max(CANDIDATES if settings.top_p is not None else 1, largest_k), vocabulary)
    while True:
        top_RK = scores_RV.topk(count, -1).values
        lowest = torch.full_like(top_RK[:, :1], -torch.inf)
        if settings.top_k is not None:
            last = (settings.top_k.long().clamp_max(vocabulary) - 1).clamp_min(0)
            lowest = torch.where(settings.top_k > 0, top_RK.gather(1, last), lowest)
        if settings.top_p is None:
            return lowest
        enough, lowest = _nucleus(scores_RV, top_RK, lowest, settings.top_p)
        if enough or count == vocabulary:
            return lowest
        count = min(count * 8, vocabulary)


def _nucleus(scores_RV: Tensor, top_RK: Tensor, lowest: Tensor, top_p: Tensor) -> tuple[bool, Tensor]:
    """Whether the candidates' probabilities reach `top_p`, and the lowest score to keep: that of the last token whose
    better tokens sum to less than `top_p`."""
    among = scores_RV.masked_fill(scores_RV < lowest, -torch.inf)
    total = among.logsumexp(-1, keepdim=True)
    share = (top_RK.masked_fill(top_RK < lowest, -torch.inf) - total).exp().double()
    before = share.cumsum(-1) - share
    inside = (before < top_p) & (share > 0)
    last = inside.sum(-1, keepdim=True).clamp_min(1) - 1
    enough = bool(((before + share)[:, -1:] >= top_p).logical_or(~inside[:, -1:]).logical_or(top_p >= 1).all())
    border = torch.where(top_p < 1, top_RK.gather(1, last), lowest)
    return enough, torch.maximum(lowest, border)


def pick(weight_RV: Tensor, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """The token (R,) at the fraction `uniform_R` of the cumulative weight, and the total weight (R,), in float64.

    Searches blocks first and then the tokens of one block, so the long cumulative sum is never stored. Never returns a
    token of weight 0.
    """
    rows, vocabulary = weight_RV.shape
    if vocabulary % BLOCK:
        weight_RV = F.pad(weight_RV, (0, BLOCK - vocabulary % BLOCK))
    blocks = weight_RV.view(rows, -1, BLOCK)
    mass = blocks.sum(-1).double()
    reached = mass.cumsum(-1)
    total = reached[:, -1]
    # uniform * total may round up to the total itself, which no cumulative sum exceeds
    target = torch.minimum(uniform_R * total, total * (1 - 1e-15))[:, None]
    block = (reached <= target).sum(-1, keepdim=True)
    rest = target - (reached - mass).gather(1, block)
    row = torch.arange(rows, device=weight_RV.device)
    inner = blocks[row, block[:, 0]].double()
    offset = (inner.cumsum(-1) <= rest).sum(-1)
    columns = torch.arange(BLOCK, device=weight_RV.device)
    last = torch.where(inner > 0, columns, 0).amax(-1)
    return block[:, 0] * BLOCK + torch.minimum(offset, last), total


def _weights(scores_RV: Tensor) -> Tensor:
    return scores_RV.sub_(scores_RV.amax(-1, keepdim=True)).exp_()


def _log_total(scores_RV: Tensor) -> tuple[Tensor, Tensor]:
    """log of the sum of exp(score - best), float64 (R,), and the best score (R, 1)."""
    best = scores_RV.amax(-1, keepdim=True)
    return (scores_RV - best).exp_().sum(-1, dtype=torch.float64).log(), best
