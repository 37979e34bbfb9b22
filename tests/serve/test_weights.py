"""A server loads new weights from a folder, if this is allowed, and reports in its answers which weights it has."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from served import ask, serving

from togi.core.errors import InputError
from togi.rollout.local import Sampler
from togi.serve.app import Served
from togi.serve.chat import Speaker, chat_app

PATH = "/update_weights_from_disk"


def app(model: Any, takes: bool) -> Any:
    sampler = Sampler(model.net, model.tokenizer, model.template.terminator)

    def read(folder: str) -> Mapping[str, torch.Tensor]:
        if folder == "another":
            raise InputError("another: its weights are not those of the model that is served")
        return {name: weight * float(folder) for name, weight in model.net.named_parameters()}

    speaker = Speaker(
        engine=sampler, tokenizer=model.tokenizer, template=model.template, weights=read if takes else None
    )
    served = Served(name="m", kind="causal", limit=model.context, vocabulary=len(model.tokenizer))
    return chat_app(served, speaker)


def test_answers_come_from_the_weights_that_came_last_and_name_them(model):
    before = {name: weight.detach().clone() for name, weight in model.net.named_parameters()}
    body = {"model": "m", "prompt": model.text, "max_tokens": 4, "seed": 1, "logprobs": 0}
    with serving(app(model, takes=True)) as url:
        first = ask(f"{url}/v1/completions", body)[1]
        assert ask(f"{url}{PATH}", {"model_path": "1.5", "weight_version": "a"})[1]["success"] is True
        second = ask(f"{url}/v1/completions", body)[1]
        assert ask(f"{url}{PATH}", {"model_path": "another"})[0] == 400
        third = ask(f"{url}/v1/completions", body)[1]
    for name, weight in model.net.named_parameters():
        weight.data.copy_(before[name])
    assert "weight_version" not in first and second["weight_version"] == third["weight_version"] == "a"
    logprobs = [each["choices"][0]["logprobs"]["token_logprobs"] for each in (first, second, third)]
    assert logprobs[0] != logprobs[1] == logprobs[2]


@pytest.mark.parametrize(
    ("takes", "body", "status"),
    [
        (False, {"model_path": "1"}, 404),
        (True, {"model_path": "1", "model": "n"}, 404),
        (True, {"model_path": ""}, 400),
        (True, {"model_path": "1", "load_format": "dummy"}, 400),
    ],
)
def test_what_is_not_meant_or_not_known_is_refused(model, takes, body, status):
    with serving(app(model, takes)) as url:
        assert ask(f"{url}{PATH}", body)[0] == status
