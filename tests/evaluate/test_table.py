"""The before/after table."""

import numpy as np
import pytest

from togi.core.errors import InputError
from togi.evaluate.statistics import Bootstrap, Jackknife
from togi.evaluate.table import Metric, Row, compare, compare_jackknife, rows_to_json, single


def test_rows_survive_json_with_and_without_a_counterpart():
    bootstrap = Bootstrap(seed=1)
    rows = [
        compare(Metric(name="terminator rate", higher_is_better=True), [0, 0, 1, 0], [1, 1, 1, 0], bootstrap),
        single(Metric(name="scorer accuracy", note="held-out pairs"), bootstrap.mean([1, 1, 0])),
    ]
    assert [Row.from_json(row) for row in rows_to_json(rows)] == rows
    assert rows[0].difference.mean == 0.5


def test_only_a_share_has_the_exact_bound_where_all_values_are_equal():
    for share, high in ((True, 1 - 0.025 ** (1 / 8)), (False, 0.0)):
        row = compare(Metric(name="closed", share=share), [0.0] * 8, [0.0] * 7 + [1.0], Bootstrap(seed=1))
        assert row.base is not None and (row.base.low, row.base.high) == (0.0, pytest.approx(high))
        assert row.policy == Bootstrap(seed=1).mean([0.0] * 7 + [1.0])


def test_a_row_of_pseudo_values_is_clipped_to_the_range_of_its_metric():
    near_one = Jackknife(value=0.98, without_P=np.array([0.98] * 7 + [0.99, 0.95]))
    low = Jackknife(value=0.02, without_P=np.array([0.02] * 7 + [0.01, 0.05]))
    row = compare_jackknife(Metric(name="distinct-2", most=1.0), low, near_one, Bootstrap(seed=1))
    assert row.base is not None and row.difference is not None
    assert (row.base.low, row.policy.high, row.difference.high) == (0.0, 1.0, 1.0)
    free = compare_jackknife(Metric(name="other"), low, near_one, Bootstrap(seed=1))
    assert free.policy.high > 1.0 and free.difference is not None and free.difference.high > 1.0


def test_only_a_share_has_a_difference_with_width_where_all_prompts_agree():
    reach = 1.959964 * 2**0.5 / 10  # two more rows, one of -1 and one of 1
    for share, low in ((True, -reach), (False, 0.0)):
        row = compare(Metric(name="closed", share=share), [0.0] * 8, [0.0] * 8, Bootstrap(seed=1))
        assert row.difference is not None
        assert (row.difference.low, row.difference.high) == pytest.approx((low, -low), abs=1e-6)


def test_several_answers_to_a_prompt_count_as_their_effective_number():
    closed, bootstrap = Metric(name="closed", share=True), Bootstrap(seed=1)
    base, policy = [0.0, 1.0, 1.0, 0.0] * 10, [1.0, 1.0, 0.0, 0.0] * 10
    once = compare(closed, base, policy, bootstrap)
    twice = compare(closed, np.repeat(base, 2), np.repeat(policy, 2), bootstrap, np.repeat(np.arange(40), 2).tolist())
    assert (once.base, once.policy) == (twice.base, twice.policy)
    assert once.difference is not None and twice.difference is not None
    assert twice.difference.low == pytest.approx(once.difference.low, abs=0.01)
    mixed = compare(closed, [0, 1] * 40, [0, 0, 1, 1] * 20, bootstrap, np.repeat(np.arange(40), 2).tolist())
    assert mixed.difference is not None and mixed.difference.mean == 0.0 and mixed.difference.n == 40


def test_a_row_with_a_missing_field_is_refused_by_name():
    row = rows_to_json([single(Metric(name="x"), Bootstrap(seed=1).mean([1, 2]))])[0]
    del row["note"]
    with pytest.raises(InputError, match="note"):
        Row.from_json(row)
