"""The table of the benchmark `reward_kl`: every policy is a point, and best-of-n from its base is the line to beat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from togi.evaluate.benchmarks.table import Cell, Cells, Part, Plot, Table, Values, cell_of, mean_cell, measured, paired
from togi.evaluate.frontier import Divergence, best_of_n, best_of_n_kl, divergence, doublings
from togi.evaluate.statistics import Bootstrap, Floats
from togi.evaluate.table import Metric

REWARD = Metric(name="reward", higher_is_better=True, note="mean score of the answers, without terminator")
KL = Metric(
    name="KL (nats)", note="from the baseline, per whole answer: mean of log p(model) - log p(baseline) over the "
    "model's sampled answers; unbiased, so it may be below 0 with few answers",
)  # fmt: skip
KL_TOKEN = Metric(name="KL (nats per token)", note="the same over all tokens")
EQUAL = Metric(
    name="as good as best of", note="smallest n for which the baseline's best of n reaches this reward; best of n "
    "costs log n - (n - 1)/n nats and no training",
)  # fmt: skip
BEST = "best of n of the baseline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A policy's sampled answers: their scores, their log-probabilities under the policy and under the baseline (nats,
    whole answers), and their numbers of tokens; each (P, K)."""

    scores_PK: Floats
    own_PK: Floats
    base_PK: Floats
    tokens_PK: np.ndarray


def frontier_table(
    name: str,
    baseline: str,
    base_PM: Floats,
    drawn: Mapping[str, Drawn],
    bootstrap: Bootstrap,
    prompts: Sequence[str],
) -> Table:
    """The table of all policies and the baseline, whose M answers to each prompt have the scores `base_PM`. Raises
    InputError for log-probabilities that are not finite."""
    best = {f"best of {n}": best_of_n(base_PM, n) for n in doublings(base_PM.shape[1])}
    zero = [0.0] * len(prompts)
    values: Values = {baseline: {REWARD.name: base_PM.mean(axis=1).tolist(), KL.name: zero}}
    token: dict[str, Cell] = {baseline: Cell(value=0.0, n=len(prompts))}
    for policy, own in drawn.items():
        found = _divergence(own, prompts, bootstrap.level)
        values = {
            **values,
            policy: {REWARD.name: own.scores_PK.mean(axis=1).tolist(), KL.name: found.per_prompt_P.tolist()},
        }
        token[policy] = cell_of(found.token_interval, value=found.token, n=len(prompts))
    columns = [REWARD, KL]
    cells: Cells = {
        subject: {**row, KL_TOKEN.name: token[subject], EQUAL.name: _equal(row[REWARD.name], base_PM)}
        for subject, row in measured(columns, values, bootstrap).items()
    }
    return Table(
        benchmark=name,
        columns=[REWARD, KL, KL_TOKEN, EQUAL],
        cells=cells,
        rows=len(prompts),
        baseline=baseline,
        differences=paired([REWARD], values, baseline, bootstrap),
        parts=[_best(best, bootstrap)],
        items=prompts,
        values=values,
        plots=[Plot(kind="scatter", columns=(KL.name, REWARD.name), part=BEST)],
        level=bootstrap.level,
    )


def _divergence(own: Drawn, prompts: Sequence[str], level: float) -> Divergence:
    answers = own.scores_PK.shape[1]
    owners = [prompt for prompt in prompts for _ in range(answers)]
    flat = own.own_PK.ravel().tolist(), own.base_PK.ravel().tolist(), own.tokens_PK.ravel().tolist()
    return divergence(*flat, owners, level)


def _equal(reward: Cell, base_PM: Floats) -> Cell:
    """The smallest n for which the baseline's best of n reaches this reward; empty if the sampled answers are too
    few."""
    answers = base_PM.shape[1]
    for n in range(1, answers + 1):
        if reward.value is not None and float(best_of_n(base_PM, n).mean()) >= reward.value - 1e-12:
            return Cell(value=float(n), n=reward.n)
    return Cell(n=reward.n, note=f"more than {answers}")


def _best(best: Mapping[str, Floats], bootstrap: Bootstrap) -> Part:
    """The line: reward and KL of the best of n answers of the baseline."""
    cells = {
        title: {
            KL.name: Cell(value=best_of_n_kl(int(title.rsplit(" ", 1)[1])), n=len(score_P)),
            REWARD.name: mean_cell(REWARD, score_P.tolist(), bootstrap),
        }
        for title, score_P in best.items()
    }
    note = (
        "the expected best over all choices of n of the baseline's answers; its KL is log n - (n - 1)/n, "
        "an upper bound if answers repeat"
    )
    return Part(title=BEST, columns=[KL, REWARD], cells=cells, note=note)
