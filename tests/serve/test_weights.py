"""A server loads new weights from a folder, if this is allowed, and reports in its answers which weights it has."""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import Forked
from served import ask, said, serving
from tiny_run import tiny_model

from togi.core.errors import InputError
from togi.rollout.local import Sampler
from togi.rollout.prompt_logprobs import text_logprobs
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
        engine=sampler,
        tokenizer=model.tokenizer,
        template=model.template,
        read=lambda ids, top: text_logprobs(model.net, ids, top),
        weights=read if takes else None,
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


def test_chats_and_streams_name_the_weights_too(model):
    before = {name: weight.detach().clone() for name, weight in model.net.named_parameters()}
    chat = {"model": "m", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
    text = {"model": "m", "prompt": "a", "max_tokens": 2, "stream": True, "ignore_eos": True}
    with serving(app(model, takes=True)) as url:
        assert "weight_version" not in ask(f"{url}/v1/chat/completions", chat)[1]
        assert ask(f"{url}{PATH}", {"model_path": "1", "weight_version": "b"})[0] == 200
        found = ask(f"{url}/v1/chat/completions", chat)[1]
        streamed = said(f"{url}/v1/completions", text)[1]
    for name, weight in model.net.named_parameters():
        weight.data.copy_(before[name])
    assert found["weight_version"] == "b" and '"weight_version": "b"' in streamed


def test_requests_that_wait_for_an_update_name_the_weights_that_answer_them(model):
    before = {name: weight.detach().clone() for name, weight in model.net.named_parameters()}
    long = {"model": "m", "prompt": "a", "max_tokens": 400, "n": 16, "ignore_eos": True}
    short = {"model": "m", "prompt": model.text, "max_tokens": 1, "temperature": 0, "logprobs": 0, "echo": True}

    def reply() -> tuple[str, tuple[float, ...]]:
        found = ask(f"{url}/v1/completions", short)[1]
        return found["weight_version"], tuple(found["choices"][0]["logprobs"]["token_logprobs"][1:])

    with serving(app(model, takes=True)) as url, ThreadPoolExecutor(40) as pool:
        assert ask(f"{url}{PATH}", {"model_path": "1", "weight_version": "old"})[0] == 200
        old = reply()
        busy = pool.submit(ask, f"{url}/v1/completions", long)
        time.sleep(0.3)
        update = pool.submit(ask, f"{url}{PATH}", {"model_path": "1.5", "weight_version": "new"})
        found = []
        while not update.done():
            found.append(pool.submit(reply))
            time.sleep(0.05)
        new = reply()
        kinds = {each.result()[0]: [] for each in found}
        for each in found:
            kinds[each.result()[0]].append(each.result()[1])
        assert busy.result()[0] == 200
    for name, weight in model.net.named_parameters():
        weight.data.copy_(before[name])
    assert old[0] == "old" and new[0] == "new" and "new" in kinds
    for version, logprobs in ((each, row) for each, rows in kinds.items() for row in rows):
        assert logprobs == pytest.approx({"old": old, "new": new}[version][1], abs=1e-4)


def test_the_folder_of_new_weights_needs_no_template(tmp_path: Path):
    tiny_model(tmp_path / "model")
    server = Forked(tmp_path / "model", tmp_path / "home", reward=False)  # it serves the model with a named template
    try:
        url = server.url.removesuffix("/v1") + PATH
        assert ask(url, {"model_path": str(tmp_path / "model"), "weight_version": "a"})[0] == 200
    finally:
        server.kill()
