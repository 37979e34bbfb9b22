"""A server that ends during requests: each client learns why, and the log has no traceback."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from served import said, serving

from togi.rollout.local import Sampler
from togi.serve.app import Served
from togi.serve.chat import Speaker, chat_app

ASKED = 6


def test_whoever_is_cut_short_is_told_that_the_server_ends(model, monkeypatch, capfd: pytest.CaptureFixture[str]):
    engine = Sampler(model.net, model.tokenizer, model.template.terminator)
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (time.sleep(0.05), step()))  # 400 tokens would take 20 s
    served = Served(name="m", kind="causal", limit=model.context, vocabulary=300)
    speaker = Speaker(engine=engine, tokenizer=model.tokenizer, template=model.template)
    body = {"model": "m", "prompt": "a", "max_tokens": 400, "ignore_eos": True}
    with ThreadPoolExecutor(2 * ASKED) as pool:
        with serving(chat_app(served, speaker)) as url:
            whole = [pool.submit(said, f"{url}/v1/completions", body) for _ in range(ASKED)]
            streams = [pool.submit(said, f"{url}/v1/completions", {**body, "stream": True}) for _ in range(ASKED)]
            while not engine.busy:
                time.sleep(0.01)
            time.sleep(0.5)
        answers = [json.loads(each.result(20)[1])["error"] for each in whole]
        assert [each.result()[0] for each in whole] == [503] * ASKED
        events = [each.result(20)[1].strip().split("\n\n") for each in streams]
    answers += [json.loads(each[-1].removeprefix("data: "))["error"] for each in events]
    assert all(len(each) > 2 for each in events)
    assert {(each["type"], each["code"]) for each in answers} == {("server_error", 503)}
    assert all("the server is ending" in each["message"] for each in answers)
    log = capfd.readouterr().err
    assert "Traceback" not in log and len(log.strip().splitlines()) == 1
