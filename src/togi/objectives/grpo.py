"""GRPO, DAPO, Dr. GRPO, CISPO, LUSPO, SAPO and VESPO: policy losses over groups of answers to one prompt.

    loss_type   surrogate            a token's weight in the loss
    grpo        clipped ratio        1 / (length of its answer x answers)       arXiv 2402.03300
    bnpo, dapo  clipped ratio        1 / tokens                                 arXiv 2503.14476
    dr_grpo     clipped ratio        1 / (answers x max_tokens)                 arXiv 2503.20783
    cispo       capped, detached     1 / tokens                                 arXiv 2506.13585
    luspo       clipped ratio        1 / answers, with level="sequence"         arXiv 2602.05261
    sapo        sigmoid of ratio     1 / (length of its answer x answers)       arXiv 2511.20347
    vespo       gamma of the         1 / tokens                                 arXiv 2602.10693
                answer's ratio

`grpo` with `level="sequence"`, eps 3e-4 and eps_high 4e-4 is GSPO (arXiv 2507.18071). `off_policy_threshold` is the
mask of DeepSeek-V3.2 (arXiv 2512.02556). Answers and tokens are counted over the whole step. Other libraries divide
bnpo by the tokens of the micro-batch, so their results depend on how the step is split; here bnpo equals dapo.

Letters: N scored tokens of a micro-batch, concatenated; S its sequences (answers).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from togi.core.errors import RecipeError
from togi.objectives.base import (
    Batch,
    Metrics,
    Output,
    largest_of,
    mean_of,
    require,
    segment_length,
    segment_mean,
    segment_sum,
)
from togi.objectives.checks import check_choice, check_ranges, refuse
from togi.objectives.rules import Level, policy_problem

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "luspo", "sapo", "vespo"]
Surrogate = tuple[Tensor, Metrics]  # the loss of each token (N,), and the clipped shares

SAPO_TEMPERATURE = (1.0, 1.05)  # for tokens with positive advantage, and for the others
VESPO_SHAPE = ((2.0, 3.0), (3.0, 2.0))  # (k, lambda) for answers with advantage >= 0, and for the others
VESPO_LOG_RANGE = (math.log(1e-8), 20.0)  # an answer's log ratio is clamped to this range


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerCorrection:
    """Weights p_trainer / p_sampler, which correct for differences between sampler and trainer.

    `truncate` clamps them to [floor, cap]; `mask` gives weight 0 outside. A token whose sampler log-probability is NaN
    counts as exact. The KL term is not weighted.
    """

    level: Level = "sequence"
    mode: Literal["truncate", "mask"] = "mask"
    cap: float = 3.0
    floor: float | None = None

    def __post_init__(self) -> None:
        check_choice("correction.level", self.level, ("token", "sequence"))
        check_choice("correction.mode", self.mode, ("truncate", "mask"))
        if not 0 <= (self.floor or 0.0) < self.cap:
            raise RecipeError(f"correction: needs 0 <= floor < cap, found floor {self.floor} and cap {self.cap}")

    def weights(self, old_logp_N: Tensor, batch: Batch) -> Tensor:
        """One weight per token, detached: (N,)."""
        weight_N = self.raw(sampler_difference(old_logp_N, batch), batch)
        if self.mode == "truncate":
            return weight_N.clamp(min=self.floor, max=self.cap)
        return weight_N.masked_fill(self.outside(weight_N), 0.0)

    def raw(self, difference_N: Tensor, batch: Batch) -> Tensor:
        """Unbounded weights from log-differences, per token or answer: (N,)."""
        if self.level == "sequence":
            difference_N = segment_sum(difference_N, batch.sequence_N, batch.num_sequences)[batch.sequence_N]
        return difference_N.exp()

    def outside(self, weight_N: Tensor) -> Tensor:
        """Which weights are outside [floor, cap]: (N,)."""
        return (weight_N > self.cap) | (weight_N < (self.floor or 0.0))

    def observed(self, old_logp_N: Tensor, batch: Batch) -> Metrics:
        """The mismatch between sampler and trainer: the mean difference in nats, the largest weight, and the share of
        tokens whose weight is out of bounds. KL(sampler || trainer) is estimated by r - 1 - log r, which is never
        negative."""
        difference_N = sampler_difference(old_logp_N, batch)
        weight_N = self.raw(difference_N, batch)
        return {
            "sampler_mismatch": mean_of(difference_N.abs()),
            "sampler_kl": mean_of((difference_N.expm1() - difference_N).clamp(min=0)),
            "sampler_weight/max": largest_of(weight_N),
            "sampler_outside": mean_of(self.outside(weight_N)),
        }


def sampler_difference(old_logp_N: Tensor, batch: Batch) -> Tensor:
    """log p_trainer - log p_sampler of the sampled tokens, 0 if the sampler reported none: (N,), no graph."""
    return (old_logp_N - require(batch.sampler_logp_N, "sampler_logp_N")).detach().nan_to_num(nan=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GRPO:
    """The clipped policy gradient over groups of answers. Raises RecipeError for settings that do not fit together."""

    loss_type: LossType = "dapo"
    level: Level = "token"
    eps: float = 0.2  # the ratio is clipped to [1 - eps, 1 + eps_high]
    eps_high: float | None = None  # eps when None
    delta: float | None = None  # two-sided clip: the largest ratio of a token with negative advantage
    max_weight: float | None = None  # cispo: the largest ratio; 5 when None
    beta: float = 0.0  # weight of the KL to the initial model; 0 needs no reference
    use_bias_correction_kl: bool = True  # weight the KL term by the ratio, as an off-policy estimate must be
    max_tokens: int | None = None  # dr_grpo: the token budget of an answer, its divisor
    correction: SamplerCorrection | None = None
    off_policy_threshold: float | None = None  # nats per token: leaves out answers with negative advantage beyond it

    def __post_init__(self) -> None:
        check_choice("loss_type", self.loss_type, tuple(VARIANTS))
        check_choice("level", self.level, ("token", "sequence"))
        _check_ranges(self)
        _check_unread(self)

    @property
    def needs(self) -> frozenset[str]:
        """The optional batch fields that these settings need."""
        wanted = {"advantage_S": True, "ref_logp_N": self.beta > 0, "sampler_logp_N": self.correction is not None}
        return frozenset(name for name, read in wanted.items() if read)

    def counts(self, batch: Batch) -> dict[str, float]:
        """Answers and scored tokens."""
        return {
            "sequences": float(batch.num_sequences + batch.idle_sequences),
            "tokens": float(batch.sequence_N.numel() + batch.idle_tokens),
        }

    def loss(self, output: Output, batch: Batch, totals: Mapping[str, float]) -> tuple[Tensor, Metrics]:
        """The step's loss over this micro-batch: sum over tokens of weight x (surrogate + beta KL)."""
        logp_N = require(output.logp_N, "logp_N")
        old_N = logp_N.detach() if batch.old_logp_N is None else batch.old_logp_N
        ratio_N = _ratio(logp_N - old_N, batch, self.level)
        variant = VARIANTS[self.loss_type]
        advantage_N = require(batch.advantage_S, "advantage_S")[batch.sequence_N]
        tokens = _Tokens(logp_N, logp_N - old_N, ratio_N, advantage_N, batch)
        loss_N, metrics = variant.surrogate(self, tokens)
        metrics["ratio"] = mean_of(ratio_N)
        if self.off_policy_threshold is not None:
            kept_N = _near_policy(self.off_policy_threshold, tokens, old_N)
            loss_N = loss_N * kept_N
            metrics["off_policy_masked"] = mean_of(1 - kept_N)
        if self.correction is not None:
            correction_N = self.correction.weights(old_N, batch)
            loss_N = loss_N * correction_N
            metrics["sampler_weight"] = mean_of(correction_N)
        if self.beta > 0:
            kl_N = _k3(logp_N, require(batch.ref_logp_N, "ref_logp_N"))
            metrics["kl"] = mean_of(kl_N)
            loss_N = loss_N + self.beta * (kl_N * ratio_N if self.use_bias_correction_kl else kl_N)
        weight_N = variant.weight(self, logp_N.detach(), batch, totals)
        return (loss_N * weight_N).sum(), metrics | _observed(output, old_N, batch, self.correction)


def _ratio(difference_N: Tensor, batch: Batch, level: Level) -> Tensor:
    """p / p_old of each token, or of its whole answer's geometric mean (GSPO): (N,)."""
    if level == "sequence":
        difference_N = segment_mean(difference_N, batch.sequence_N, batch.num_sequences)[batch.sequence_N]
    return difference_N.exp()


def _k3(logp_N: Tensor, ref_logp_N: Tensor) -> Tensor:
    """The low-variance, non-negative estimate of KL(policy || reference) at the sampled tokens: (N,)."""
    difference_N = ref_logp_N - logp_N
    return difference_N.exp() - difference_N - 1


def _observed(output: Output, old_N: Tensor, batch: Batch, correction: SamplerCorrection | None) -> Metrics:
    """Metrics that are always logged: entropy, and the mismatch with the sampler, even without a correction."""
    metrics: Metrics = {}
    if output.entropy_N is not None:
        metrics["entropy"] = mean_of(output.entropy_N)
    if batch.sampler_logp_N is not None:
        metrics |= (correction or SamplerCorrection(level="token")).observed(old_N, batch)
    return metrics


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The inputs of a surrogate, each (N,): `log_ratio_N` is per token, `ratio_N` at the chosen level."""

    logp_N: Tensor
    log_ratio_N: Tensor
    ratio_N: Tensor
    advantage_N: Tensor
    batch: Batch


def _near_policy(threshold: float, tokens: _Tokens, old_N: Tensor) -> Tensor:
    """0 for answers with negative advantage whose distance from the sampling policy exceeds `threshold`, else 1: (N,).

    The distance is mean(log p_sampled - log p) over the answer, with the sampler's log-probabilities if the batch has
    them.
    """
    batch = tokens.batch
    sampled_N = old_N if batch.sampler_logp_N is None else batch.sampler_logp_N
    drift_N = (sampled_N - tokens.logp_N).detach().nan_to_num(nan=0.0)
    drift_S = segment_mean(drift_N, batch.sequence_N, batch.num_sequences)
    return ((tokens.advantage_N >= 0) | (drift_S[batch.sequence_N] <= threshold)).to(drift_N.dtype)


# --- the four surrogates: the loss of a token -------------------------------------------------------------------------


def _clipped(settings: GRPO, tokens: _Tokens) -> Surrogate:
    """-min(ratio A, clip(ratio) A); `delta` bounds the ratio of tokens with negative advantage."""
    ratio_N, advantage_N = tokens.ratio_N, tokens.advantage_N
    low, high = 1 - settings.eps, 1 + (settings.eps if settings.eps_high is None else settings.eps_high)
    inside_N = ratio_N.clamp(low, high)
    free_N = ratio_N if settings.delta is None else ratio_N.clamp(max=settings.delta)
    loss_N = -torch.minimum(free_N * advantage_N, inside_N * advantage_N)
    low_N, high_N = (ratio_N < low) & (advantage_N < 0), (ratio_N > high) & (advantage_N > 0)
    return loss_N, {"clip_low": mean_of(low_N), "clip_high": mean_of(high_N)}


def _capped(settings: GRPO, tokens: _Tokens) -> Surrogate:
    """-sg[min(ratio, max_weight)] A logp: every token keeps a gradient (CISPO)."""
    ratio_N, advantage_N = tokens.ratio_N, tokens.advantage_N
    cap = 5.0 if settings.max_weight is None else settings.max_weight
    loss_N = -ratio_N.clamp(max=cap).detach() * advantage_N * tokens.logp_N
    return loss_N, {"clip_high": mean_of((ratio_N > cap) & (advantage_N > 0))}


def _soft(settings: GRPO, tokens: _Tokens) -> Surrogate:
    """-(4 / tau) sigmoid(tau (ratio - 1)) A: a gate that closes smoothly on both sides (SAPO)."""
    positive, other = SAPO_TEMPERATURE
    tau_N = torch.where(tokens.advantage_N > 0, positive, other).to(tokens.ratio_N.dtype)
    return -(4 / tau_N) * torch.sigmoid(tau_N * (tokens.ratio_N - 1)) * tokens.advantage_N, {}


def _gamma(settings: GRPO, tokens: _Tokens) -> Surrogate:
    """-sg[phi(W)] A logp, W the answer's ratio, phi(W) = exp(lambda + k log W - lambda W), so phi(1) = 1 (VESPO)."""
    batch, advantage_N = tokens.batch, tokens.advantage_N
    log_ratio_N = tokens.log_ratio_N.detach().clamp(-20.0, 20.0)
    log_S = segment_sum(log_ratio_N, batch.sequence_N, batch.num_sequences).clamp(*VESPO_LOG_RANGE)
    log_N = log_S[batch.sequence_N]
    (k_up, lambda_up), (k_down, lambda_down) = VESPO_SHAPE
    up_N = advantage_N >= 0
    k_N = torch.where(up_N, k_up, k_down).to(log_N.dtype)
    lambda_N = torch.where(up_N, lambda_up, lambda_down).to(log_N.dtype)
    phi_N = (lambda_N + k_N * log_N - lambda_N * log_N.exp()).exp()
    return -phi_N * advantage_N * tokens.logp_N, {"phi": mean_of(phi_N)}


# --- the four weights of a token; each is (N,), without a graph -----------------------------------------------------


def _per_answer(settings: GRPO, logp_N: Tensor, batch: Batch, totals: Mapping[str, float]) -> Tensor:
    length_S = segment_length(logp_N, batch.sequence_N, batch.num_sequences)
    return 1 / (length_S[batch.sequence_N] * max(totals["sequences"], 1.0))


def _summed(settings: GRPO, logp_N: Tensor, batch: Batch, totals: Mapping[str, float]) -> Tensor:
    return torch.full_like(logp_N, 1 / max(totals["sequences"], 1.0))


def _per_token(settings: GRPO, logp_N: Tensor, batch: Batch, totals: Mapping[str, float]) -> Tensor:
    return torch.full_like(logp_N, 1 / max(totals["tokens"], 1.0))


def _per_budget(settings: GRPO, logp_N: Tensor, batch: Batch, totals: Mapping[str, float]) -> Tensor:
    assert settings.max_tokens is not None  # checked in __post_init__
    return torch.full_like(logp_N, 1 / (max(totals["sequences"], 1.0) * settings.max_tokens))


@dataclass(frozen=True, slots=True)
class _Variant:
    surrogate: Callable[[GRPO, _Tokens], Surrogate]
    weight: Callable[[GRPO, Tensor, Batch, Mapping[str, float]], Tensor]


VARIANTS: dict[str, _Variant] = {
    "grpo": _Variant(_clipped, _per_answer),
    "bnpo": _Variant(_clipped, _per_token),
    "dapo": _Variant(_clipped, _per_token),
    "dr_grpo": _Variant(_clipped, _per_budget),
    "cispo": _Variant(_capped, _per_token),
    "luspo": _Variant(_clipped, _summed),
    "sapo": _Variant(_soft, _per_answer),
    "vespo": _Variant(_gamma, _per_token),
}


# --- settings that do not fit -----------------------------------------------------------------------------------------


def _check_ranges(settings: GRPO) -> None:
    """Rejects values that invert the clip, or with which the KL pushes the policy away."""
    fits = {
        "eps": 0 < settings.eps < 1,
        "eps_high": settings.eps_high is None or settings.eps_high > 0,
        "delta": settings.delta is None or settings.delta > 1,
        "max_weight": settings.max_weight is None or settings.max_weight > 0,
        "beta": settings.beta >= 0,
        "max_tokens": settings.max_tokens is None or settings.max_tokens > 0,
        "off_policy_threshold": settings.off_policy_threshold is None or settings.off_policy_threshold > 0,
    }
    check_ranges(fits, "0 < eps < 1, beta >= 0, delta > 1, the others > 0")


def _check_unread(settings: GRPO) -> None:
    """Rejects settings that the loss type does not use."""
    kind = settings.loss_type
    problem = policy_problem(
        kind,
        level=settings.level,
        max_weight=settings.max_weight,
        correction=settings.correction,
        eps_high=settings.eps_high,
        delta=settings.delta,
    )
    refuse(problem)
    if (settings.max_tokens is not None) != (kind == "dr_grpo"):
        raise RecipeError(
            "objective.max_tokens: dr_grpo needs it (the longest answer in tokens) and no other loss type uses it; "
            f"found {settings.max_tokens} with loss_type {kind}"
        )
