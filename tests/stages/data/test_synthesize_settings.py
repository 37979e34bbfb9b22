"""What each method reads, produces and needs; a recipe that contradicts this is refused with a message of its own."""

from typing import ClassVar

import pytest
from pydantic import ValidationError

from togi.stages.cost import Cost, Known
from togi.stages.data.synthesize import STAGE, WAYS, Synthesize

FEW = {"model": "$m", "examples": "$x", "count": 5}
GIVEN = {
    "few_shot": FEW,
    "magpie": {"model": "$m", "count": 5},
    "evolve": {"model": "$m", "input": "$x"},
    "rewrite": {"model": "$m", "input": "$x"},
    "qa": {"model": "$m", "documents": "$x"},
    "grounded": {"model": "$m", "documents": "$x"},
    "cot": {"model": "$m", "input": "$x"},
}


@pytest.mark.parametrize("method", WAYS)
def test_every_method_gives_the_kinds_that_it_declares(method):
    kinds = WAYS[method].kinds
    given = {**GIVEN[method], "method": method}
    assert STAGE.outputs(Synthesize.model_validate(given)) == {"main": kinds[0]}
    more = {"answer_tokens": 8} if method == "magpie" else {}
    for kind in kinds:
        assert STAGE.outputs(Synthesize.model_validate({**given, **more, "kind": kind})) == {"main": kind}
    other = next(kind for kind in ("chats", "prompts") if kind not in kinds or method in ("magpie", "cot"))
    if other not in kinds:
        with pytest.raises(ValidationError, match=f"method: {method} produces"):
            Synthesize.model_validate({**given, "kind": other})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "$m", "count": 5}, "method: few_shot needs `examples`"),
        ({"model": "$m", "method": "qa"}, "method: qa needs `documents`"),
        ({"model": "$m", "method": "magpie"}, "method: magpie needs `count`"),
        ({**FEW, "distractors": 5, "layout": "x"}, r"few_shot does not read layout, distractors; remove it.*examples"),
        ({**FEW, "method": "evolve", "input": "$y"}, "method: evolve does not read examples"),
        ({"model": "$m", "method": "qa", "documents": "$d", "examples": "$x", "prompt": "x"}, "does not read `prompt`"),
        ({**FEW, "max_candidates": 4}, "max_candidates is 4 and count 5: count could never be reached"),
        ({**FEW, "min_chars": 500}, "min_chars is 500 and max_chars 400"),
        ({"model": "$m", "method": "magpie", "count": 1, "kind": "chats"}, "kind: chats needs answers"),
        ({**FEW, "method": "magpi"}, "few_shot"),
    ],
)
def test_what_does_not_fit_the_method_is_refused(given, said):
    with pytest.raises(ValidationError, match=said):
        Synthesize.model_validate(given)


def test_candidates_are_capped_by_the_count_and_the_method():
    few, magpie = Synthesize.model_validate(FEW), Synthesize.model_validate({**GIVEN["magpie"], "method": "magpie"})
    assert (few.most(0), magpie.most(0)) == (5, 20)  # few_shot: `count` drafts, as before
    assert few.model_copy(update={"max_candidates": 9}).most(0) == 9
    trial = Synthesize.model_validate({**FEW, "count": 100, "max_candidates": 250}).limited(10)
    assert (trial.count, trial.max_candidates) == (10, 25) and few.limited(9).count == 5
    evolve = Synthesize.model_validate({**GIVEN["evolve"], "method": "evolve"})
    assert evolve.most(7) == 7 and evolve.model_copy(update={"count": 3}).most(7) == 12
    assert evolve.limited(2).most(7) == 2 and evolve.limited(9).most(7) == 7


@pytest.mark.parametrize(
    ("given", "once"),
    [
        ({"method": "qa", "documents": "$x"}, True),
        ({"method": "grounded", "documents": "$x"}, True),
        ({"method": "cot", "input": "$x"}, True),
        ({"method": "rewrite", "input": "$x"}, True),
        ({"method": "evolve", "input": "$x"}, False),  # in one of five ways
        ({"method": "qa", "documents": "$x", "examples": "$y"}, False),  # other examples in each pass
        ({"method": "qa", "documents": "$x", "prompt": "own.j2"}, False),  # which may read `number`
        ({"method": "few_shot", "examples": "$x"}, False),
    ],
)
def test_a_greedy_model_is_asked_again_only_if_the_request_differs(given, once):
    for temperature in (0.0, 0.1, None):
        made = Synthesize.model_validate({"model": "$m", "count": 9, "temperature": temperature, **given})
        assert made.asks_once == (once and temperature == 0)
        assert made.most(5) == (5 if made.asks_once else made.way.tries * 9)


class Five:
    """Inputs that are known to hold five records."""

    takers: ClassVar[dict[str, list[str]]] = {}

    def __getitem__(self, ref):
        return Known(records=5)

    def lengths(self, refs, model, cost):
        return None


def estimated(**given) -> Cost:
    return STAGE.estimate(Synthesize.model_validate({"model": "$m", **given}), Five())


def test_a_count_above_what_a_greedy_model_can_be_asked_about_is_told_beforehand():
    greedy = {"input": "$x", "method": "cot", "temperature": 0.0}
    (alarm,) = estimated(**greedy, count=9).alarms
    assert alarm.startswith("count is 9, but each of the 5 records is asked about once") and "remove count" in alarm
    assert estimated(**greedy, count=9).records == estimated(**greedy, count=9).calls == 5
    assert estimated(**greedy, count=5).alarms == estimated(**{**greedy, "temperature": 0.7}, count=9).alarms == []
    texts = {"documents": "$x", "method": "qa", "temperature": 0.0, "count": 9}
    split, cut = estimated(**texts), estimated(**texts, long_documents="cut")
    assert (split.records, cut.records) == (9, 5) and (len(split.alarms), len(cut.alarms)) == (0, 1)
    (note,) = split.notes
    assert "each part of the 5 documents" in note and "known when the stage starts" in note


def test_documents_have_a_bound_if_each_is_one_part_or_candidates_are_capped():
    texts = {"documents": "$x", "method": "qa", "max_tokens": 10}
    assert estimated(**texts).records is None and estimated(**texts).unknown
    cut, capped = estimated(**texts, long_documents="cut"), estimated(**texts, max_candidates=7)
    assert (cut.records, cut.sampled) == (5, 50) and (capped.records, capped.calls, capped.sampled) == (7, 7, 70)
