"""An arena: pairwise battles of models against a baseline; Bradley-Terry win rates with intervals.

Rows have the public layout of arena-hard's battles: question_id, model_a, model_b, winner (model_a, model_b, tie). A
row that is repeated three times counts three times: the layout encodes "much better" this way. If there is a column
`answer_len_delta`, the weight of a row is twice its value, as in Ru-Arena's length control.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from togi.core.errors import InputError
from togi.evaluate.rows import rows_of
from togi.evaluate.statistics import (
    Battles,
    By,
    Fit,
    Floats,
    bca_tails,
    bradley_terry,
    numbered,
    resampled,
    unseen_share,
)

COLUMNS = ("model_a", "model_b", "winner")
SHARES = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5}
NOTHING = 1e-9  # less is a rounding error of a fit
SELF, NO_WINNER, UNKNOWN = "model_against_itself", "no_winner", "unknown_winner"


@dataclass(frozen=True, slots=True, kw_only=True)
class Battle:
    """One row: `share` is the share that model_a won (1, 0 or 0.5)."""

    model_a: str
    model_b: str
    share: float
    question: Hashable = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A model against the baseline: win rate in percent, and Elo with the baseline at 1000. `n` counts rows, split into
    `wins`, `ties` and `losses`. None means undefined: the Elo of a model that won or lost everything; all values of a
    model that no chain of battles connects to the baseline. For a controlled rate, `uncontrolled` is the plain one.
    `leaked` counts the model's questions that it was trained on, `unleaked` is its rate on the others; None if
    unknown."""

    n: int
    win_rate: float | None
    low: float | None
    high: float | None
    elo: float | None
    wins: int
    ties: int
    losses: int
    questions: int | None
    tokens: float | None = None
    uncontrolled: float | None = None
    leaked: int | None = None
    unleaked: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON-like values; `unleaked` and `uncontrolled` are win rates, in percent."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arena:
    """The leaderboard, best first. `resampled` is the unit of the bootstrap: questions, rows, or rows of each pair of
    models. `style` holds the coefficients of a style control: how much one standard deviation of each feature adds to
    the log odds of a win."""

    rows: int
    dropped: Mapping[str, int]
    baseline: str
    resampled: str
    rounds: int
    standings: Mapping[str, Standing]
    self_judged: Mapping[str, int]
    level: float = 0.95
    style: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What `togi evaluate arena --json` prints."""
        return {
            "benchmark": "arena",
            "rows": self.rows,
            "dropped": dict(self.dropped),
            "baseline": self.baseline,
            "resampled": self.resampled,
            "rounds": self.rounds,
            "level": self.level,
            **({"style": dict(self.style)} if self.style else {}),
            "self_judged": dict(self.self_judged),
            "models": {name: standing.to_json() for name, standing in self.standings.items()},
        }


@dataclass(slots=True)
class Rows:
    """The battles of a file, and the dropped rows by reason."""

    battles: list[Battle] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    alone: Counter[str] = field(default_factory=Counter)
    """Models paired with themselves, and how often."""
    self_judged: Counter[str] = field(default_factory=Counter)
    """Models that judged their own games, and how many."""

    @property
    def count(self) -> int:
        """All rows."""
        return len(self.battles) + self.dropped.total()


def read_battles(path: Path) -> Rows:
    """The battles of a file. InputError with file and line for missing columns or wrong values."""
    found = Rows()
    for row in rows_of(path, COLUMNS):
        one, other = row.text("model_a"), row.text("model_b")
        winner = row.values["winner"]
        weight = row.number("answer_len_delta", 0.0, 1.0) if "answer_len_delta" in row.values else None
        if one == other:
            found.dropped[SELF] += 1
            found.alone[one] += 1
        elif winner is None or winner == "":
            found.dropped[NO_WINNER] += 1
        elif not isinstance(winner, str) or winner not in SHARES:
            found.dropped[UNKNOWN] += 1
        else:
            question = row.text("question_id") if row.values.get("question_id") is not None else None
            found.battles.append(
                Battle(
                    model_a=one,
                    model_b=other,
                    share=SHARES[winner],
                    question=question,
                    weight=1.0 if weight is None else 2 * weight,
                )
            )
    return found


def find_baseline(rows: Rows, named: str | None) -> str:
    """The baseline: the one `named`, else the model that is in every battle; of two such, model_a.

    InputError if the named model has no battle, or no model is in all battles.
    """
    models = list(dict.fromkeys(name for battle in rows.battles for name in (battle.model_a, battle.model_b)))
    known = [*models, *(name for name in rows.alone if name not in models)]
    if named is not None:
        if named not in known:
            raise InputError(f"--baseline {named}: has no battle; models are {', '.join(known[:12])}")
        return named
    if not rows.battles:
        raise InputError(f"no battle is left: {_reasons(rows)}; nothing can be ranked")
    first = rows.battles[0]
    shared = [
        name
        for name in (first.model_a, first.model_b)
        if all(name in (battle.model_a, battle.model_b) for battle in rows.battles)
    ]
    if not shared:
        raise InputError(f"no model is in every battle; set --baseline to one of {', '.join(known[:12])}")
    return shared[0]


def _reasons(rows: Rows) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in rows.dropped.items()) or "there are no rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How intervals are resampled. `by` question draws questions with all their games (BCa), because games of one
    question are not independent; without question ids it draws rows. `by` row draws rows and uses plain percentiles, as
    published arenas do. `by` model draws the rows of each pair of models separately, as arena-hard v2 does."""

    by: By = "question"
    rounds: int = 1000
    seed: int = 0
    level: float = 0.95

    def of(self, battles: Battles) -> "Draw":
        """The settings for these battles: `by` row if questions are unknown."""
        return replace(self, by="row") if self.by == "question" and battles.question_N is None else self


def rank(
    rows: Rows,
    *,
    baseline: str | None = None,
    by: By = "question",
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Arena:
    """The leaderboard with intervals, resampled as in `Draw`. InputError if no battle is left."""
    name = find_baseline(rows, baseline)
    battles = numbered_battles(rows.battles, name)
    draw = Draw(by=by, rounds=rounds, seed=seed, level=level).of(battles)
    strength_M = bradley_terry(battles).strength_M
    rates_RM, influence_QM = resampled(battles, by=draw.by, rounds=rounds, seed=seed)
    return ranked(rows, battles, draw, strength_M, (rates_RM, influence_QM))


def ranked(rows: Rows, battles: Battles, draw: Draw, strength_M: Floats, resamples: tuple[Floats, Floats]) -> Arena:
    """The leaderboard of models with these strengths (natural logarithms, the baseline at 0). `resamples` are the win
    rates of each resample (R, M), and the influence of each question on a strength (Q, M)."""
    lows_M, highs_M = _intervals(battles, strength_M, resamples, draw)
    fit = Fit(models=battles.models, strength_M=strength_M)
    rate_M, elo_M = fit.win_rate_M, fit.elo_M
    standings = {
        model: _standing(battles, place, rate_M[place], elo_M[place], (lows_M[place], highs_M[place]))
        for place, model in enumerate(battles.models)
    }
    order = sorted(standings, key=lambda model: -1.0 if (rate := standings[model].win_rate) is None else rate)
    return Arena(
        rows=rows.count,
        dropped=rows.dropped,
        baseline=battles.models[battles.baseline],
        resampled=draw.by,
        rounds=draw.rounds,
        standings={model: standings[model] for model in reversed(order)},
        self_judged=rows.self_judged,
        level=draw.level,
    )


def with_tokens(found: Arena, tokens: Mapping[str, float]) -> Arena:
    """The leaderboard with the mean tokens of each model's answers."""
    known = {model: replace(one, tokens=tokens.get(model)) for model, one in found.standings.items()}
    return replace(found, standings=known)


def strengths(rows: Sequence[Battle], battles: Battles) -> Floats:
    """The strengths of a leaderboard without a style control."""
    return bradley_terry(battles).strength_M


def with_leaks(
    found: Arena,
    rows: Rows,
    leaked: Mapping[str, Sequence[str]],
    fit: Callable[[Sequence[Battle], Battles], Floats | None] = strengths,
) -> Arena:
    """The leaderboard with the number of questions that each model was trained on, and its win rate on the others.

    `leaked` are question ids by model; a model that is not listed was trained on none. `fit` computes the strengths as
    for the leaderboard, from the battles on the other questions; None if it cannot. InputError for a model without
    battles, and for rows without question ids.
    """
    for model in leaked:
        if model not in found.standings:
            raise InputError(f"--leaked: {model} has no battle; models are {', '.join(list(found.standings)[:12])}")
    if any(battle.question is None for battle in rows.battles):
        raise InputError("--leaked: battles have no question_id, so leaked questions cannot be matched")
    learnt = {model: dict.fromkeys(questions) for model, questions in leaked.items()}
    clean = [
        battle
        for battle in rows.battles
        if not any(str(battle.question) in learnt.get(model, {}) for model in (battle.model_a, battle.model_b))
    ]
    rates = _rates(clean, found.baseline, fit) if clean else {}
    asked = _questions(rows)
    known = {
        model: replace(
            one,
            leaked=sum(question in learnt.get(model, {}) for question in asked.get(model, {})),
            unleaked=rates.get(model),
        )
        for model, one in found.standings.items()
    }
    return replace(found, standings=known)


def _rates(
    clean: Sequence[Battle], baseline: str, fit: Callable[[Sequence[Battle], Battles], Floats | None]
) -> dict[str, float | None]:
    """The win rate of each model in these battles, in percent; empty if they cannot be fitted."""
    battles = numbered_battles(clean, baseline)
    strength_M = fit(clean, battles)
    if strength_M is None:
        return {}
    rate_M = 100 * expit(strength_M)
    return {model: _finite(rate) for model, rate in zip(battles.models, rate_M, strict=True)}


def _questions(rows: Rows) -> dict[str, dict[str, None]]:
    """The questions of each model."""
    found: dict[str, dict[str, None]] = {}
    for battle in rows.battles:
        for model in (battle.model_a, battle.model_b):
            found.setdefault(model, {})[str(battle.question)] = None
    return found


def numbered_battles(rows: Sequence[Battle], baseline: str) -> Battles:
    """The battles as arrays, the baseline as number 0."""
    models = list(dict.fromkeys([baseline, *(name for battle in rows for name in (battle.model_a, battle.model_b))]))
    place = {model: number for number, model in enumerate(models)}
    questions = [battle.question for battle in rows]
    return Battles(
        models=tuple(models),
        baseline=0,
        first_N=np.array([place[battle.model_a] for battle in rows], dtype=np.intp),
        second_N=np.array([place[battle.model_b] for battle in rows], dtype=np.intp),
        share_N=np.array([battle.share for battle in rows]),
        weight_N=np.array([battle.weight for battle in rows]),
        question_N=None if None in questions else numbered(questions),
    )


def _standing(battles: Battles, place: int, rate: float, elo: float, bounds: tuple[float, float]) -> Standing:
    first_N, second_N = battles.first_N == place, battles.second_N == place
    won_N = np.where(first_N, battles.share_N, 1 - battles.share_N)[first_N | second_N]
    questions = None if battles.question_N is None else len(np.unique(battles.question_N[first_N | second_N]))
    return Standing(
        n=len(won_N),
        win_rate=_finite(100 * rate),
        low=_finite(100 * bounds[0]),
        high=_finite(100 * bounds[1]),
        elo=_finite(elo),
        wins=int((won_N == 1).sum()),
        ties=int((won_N == 0.5).sum()),
        losses=int((won_N == 0).sum()),
        questions=questions,
    )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _intervals(
    battles: Battles, strength_M: Floats, resamples: tuple[Floats, Floats], draw: Draw
) -> tuple[Floats, Floats]:
    """The bounds of each model's win rate; NaN if undefined. Resamples without a battle of the model are left out."""
    rates_RM, influence_QM = resamples
    rate_M = expit(strength_M)
    lows_M, highs_M = np.full(len(rate_M), np.nan), np.full(len(rate_M), np.nan)
    for place, rate in enumerate(rate_M):
        if place == battles.baseline:
            lows_M[place] = highs_M[place] = rate
        elif np.isfinite(rate):
            rates_R = rates_RM[np.isfinite(rates_RM[:, place]), place]
            low, high = _quantiles(rates_R, rate, influence_QM[:, place], draw)
            if _is_steady(battles, place, strength_M, influence_QM, draw):
                least, most = _unvaried(battles, place, rate, draw.level)
                low, high = min(low, least), max(high, most)
            lows_M[place], highs_M[place] = low, high
    return lows_M, highs_M


def _quantiles(rates_R: Floats, rate: float, influence_Q: Floats, draw: Draw) -> tuple[float, float]:
    """The bounds from resampled rates; the rate itself if they do not vary."""
    if not len(rates_R) or np.ptp(rates_R) < 1e-12:
        return rate, rate
    tails = ((1 - draw.level) / 2, (1 + draw.level) / 2)
    if draw.by == "question":
        tails = bca_tails(rates_R - rate, influence_Q, draw.level)
    low, high = np.quantile(rates_R, tails)
    return float(low), float(high)


def _is_steady(battles: Battles, place: int, strength_M: Floats, influence_QM: Floats, draw: Draw) -> bool:
    """Whether resampling says nothing about a model: it won or lost everything, it has one question (or row) only, or
    all its questions had the result that the strengths predict. How much resampled rates vary does not tell: another
    model's battles change how often a question is drawn."""
    if np.isinf(strength_M[place]) or np.abs(influence_QM[:, place]).max() <= NOTHING:
        return True
    own_N = (battles.first_N == place) | (battles.second_N == place)
    question_N = battles.question_N if draw.by == "question" else None
    unit_N = np.arange(int(own_N.sum())) if question_N is None else question_N[own_N]
    if len(np.unique(unit_N)) == 1:
        return True
    first_N, second_N = battles.first_N[own_N], battles.second_N[own_N]
    residual_N = battles.share_N[own_N] - expit(strength_M[first_N] - strength_M[second_N])
    won_N = np.where(first_N == place, residual_N, -residual_N) * battles.weight_N[own_N]
    return bool(np.abs(np.bincount(unit_N, weights=won_N)).max() <= NOTHING)


def _unvaried(battles: Battles, place: int, rate: float, level: float) -> tuple[float, float]:
    """The bounds of a model whose questions all had the same result. They assume the largest share of unseen questions
    that the exact bound for 0 of n allows, all lost or all won. Without question ids, rows count as questions."""
    own_N = (battles.first_N == place) | (battles.second_N == place)
    count = int(own_N.sum()) if battles.question_N is None else len(np.unique(battles.question_N[own_N]))
    unseen = unseen_share(count, level)
    return rate * (1 - unseen), rate + unseen * (1 - rate)
