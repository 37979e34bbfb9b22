"""What each method reads, produces and needs; a recipe that contradicts this is refused with a message of its own."""

import pytest
from pydantic import ValidationError

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
