"""Intervals: against scipy's bootstrap, coverage, constant data, pairing."""

import numpy as np
import pytest
from scipy import stats

from togi.core.errors import InputError
from togi.evaluate.accuracy import pair_accuracy, shuffled_labels
from togi.evaluate.statistics import Bootstrap, Interval, Jackknife, bca_tails, by_prompt


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_interval_agrees_with_scipy(method):
    values = np.random.default_rng(3).lognormal(sigma=1.0, size=60)
    ours = Bootstrap(seed=5, method=method).mean(values)
    theirs = stats.bootstrap(
        (values,), np.mean, method={"bca": "BCa", "percentile": "percentile"}[method], n_resamples=10_000, rng=7
    ).confidence_interval
    spread = theirs.high - theirs.low
    assert ours.mean == pytest.approx(values.mean())
    assert abs(ours.low - theirs.low) < 0.04 * spread
    assert abs(ours.high - theirs.high) < 0.04 * spread


def test_bca_leans_towards_the_long_tail_and_percentile_less():
    values = np.random.default_rng(0).exponential(size=40)
    bca, plain = (Bootstrap(seed=1, method=method).mean(values) for method in ("bca", "percentile"))
    assert bca.high - bca.mean > plain.high - plain.mean


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(11)
    covered = 0
    for trial in range(200):
        interval = Bootstrap(seed=trial, resamples=1000, level=0.9).mean(generator.normal(2.0, 1.0, size=50))
        covered += interval.low <= 2.0 <= interval.high
    assert 0.83 <= covered / 200 <= 0.96


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -3.7e8])
@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_constant_values_give_an_interval_without_width(value, method):
    interval = Bootstrap(seed=0, method=method).mean([value] * 30)
    assert interval.low == interval.mean == interval.high == pytest.approx(value)


@pytest.mark.parametrize("method", ["bca", "percentile"])
@pytest.mark.parametrize("level", [0.9, 0.95])
@pytest.mark.parametrize(("value", "count"), [(1.0, 40), (0.0, 40), (1.0, 2), (0.0, 3), (1.0, 1), (0.0, 1)])
def test_a_share_of_none_or_of_all_has_the_exact_bound(value, count, level, method):
    found = Bootstrap(seed=1, level=level, resamples=100, method=method).share([value] * count)
    exact = stats.binomtest(round(value * count), count).proportion_ci(level, method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-12)
    assert (found.mean, found.n, found.level) == (value, count, level)


def test_half_a_hit_of_one_prompt_bounds_nothing():
    found = Bootstrap(seed=1, resamples=100).share([0.5])
    assert (found.mean, found.low, found.high, found.n) == (0.5, 0.0, 1.0, 1)


@pytest.mark.parametrize("share", [2 / 3, 0.5])
def test_a_share_that_is_the_same_for_all_prompts_has_an_interval_with_width(share):
    """Two prompts with two of three pairs right each say little about a third one."""
    two, many = (Bootstrap(seed=1, resamples=100).share([share] * count) for count in (2, 100))
    assert two.low < 0.2 and two.high > 0.9 and [two.mean, many.mean] == pytest.approx([share, share])
    assert 0.02 < many.high - many.low < 0.05


@pytest.mark.parametrize("values_P", [[1.0] * 39 + [0.0], [0.0, 0.5, 1.0]])
def test_any_other_share_has_the_interval_of_its_mean(values_P):
    bootstrap = Bootstrap(seed=1, resamples=500)
    assert bootstrap.share(values_P) == bootstrap.mean(values_P)


@pytest.mark.parametrize(("base", "policy"), [(0.25, 0.25), (0.25, 0.75), (0.75, 0.25)])
def test_the_same_difference_for_all_prompts_is_not_certain(base, policy):
    """The bounds allow for prompts with a difference of -1 or 1 that 40 prompts happened not to include."""
    found = Bootstrap(seed=1, resamples=100).share_difference([base] * 40, [policy] * 40)
    unseen = stats.binomtest(0, 40).proportion_ci(0.95, method="exact").high
    mean = policy - base
    assert found.mean == mean
    assert (found.low, found.high) == pytest.approx(
        ((1 - unseen) * mean - unseen, (1 - unseen) * mean + unseen), abs=1e-12
    )
    assert -1 <= found.low < found.high <= 1


def test_any_other_difference_of_values_between_has_the_interval_of_its_mean():
    bootstrap, base, policy = Bootstrap(seed=1, resamples=500), [0.25] * 20, [0.75] * 19 + [0.25]
    assert bootstrap.share_difference(base, policy) == bootstrap.difference(base, policy)
    twice = bootstrap.share_difference(np.repeat(base, 2), np.repeat(policy, 2), np.repeat(np.arange(20), 2).tolist())
    once = bootstrap.difference(base, policy)
    assert (twice.low, twice.high, twice.n) == pytest.approx((once.low, once.high, 20))


def test_the_difference_of_right_and_wrong_answers_has_two_more_rows():
    """Bonett and Price 2012: of 50 rows 12 are gained and 4 are lost."""
    base, policy = [0.0] * 12 + [1.0] * 4 + [1.0] * 34, [1.0] * 12 + [0.0] * 4 + [1.0] * 34
    found = Bootstrap(seed=1, resamples=100).share_difference(base, policy)
    gained, lost = 13 / 52, 5 / 52
    half = stats.norm.ppf(0.975) * np.sqrt((gained + lost - (gained - lost) ** 2) / 52)
    assert (found.mean, found.n) == (8 / 50, 50)
    assert (found.low, found.high) == pytest.approx((gained - lost - half, gained - lost + half))


@pytest.mark.parametrize(("base", "policy"), [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_the_same_right_or_wrong_answer_for_all_prompts_is_not_certain(base, policy):
    found = Bootstrap(seed=1, resamples=100).share_difference([base] * 40, [policy] * 40)
    assert found.mean == policy - base
    assert -1 <= found.low <= found.mean <= found.high <= 1 and 0.05 < found.high - found.low < 0.2


def test_rows_of_one_owner_count_as_their_effective_number():
    generator = np.random.default_rng(3)
    base, policy = generator.integers(0, 2, 60), generator.integers(0, 2, 60)
    owners = np.repeat(np.arange(60), 3).tolist()
    bootstrap = Bootstrap(seed=1, resamples=100)
    once = bootstrap.share_difference(base, policy)
    thrice = bootstrap.share_difference(np.repeat(base, 3), np.repeat(policy, 3), owners)
    apart = bootstrap.share_difference(np.repeat(base, 3), np.repeat(policy, 3))
    assert (thrice.low, thrice.high, thrice.n) == pytest.approx((once.low, once.high, 60), abs=2e-3)
    assert apart.high - apart.low < 0.65 * (thrice.high - thrice.low)


def test_an_accuracy_of_all_pairs_is_not_certain():
    found = pair_accuracy([2.0] * 40, [1.0] * 40, Bootstrap(seed=1, resamples=100))
    assert (found.interval.low, found.interval.high) == (pytest.approx(0.025 ** (1 / 40)), 1.0)


def test_a_bound_that_is_zero_but_for_a_rounding_error_is_zero():
    """Of 100 prompts one is lost. The upper quantile is that of resamples without it: 0, which sums to -1.7e-18."""
    found = Bootstrap(seed=1, resamples=1000).mean([0.0] * 99 + [-1.0])
    assert found.high == 0.0 and not found.excludes_zero
    tiny = Bootstrap(seed=1, resamples=2000).mean([1e-15, 2e-15, 3e-15])
    assert tiny.low > 0  # small values are no rounding errors


def test_influences_that_are_all_zero_or_very_small_have_no_skew():
    shift = np.linspace(-1, 1, 201)
    assert bca_tails(shift, np.zeros(5), 0.95) == pytest.approx((0.025, 0.975))
    skewed = np.array([3.0, -1.0, -1.0, -1.0])
    assert bca_tails(shift, 1e-200 * skewed, 0.95) == pytest.approx(bca_tails(shift, skewed, 0.95))


def test_one_value_apart_from_the_rest_is_no_error():
    interval = Bootstrap(seed=0).mean([1.0] * 99 + [0.0])
    assert interval.low < interval.mean <= interval.high <= 1.0


def test_the_paired_difference_is_narrower_than_two_unpaired_intervals():
    generator = np.random.default_rng(2)
    prompt = generator.normal(size=80) * 5
    base, policy = prompt + generator.normal(size=80), prompt + 1 + generator.normal(size=80)
    bootstrap = Bootstrap(seed=4)
    difference = bootstrap.difference(base, policy)
    assert difference.excludes_zero
    assert difference.high - difference.low < 0.5 * (bootstrap.mean(base).high - bootstrap.mean(base).low)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    values = np.random.default_rng(0).normal(size=300)
    assert Bootstrap(seed=9).mean(values) == Bootstrap(seed=9).mean(values)
    assert Bootstrap(seed=9).mean(values) != Bootstrap(seed=10).mean(values)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: b.mean([1.0]), "2 prompts"),
        (lambda b: b.mean([1.0, float("nan")]), "not finite"),
        (lambda b: b.difference([1.0, 2.0], [1.0, 2.0, 3.0]), "cannot be paired"),
    ],
)
def test_values_that_give_no_interval_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(Bootstrap(seed=0))


@pytest.mark.parametrize("settings", [{"level": 95}, {"resamples": 3}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InputError, match="bootstrap"):
        Bootstrap(seed=0, **settings)


def test_pseudo_values_of_a_mean_are_the_values():
    values = np.random.default_rng(0).normal(size=20)
    jackknife = Jackknife(value=values.mean(), without_P=(values.sum() - values) / 19)
    np.testing.assert_allclose(jackknife.pseudo_P, values, atol=1e-12)


def test_several_answers_to_a_prompt_count_once():
    assert by_prompt([1.0, 3.0, 10.0], ["a", "a", "b"]).tolist() == [2.0, 10.0]


def test_an_interval_survives_json():
    interval = Interval(mean=0.5, low=0.25, high=0.75, level=0.95, n=8)
    assert Interval.from_json(interval.to_json()) == interval


def test_a_tie_is_not_correct_and_is_counted():
    accuracy = pair_accuracy([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 1.0, 1.0], Bootstrap(seed=0))
    assert accuracy.interval.mean == 0.5
    assert accuracy.ties == 1


def test_shuffled_labels_are_half_and_bring_a_perfect_scorer_to_chance():
    assert shuffled_labels(101, seed=3).sum() == 50
    chosen = np.where(shuffled_labels(200, seed=3), -1.0, 1.0)
    assert pair_accuracy(chosen, -chosen, Bootstrap(seed=3)).interval.mean == 0.5


def test_a_score_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match="1 of 2 pairs"):
        pair_accuracy([1.0, float("inf")], [0.0, 0.0], Bootstrap(seed=0))


def test_pairs_of_one_prompt_are_drawn_together():
    right = np.arange(20) % 3 > 0
    alone = pair_accuracy(right, ~right, Bootstrap(seed=4)).interval
    thrice = np.repeat(right, 3)
    together = pair_accuracy(thrice, ~thrice, Bootstrap(seed=4), np.repeat(np.arange(20), 3).tolist())
    assert together.pairs == 60 and together.interval.n == 20
    assert (together.interval.low, together.interval.high) == pytest.approx((alone.low, alone.high))
    apart = pair_accuracy(thrice, ~thrice, Bootstrap(seed=4)).interval
    assert apart.high - apart.low < 0.7 * (alone.high - alone.low)  # counts three times as many prompts


def test_the_share_is_of_pairs_however_they_are_spread_over_prompts():
    right = np.array([True, True, True, True, False, False])
    found = pair_accuracy(right, ~right, Bootstrap(seed=4), ["a", "a", "a", "a", "b", "c"])
    assert found.interval.mean == 4 / 6 and 0 <= found.interval.low < found.interval.high <= 1
    assert pair_accuracy(right, ~right, Bootstrap(seed=4), ["a"] * 6).interval.n == 6
