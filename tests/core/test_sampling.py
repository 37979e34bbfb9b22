"""One table of sampling settings, and its conversion."""

from dataclasses import asdict

import pytest

from togi.core.records import SamplingParams
from togi.core.sampling import Sampling
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
