"""One table of sampling settings, and its conversion."""

from dataclasses import asdict
from typing import get_args

import pytest

from togi.core.records import SamplingParams
from togi.core.sampling import PRESETS, Drawing, PresetName, Recommended, Sampling
from togi.stages.data.respond import Respond
from togi.stages.evaluation.evaluate import Evaluate

SET = {
    **{"temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.2},
    **{"max_tokens": 7, "stop": ["###"], "seed": 5},
}


def test_every_setting_reaches_the_engine():
    params = asdict(Sampling.model_validate(SET).params(n=4))
    assert params == {**SET, "stop": ("###",), "n": 4, "logprobs": 0}
    assert all(params[name] != value for name, value in asdict(SamplingParams()).items() if name != "logprobs")


def test_stages_have_the_same_keys_in_place_with_limits_and_defaults_of_their_own():
    for stage in (Respond, Evaluate):
        assert set(Sampling.model_fields) <= set(stage.model_fields)
        assert stage.model_fields["seed"].description == "seed of this stage; when absent, the recipe's"
    assert Evaluate.model_fields["max_tokens"].default == 64
    asked = Respond.model_validate({"prompts": "$p", "models": ["$m"], **SET})
    assert asked.params(seed=9, n=2) == Sampling.model_validate(SET).params(seed=9, n=2)


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"min_p": 1}, {"max_tokens": 0}, {"stop": [""]}])
def test_what_no_engine_takes_is_refused(wrong):
    with pytest.raises(ValueError):
        Sampling.model_validate(wrong)


# --- recommended settings ---------------------------------------------------------------------------------------------

CARDS: dict[PresetName, dict[str, float]] = {  # as the cards state them; within a range, ours
    "arrowideative": {"temperature": 0.5, "top_p": 0.95, "repetition_penalty": 1.05, "max_tokens": 1024},
    "llm-jp-3.1": {"temperature": 0.7, "top_p": 0.95, "repetition_penalty": 1.05, "max_tokens": 100},
    "vikhr-nemo": {"temperature": 0.3, "top_k": 40, "max_tokens": 2048},
}


def test_presets_have_the_settings_of_their_cards_and_no_others():
    assert [*PRESETS] == [*get_args(PresetName)] == [*CARDS]
    for name, stated in CARDS.items():
        assert Recommended.of(name).values() == {**Drawing().model_dump(), **stated}
        assert Recommended.of(name).preset == name
    vikhr = PRESETS["vikhr-nemo"].drawing
    assert 0.1 <= vikhr.temperature <= 0.5 and 30 <= vikhr.top_k <= 50  # the card's ranges


def test_only_settings_with_an_effect_are_shown():
    assert Recommended.of("vikhr-nemo").shown == "temperature 0.3, top_k 40"
    assert Recommended.of("arrowideative").shown == "temperature 0.5, top_p 0.95, repetition_penalty 1.05"
    assert Recommended.of(Drawing(temperature=1.0)).shown == "temperature 1"


@pytest.mark.parametrize(("temperature", "warns"), [(0.5, False), (0.99, False), (1.0, True), (2.0, True)])
def test_a_card_warns_from_its_temperature_on(temperature, warns):
    said = Recommended.of("vikhr-nemo").warning(temperature)
    assert bool(said) == warns
    for quiet in (Recommended.of("arrowideative"), Recommended.of(Drawing()), Recommended(preset="of-a-newer-togi")):
        assert quiet.warning(temperature) is None


def test_the_library_gets_every_setting_because_it_has_other_defaults():
    assert Recommended.of("arrowideative").generating() == {
        **{"do_sample": True, "temperature": 0.5, "top_p": 0.95, "top_k": 0, "min_p": 0.0},
        "repetition_penalty": 1.05,
    }
    greedy = Recommended.of(Drawing(temperature=0, top_p=0.9, repetition_penalty=1.1))
    assert greedy.generating() == {"do_sample": False, "repetition_penalty": 1.1}
