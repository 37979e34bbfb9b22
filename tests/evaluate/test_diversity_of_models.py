"""The diversity of several models at once: which is less diverse, what is compared, and which numbers are undefined."""

import random

import numpy as np
import pytest

from togi.core.errors import InputError
from togi.data.features import HashedNgrams
from togi.evaluate.benchmarks.diversity import Measure, measure
from togi.evaluate.benchmarks.table import measured
from togi.evaluate.statistics import Bootstrap

TALE = "the a cat dog sat ran on under mat rug quickly home then river stone bridge night"
WORDS = TALE.split()


def _answers(seed: int, words=WORDS, count: int = 36, joiner: str = " ") -> list[str]:
    draw = random.Random(seed)
    return [joiner.join(draw.choices(words, k=draw.randint(5, 14))) for _ in range(count)]


def _how(**settings) -> Measure:
    return Measure(samples=3, units="words", embedder=HashedNgrams(width=64), seed=1, **settings)


def _mean(values) -> float:
    return float(np.nanmean(values))


def test_a_model_that_answers_alike_is_the_less_diverse_in_every_column():
    few = _answers(1, WORDS[:4])
    found = measure({"base": _answers(0), "dull": few}, _how())
    assert len(found.columns) == 11
    for column in found.columns:
        base, dull = (_mean(found.values[name][column.name]) for name in ("base", "dull"))
        if column.name != "answer entropy (bits)":  # the same for both: all answers differ
            assert (dull < base) is column.higher_is_better, column.name
    assert _mean(found.alike["dull", "dull"]) > _mean(found.alike["base", "base"])


def test_equal_answers_have_the_smallest_numbers():
    found = measure({"one": ["the same old answer again"] * 36}, _how()).values["one"]
    means = {name: _mean(values) for name, values in found.items()}
    assert means["Vendi score"] == pytest.approx(1) and means["Vendi score per prompt"] == pytest.approx(1)
    assert means["self-BLEU"] == pytest.approx(100) and means["self-BLEU per prompt"] == pytest.approx(100)
    assert means["spread per prompt"] == pytest.approx(0, abs=1e-9) and means["homogenisation"] == pytest.approx(1)
    assert means["answer entropy (bits)"] == 0


def test_two_models_that_answer_alike_are_like_each_other_and_a_third_is_not():
    same = _answers(0)
    found = measure({"a": same, "b": same, "c": _answers(9, ["zebra", "quartz", "jukebox", "vex"])}, _how(cut=False))
    assert _mean(found.alike["a", "b"]) > _mean(found.alike["a", "c"]) + 0.2
    np.testing.assert_allclose(found.alike["a", "c"], found.alike["c", "a"])
    np.testing.assert_allclose(found.values["a"]["Vendi score"], found.values["b"]["Vendi score"])


def test_answers_are_cut_to_one_length_so_that_rambling_on_changes_nothing():
    short = _answers(0)
    long = [f"{text} and so on and so on and so on" for text in short]
    cut, whole = (measure({"a": short, "b": long}, _how(cut=cut)).values for cut in (True, False))
    for name in ("distinct-2", "self-BLEU", "spread per prompt"):
        np.testing.assert_allclose(cut["a"][name], cut["b"][name])
        assert _mean(whole["a"][name]) != pytest.approx(_mean(whole["b"][name]))


def test_an_answer_to_which_one_models_counterpart_is_empty_is_compared_nowhere():
    with_gap = _answers(0)
    with_gap[3] = with_gap[4] = with_gap[5] = with_gap[7] = ""
    found = measure({"a": with_gap, "b": _answers(1)}, _how())
    assert found.left_out == 4
    for values in found.values.values():
        assert np.isnan(values["spread per prompt"][1]) and np.isnan(values["Vendi score"][1])
        assert np.isfinite(np.delete(values["Vendi score"], 1)).all()
        assert np.isfinite(values["self-BLEU per prompt"][2])
    assert found.values["a"]["answer entropy (bits)"][1] == 0


def test_beyond_the_draw_self_bleu_reads_the_same_prompts_of_all_models():
    found = measure({"a": _answers(0), "b": _answers(1)}, _how(draw=5))
    read = [np.isfinite(values["self-BLEU"]) for values in found.values.values()]
    assert found.draw == 5 == read[0].sum()
    np.testing.assert_array_equal(read[0], read[1])


def test_characters_are_the_units_of_japanese():
    answers = _answers(0, list("川は流れて海へ行くのです。"), joiner="")
    how = Measure(samples=3, units="characters", embedder=HashedNgrams(width=64), seed=1)
    found = measure({"ja": answers}, how).values["ja"]
    assert 0 < _mean(found["distinct-1"]) < 0.2 < _mean(found["distinct-3"])


def test_wordings_of_a_question_have_a_column_where_questions_are_named():
    texts = {"a": _answers(0)}
    found = measure(texts, _how(questions=["q", "q", *range(10)]))
    values = found.values["a"]["spread over wordings"]
    assert np.isfinite(values).tolist() == [True, *[False] * 11] and found.columns[5].name == "spread over wordings"


@pytest.mark.parametrize(
    ("answers", "samples", "defined"),
    [
        (["one answer alone"], 1, {"distinct-1", "distinct-2", "distinct-3"}),
        (["", ""], 2, {"answer entropy (bits)"}),
        (["a b c", "a b d"], 2, None),
        (["a b c d", "e f g h"], 1, {"distinct-1", "distinct-2", "distinct-3", "Vendi score", "homogenisation"}),
    ],
    ids=["one answer", "empty answers", "one prompt", "two prompts"],
)
def test_what_has_no_number_has_none_and_is_no_error(answers, samples, defined):
    how = Measure(samples=samples, units="words", embedder=HashedNgrams(width=64), seed=1)
    found = measure({"a": answers}, how).values["a"]
    numbers = {name for name, values in found.items() if np.isfinite(values).any()}
    if defined is None:
        across = {"Vendi score", "homogenisation", "self-BLEU"}
        defined = set(found) - across
    assert numbers == defined


def test_different_numbers_of_answers_are_refused():
    with pytest.raises(InputError, match="cannot be compared"):
        measure({"a": ["x"] * 6, "b": ["x"] * 3}, _how())


@pytest.mark.parametrize(
    ("mostly", "name", "end"), [("dull", "Vendi score per prompt", 1), ("lively", "answer entropy (bits)", np.log2(3))]
)
def test_intervals_stay_within_what_so_many_answers_can_reach(mostly, name, end):
    """All but one prompt are at one end of the range: Student's t alone would leave it."""
    said = {"dull": ["the same old answer"] * 3, "lively": ["zebra quartz", "mellow river", "a bold plan"]}
    texts = said[mostly] * 5 + [text for each in said if each != mostly for text in said[each]]
    found = measure({"a": texts}, _how())
    values = {"a": {column: own_P.tolist() for column, own_P in found.values["a"].items()}}
    cells = measured(found.columns, values, Bootstrap(seed=1, resamples=100))["a"]
    ranges = {"Vendi score per prompt": (1, 3), "Vendi score": (1, 6), "answer entropy (bits)": (0, np.log2(3))}
    for column, (least, most) in ranges.items():
        assert least <= cells[column].low < cells[column].value < cells[column].high <= most, column
    assert end in (cells[name].low, cells[name].high)
