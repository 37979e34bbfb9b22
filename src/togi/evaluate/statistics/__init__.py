"""The statistics of all benchmarks. Intervals are two-sided.

- a share of independent rows: `wilson`, which keeps its coverage near 0 and 1, where a bootstrap is too narrow; of
  repeated questions `clustered_share`; the unweighted mean of several `mean_of_shares`
- a mean of grades: `mean_interval`, and with repeated questions `cluster_mean` (Student's t)
- a mean or a share over rounds of the same questions: `mean_of_rounds`, `share_of_rounds`
- a ratio of two means: `ratio_of_means` (Fieller)
- a difference on the same prompts: `Bootstrap.difference`; of shares `Bootstrap.share_difference`, which for right and
  wrong answers is `adjusted_wald`; `mcnemar`; `effect_size`
- any other statistic of prompts: `Bootstrap` over the pseudo-values of a `Jackknife`
- models in battles: `bradley_terry`, `resampled` by question, because games of one question are not independent
"""

from togi.evaluate.statistics.bootstrap import Bootstrap, Jackknife, bca_tails, by_cluster, by_prompt
from togi.evaluate.statistics.bradley_terry import (
    Battles,
    By,
    Fit,
    bradley_terry,
    influence,
    numbered,
    resampled,
    row_counts,
)
from togi.evaluate.statistics.interval import Floats, Interval, unseen_share
from togi.evaluate.statistics.logistic import Regression
from togi.evaluate.statistics.means import cluster_mean, mean_interval, mean_of_means, ratio_of_means
from togi.evaluate.statistics.paired import McNemar, effect_size, mcnemar
from togi.evaluate.statistics.rounds import mean_of_rounds, round_means, share_of_rounds
from togi.evaluate.statistics.shares import (
    adjusted_wald,
    clustered_share,
    effective_rows,
    mean_of_shares,
    right_or_wrong,
    wilson,
    with_two_rows,
)

__all__ = [
    "Battles",
    "Bootstrap",
    "By",
    "Fit",
    "Floats",
    "Interval",
    "Jackknife",
    "McNemar",
    "Regression",
    "adjusted_wald",
    "bca_tails",
    "bradley_terry",
    "by_cluster",
    "by_prompt",
    "cluster_mean",
    "clustered_share",
    "effect_size",
    "effective_rows",
    "influence",
    "mcnemar",
    "mean_interval",
    "mean_of_means",
    "mean_of_rounds",
    "mean_of_shares",
    "numbered",
    "ratio_of_means",
    "resampled",
    "right_or_wrong",
    "round_means",
    "row_counts",
    "share_of_rounds",
    "unseen_share",
    "wilson",
    "with_two_rows",
]
