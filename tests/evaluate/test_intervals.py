"""Intervals of means, shares and ratios: against scipy, and how often they contain the true value."""

import json

import numpy as np
import pytest
from scipy import stats
from stored_verdicts import SHARED, needs_shared

from togi.core.errors import InputError
from togi.evaluate.statistics import (
    Bootstrap,
    adjusted_wald,
    cluster_mean,
    effect_size,
    mcnemar,
    mean_interval,
    mean_of_means,
    mean_of_shares,
    ratio_of_means,
    wilson,
)

DRAWS, SIZES = 2000, (30, 100, 500)
GRADES = np.repeat(np.arange(1.0, 11.0), (9, 5, 4, 3, 5, 4, 6, 16, 20, 28))  # skewed, as grades are


@pytest.mark.parametrize(("hits", "count"), [(0, 30), (1, 30), (15, 30), (30, 30), (697, 999)])
def test_wilson_is_scipys(hits, count):
    theirs = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    ours = wilson(hits, count)
    assert (ours.low, ours.mean, ours.high) == pytest.approx((theirs.low, hits / count, theirs.high), abs=1e-12)


@pytest.mark.parametrize(("hits", "count"), [(0, 0), (3, 2), (-1, 4)])
def test_a_share_of_what_is_not_there_is_refused(hits, count):
    with pytest.raises(InputError, match="at least one row"):
        wilson(hits, count)


def test_the_interval_of_a_mean_is_students():
    values = np.random.default_rng(1).choice(GRADES, 40)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    ours = mean_interval(values)
    assert ours is not None
    assert (ours.low, ours.high, ours.n) == pytest.approx((theirs.low, theirs.high, 40), abs=1e-12)


@pytest.mark.parametrize("values", [[], [3.0], [7.0, 7.0, 7.0], [0.1] * 50])
def test_values_that_say_nothing_of_their_spread_have_no_interval(values):
    assert mean_interval(values) is None
    assert effect_size(np.zeros(len(values)), values) is None


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="1 of 3 values are not finite"):
        mean_interval([1.0, np.nan, 2.0])


def test_repeated_answers_to_one_question_do_not_narrow_the_interval():
    values = np.random.default_rng(2).choice(GRADES, 40)
    once, thrice = mean_interval(values), cluster_mean(np.repeat(values, 3), np.repeat(np.arange(40), 3))
    assert once is not None and thrice is not None
    assert (thrice.mean, thrice.low, thrice.high, thrice.n) == pytest.approx((once.mean, once.low, once.high, 40))


def test_the_mean_of_means_with_one_part_is_that_part_and_of_two_as_scipys_welch():
    generator = np.random.default_rng(3)
    one, other = generator.normal(5, 1, 30), generator.normal(7, 3, 12)
    alone = mean_of_means([(one.mean(), mean_interval(one))])
    both = mean_of_means([(one.mean(), mean_interval(one)), (other.mean(), mean_interval(other))])
    welch = stats.ttest_ind(one, -other, equal_var=False).confidence_interval(0.95)  # one - (-other) = their sum
    assert alone == mean_interval(one)
    assert both is not None
    assert (both.low, both.high) == pytest.approx((welch.low / 2, welch.high / 2))
    assert mean_of_means([(1.0, None), (2.0, mean_interval(one))]) is None


@pytest.mark.parametrize("paired", [True, False])
def test_a_ratio_is_left_undefined_where_its_lower_part_may_be_zero(paired):
    assert ratio_of_means([1.0, 2.0, 3.0], [-1.0, 0.5, 1.0], paired=paired) is None
    assert ratio_of_means([1.0], [2.0], paired=paired) is None
    assert ratio_of_means([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], paired=paired) is None


def test_the_bounds_of_a_paired_ratio_are_where_its_difference_is_just_not_told_from_zero():
    generator = np.random.default_rng(4)
    above, below = generator.choice(GRADES, 50), generator.choice(GRADES, 50)
    found = ratio_of_means(above, below, paired=True)
    assert found is not None
    for bound in (found.low, found.high):
        assert stats.ttest_1samp(above - bound * below, 0.0).pvalue == pytest.approx(0.05)


def test_mcnemar_is_the_exact_test_on_the_rows_that_differ():
    first, second = [True] * 12 + [False] * 8 + [True] * 5, [False] * 12 + [True] * 3 + [False] * 5 + [True] * 5
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (12, 3)
    assert found.p == pytest.approx(stats.binomtest(3, 15).pvalue)
    assert mcnemar(first, first).p == 1.0


def test_effect_size_has_hedges_correction():
    base, policy = np.arange(10.0), np.arange(10.0) + np.tile([0.0, 1.0], 5)
    plain = 0.5 / np.std([0, 1] * 5, ddof=1)
    assert effect_size(base, policy) == pytest.approx(plain * (1 - 3 / (4 * 9 - 1)), rel=1e-3)


# --- coverage ---------------------------------------------------------------------------------------------------------


def _held(found, truth):
    return sum(one is not None and one.low <= truth <= one.high for one in found) / len(found)


@pytest.mark.parametrize("count", SIZES)
def test_intervals_of_mean_grades_cover(count):
    drawn = np.random.default_rng(count).choice(GRADES, (DRAWS, count))
    assert _held([mean_interval(values) for values in drawn], GRADES.mean()) >= 0.93


@pytest.mark.parametrize("count", SIZES)
def test_intervals_of_rare_shares_cover_where_a_percentile_bootstrap_does_not(count):
    generator = np.random.default_rng(count)
    truths = generator.uniform(0.01, 0.04, DRAWS)
    hits = generator.binomial(count, truths)
    ours = sum((found := wilson(h, count)).low <= p <= found.high for h, p in zip(hits, truths, strict=True)) / DRAWS
    assert ours >= 0.93
    if count == 30:  # without a hit, all resampled shares are 0: an interval without width
        resamples = generator.binomial(count, np.repeat(hits[:, None] / count, 400, axis=1)) / count
        low, high = np.quantile(resamples, [0.025, 0.975], axis=1)
        assert np.mean((low <= truths) & (truths <= high)) < 0.7


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize(("lost", "gained"), [(0.02, 0.05), (0.05, 0.10), (0.03, 0.03), (0.01, 0.01)])
def test_differences_of_right_and_wrong_answers_cover_and_raise_few_false_alarms(lost, gained, count, repeats):
    """Few answers differ. With repeats, the answers to a question agree more often than by chance."""
    generator = np.random.default_rng(count)
    chances = [lost, gained, 1 - lost - gained]
    alike = generator.choice([-1, 1, 0], p=chances, size=(DRAWS // 4, count, 1))
    alone = generator.choice([-1, 1, 0], p=chances, size=(DRAWS // 4, count, repeats))
    drawn = np.where(generator.random(alone.shape) < 0.6, alike, alone).reshape(len(alike), -1)
    owners = np.repeat(np.arange(count), repeats).tolist()
    found = [adjusted_wald(difference, owners) for difference in drawn]
    assert _held(found, gained - lost) >= 0.93
    if lost == gained:
        assert np.mean([one.excludes_zero for one in found]) <= 0.07


MACRO = {
    "3 of 30, mixed": ([18, 6, 3, 3], [0.9, 0.6, 0.5, 0.95]),
    "3 of 30, high": ([18, 6, 3, 3], [0.95] * 4),
    "100 rows, mixed": ([60, 20, 10, 10], [0.9, 0.6, 0.5, 0.95]),
    "ten of three": ([3] * 10, [0.9] * 10),
    "ten of three, higher": ([3] * 10, [0.97] * 10),
    "ten of three, two weak": ([3] * 10, [0.97] * 8 + [0.3, 0.5]),
    "nine of one": ([91] + [1] * 9, [0.9] * 10),
    "nine of one, higher": ([91] + [1] * 9, [0.97] * 10),
    "a weak one of three": ([3, 100, 100, 100], [0.5, 1.0, 1.0, 1.0]),
    "a hundred and three": ([100, 3], [0.99, 0.5]),
}
"""Sizes of categories, and how often each is right."""


@pytest.mark.parametrize(("sizes", "shares"), MACRO.values(), ids=MACRO.keys())
def test_intervals_of_unweighted_means_of_shares_cover(sizes, shares):
    generator = np.random.default_rng(sum(sizes))
    rows = [list(range(size)) for size in sizes]
    found = []
    for _ in range(DRAWS):
        drawn = [(generator.random(size) < p).astype(float) for size, p in zip(sizes, shares, strict=True)]
        found.append(mean_of_shares(drawn, rows))
    assert _held(found, np.mean(shares)) >= 0.93


@pytest.mark.parametrize(
    ("sizes", "hits"), [([60, 20, 10, 10], [54, 12, 5, 9]), ([400, 200, 100, 50], [320, 150, 90, 30])]
)
def test_the_mean_of_shares_of_many_rows_is_hardly_wider_than_price_and_bonetts(sizes, hits):
    values = [np.repeat([1.0, 0.0], (right, size - right)) for size, right in zip(sizes, hits, strict=True)]
    ours = mean_of_shares(values, [list(range(size)) for size in sizes])
    near, rows = (np.array(hits) + 0.5) / (np.array(sizes) + 1), np.array(sizes) + 1
    theirs = 2 * stats.norm.ppf(0.975) * np.sqrt((near * (1 - near) / rows).sum()) / len(sizes)
    assert theirs < ours.high - ours.low < 1.1 * theirs


def test_the_mean_of_shares_counts_repeated_questions_once_and_needs_rows():
    one, other = [1.0, 0.0, 1.0, 1.0, 0.0] * 6, [1.0]
    once = mean_of_shares([one, other], [list(range(30)), [0]])
    twice = mean_of_shares([np.repeat(one, 2), [1.0, 1.0]], [np.repeat(np.arange(30), 2).tolist(), [0, 0]])
    assert (twice.mean, twice.low, twice.high, twice.n) == pytest.approx((0.8, once.low, once.high, 31), abs=2e-3)
    assert mean_of_shares([other], [[0]]).low < 0.5
    with pytest.raises(InputError, match="a share has no rows"):
        mean_of_shares([one, []], [list(range(30)), []])


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("count", SIZES)
def test_intervals_of_ratios_cover(count, paired):
    generator = np.random.default_rng(count)
    above, below = (generator.choice(GRADES, (DRAWS, count)) for _ in range(2))
    found = [ratio_of_means(one, other, paired=paired) for one, other in zip(above, below, strict=True)]
    assert _held(found, 1.0) >= 0.93


def test_a_percentile_bootstrap_of_few_grades_is_narrower_than_the_interval_in_use():
    values = np.random.default_rng(5).choice(GRADES, 12)
    plain, ours = Bootstrap(seed=1, method="percentile").mean(values), mean_interval(values)
    assert ours is not None
    assert plain.high - plain.low < 0.95 * (ours.high - ours.low)


@needs_shared
@pytest.mark.parametrize("count", SIZES)
def test_intervals_of_real_grades_cover(count):
    lines = (SHARED / "shaberi_turbo" / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    grades = np.array([score for line in lines if (score := json.loads(line)["score"]) is not None])
    generator = np.random.default_rng(count)
    drawn, others = (generator.choice(grades, (DRAWS, count)) for _ in range(2))
    assert _held([mean_interval(values) for values in drawn], grades.mean()) >= 0.93
    ratios = [ratio_of_means(one, other, paired=False) for one, other in zip(drawn, others, strict=True)]
    assert _held(ratios, 1.0) >= 0.93
