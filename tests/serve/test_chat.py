"""The chat server, called with the openai library: the local generator's answers, and nothing ignored silently."""

import copy
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
from served import ask, serving

from togi.core.protocols import Request
from togi.core.records import Message, Prompt, SamplingParams
from togi.core.seeds import derive
from togi.rollout.completer import ModelCompleter
from togi.rollout.generator import ModelGenerator
from togi.rollout.local import Sampler
from togi.rollout.prompt_logprobs import text_logprobs
from togi.serve.app import Served
from togi.serve.chat import Speaker, chat_app
from togi.serve.limits import Limits
from togi.text.render import render_prompt

TALK = [{"role": "user", "content": "今日は?"}]


@pytest.fixture(scope="module")
def engine(model) -> Sampler:
    return Sampler(model.net, model.tokenizer, model.template.terminator)


@pytest.fixture(scope="module")
def url(model, engine) -> Iterator[str]:
    served = Served(name="tiny", kind="causal", limit=model.context, vocabulary=300, key="secret")
    speaker = Speaker(
        engine=engine,
        tokenizer=model.tokenizer,
        template=model.template,
        end_of_text=model.end,
        read=lambda ids, top: text_logprobs(model.net, ids, top),
    )
    with serving(chat_app(served, speaker)) as found:
        yield found


@pytest.fixture
def client(url) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as found:
        yield found


def test_a_chat_is_the_local_generators_answer_for_the_same_seed(model, client):
    generator = ModelGenerator(model.net, model.tokenizer, model.template)
    params = SamplingParams(n=2, max_tokens=12, seed=5, temperature=0.9, top_p=0.95)
    local = generator.generate([Prompt(id="a", messages=(Message("user", TALK[0]["content"]),))], params)[0]
    for index, one in enumerate(local):
        found = client.chat.completions.create(
            model="tiny", messages=TALK, max_tokens=12, temperature=0.9, top_p=0.95, seed=derive(5, "a", index),
            extra_body={"return_token_ids": True},
        )  # fmt: skip
        assert found.choices[0].token_ids == list(one.token_ids)
        assert found.choices[0].message.content == one.text.removesuffix(model.template.terminator)


def test_samples_of_one_request_are_those_of_the_next_seeds(client):
    def texts(**more) -> list[str | None]:
        found = client.chat.completions.create(model="tiny", messages=TALK, max_tokens=12, **more)
        assert [choice.index for choice in found.choices] == list(range(len(found.choices)))
        return [choice.message.content for choice in found.choices]

    together = texts(n=3, seed=40)
    assert together == [*texts(seed=40), *texts(seed=41), *texts(seed=42)] and len(set(together)) == 3
    assert texts() != texts()  # a request without a seed gets a new one


def test_completions_take_ids_and_end_as_the_local_completer_does(model, client):
    text, params = model.text, SamplingParams(max_tokens=40, logprobs=2)
    tokenizer = model.tokenizer
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.end)  # as the server was configured
    completer = ModelCompleter(model.net, tokenizer, model.template.terminator)
    seeds = list(range(8))
    local = [completer.complete([text], params, [[seed]])[0][0] for seed in seeds]
    ids = tokenizer(text)["input_ids"]
    for seed, one in zip(seeds, local, strict=True):
        found = client.completions.create(
            model="tiny", prompt=ids, max_tokens=40, seed=seed, logprobs=2, extra_body={"return_token_ids": True}
        )
        choice = found.choices[0]
        assert choice.token_ids == list(one.token_ids) and choice.text == one.text
        assert choice.logprobs.token_logprobs == pytest.approx(list(one.logprobs), abs=1e-5)
        assert found.usage.prompt_tokens == len(ids) and found.usage.completion_tokens == len(one.token_ids)
        assert choice.finish_reason == ("stop" if one.stop == "stop_string" else "length")
    assert {one.stop for one in local} == {"stop_string", "length"}  # both kinds of end occurred
    two = client.completions.create(model="tiny", prompt=[text, "a"], max_tokens=4, seed=0, n=2)
    assert [choice.index for choice in two.choices] == [0, 1, 2, 3]


def test_log_probabilities_are_the_engines(model, engine, client):
    found = client.chat.completions.create(
        model="tiny", messages=TALK, max_tokens=6, seed=3, logprobs=True, top_logprobs=3
    )
    entries = found.choices[0].logprobs.content
    assert len(entries) == 6 and all(len(entry.top_logprobs) == 3 for entry in entries)
    ids = tuple(render_prompt(model.template, model.tokenizer, (Message("user", TALK[0]["content"]),)))
    params = SamplingParams(max_tokens=6, logprobs=3)
    local = Sampler(model.net, model.tokenizer, model.template.terminator).generate([ids], params, [[3]])[0][0]
    assert [entry.logprob for entry in entries] == pytest.approx(list(local.logprobs), abs=1e-5)
    tops = [[logp for _, logp in top] for top in local.top_logprobs]
    assert [[each.logprob for each in entry.top_logprobs] for entry in entries] == [
        pytest.approx(top, abs=1e-5) for top in tops
    ]


def test_an_echoed_prompt_has_the_log_probabilities_of_the_plain_computation(model, client):
    ids = model.tokenizer(model.text)["input_ids"]
    asked = {"model": "tiny", "prompt": ids, "temperature": 0, "logprobs": 2, "echo": True}
    read = client.completions.create(**asked, max_tokens=0).choices[0]
    logp = model.net(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    expected = logp[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0].tolist()
    assert read.text == model.text and read.logprobs.token_logprobs[0] is None
    assert read.logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    assert [max(top.values()) for top in read.logprobs.top_logprobs[1:]] == pytest.approx(
        logp[:-1].max(-1).values.tolist(), abs=1e-4
    )
    written = client.completions.create(**asked, max_tokens=3, extra_body={"ignore_eos": True}).choices[0]
    assert len(written.logprobs.tokens) == len(ids) + 3 and written.text.startswith(model.text)
    assert written.logprobs.token_logprobs[1 : len(ids)] == read.logprobs.token_logprobs[1:]
    plain = client.completions.create(
        **{**asked, "echo": False}, max_tokens=3, extra_body={"ignore_eos": True}
    ).choices[0]
    assert written.text == model.text + plain.text
    assert written.logprobs.token_logprobs[len(ids) :] == pytest.approx(plain.logprobs.token_logprobs, abs=1e-5)
    assert written.logprobs.text_offset[len(ids)] == len(model.text)


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize(("max_tokens", "top"), [(0, 2), (2, 2), (2, 0)])
@pytest.mark.parametrize("text", ["a", "ab"])
def test_an_echo_has_the_top_tokens_of_all_but_the_first_token(url, text, max_tokens, top, temperature):
    body = {"model": "tiny", "prompt": text, "max_tokens": max_tokens, "temperature": temperature, "logprobs": top}
    found = ask(f"{url}/v1/completions", body | {"echo": True}, authorization="Bearer secret")[1]["choices"][0]
    tokens, tops = found["logprobs"]["tokens"], found["logprobs"]["top_logprobs"]
    if top:
        assert tops[0] is None and all(tops[1:]) and len(tops) == len(tokens) == len(text) + max_tokens
    else:
        assert tops is None


def test_of_two_models_each_answers_under_its_name(model, engine):
    def speaker(engine: Sampler) -> Speaker:
        return Speaker(engine=engine, tokenizer=model.tokenizer, template=model.template)

    first, second = (Served(name=name, kind="causal", limit=model.context, vocabulary=300) for name in ("one", "two"))
    other = copy.deepcopy(model.net)
    with torch.no_grad():
        other.lm_head.weight.neg_()
    engines = [Sampler(net, model.tokenizer, model.template.terminator) for net in (model.net, other)]
    with serving(chat_app(first, speaker(engines[0]), beside=[(second, speaker(engines[1]))])) as url:
        assert [each["id"] for each in ask(f"{url}/v1/models")[1]["data"]] == ["one", "two"]
        texts = []
        for name in ("one", "two"):
            body = {"model": name, "messages": TALK, "max_tokens": 12, "temperature": 0}
            status, found = ask(f"{url}/v1/chat/completions", body)
            assert status == 200 and found["model"] == name
            texts.append(found["choices"][0]["message"]["content"])
        assert texts[0] != texts[1]
        assert "this is 'one' or 'two'" in ask(f"{url}/tokenize", {"model": "x", "prompt": "a"})[1]["error"]["message"]


def test_more_requests_than_may_wait_are_sent_away(model, monkeypatch):
    engine = Sampler(model.net, model.tokenizer, model.template.terminator)
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (time.sleep(0.05), step()))
    served = Served(name="tiny", kind="causal", limit=None, vocabulary=300, limits=Limits(waiting=1))
    speaker = Speaker(engine=engine, tokenizer=model.tokenizer, template=model.template)
    body = {"model": "tiny", "prompt": "a", "max_tokens": 100}
    with serving(chat_app(served, speaker)) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, f"{url}/v1/completions", body)
        while not engine.busy:
            assert not first.done()
            time.sleep(0.01)
        status, found = ask(f"{url}/v1/completions", body)
        assert status == 429 and "retry later" in found["error"]["message"]
        assert first.result()[0] == 200 and ask(f"{url}/v1/completions", {**body, "max_tokens": 1})[0] == 200


def test_a_stream_is_the_whole_answer_in_pieces_and_stop_strings_are_left_out(client):
    asked = {"model": "tiny", "messages": TALK, "max_tokens": 40, "stop": ["e", "t"]}
    reasons = set()
    for seed in range(6):
        whole = client.chat.completions.create(**asked, seed=seed)
        options = {"include_usage": True}
        chunks = list(client.chat.completions.create(**asked, seed=seed, stream=True, stream_options=options))
        pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
        assert "".join(pieces) == whole.choices[0].message.content and len(pieces) > 2
        assert not {"e", "t"} & {*"".join(pieces)}
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
        reasons.add(whole.choices[0].stop_reason)
    assert {"e", "t"} & reasons


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format: this server does not"),
        ({"tools": [{"type": "function"}]}, "tools: this server does not support it"),
        ({"frequency_penalty": 0.5}, "frequency_penalty: this server does not support it"),
        ({"logit_bias": {"5": 1}}, "logit_bias: this server"),
        ({"guided_json": "{}"}, "guided_json: this server"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": "hot"}, "temperature: Input should be a valid number"),
        ({"n": 1000}, "n = 1000 samples, but a batch has 64 rows"),
        ({"max_tokens": 1000}, "but the model's context is 512"),
        ({"top_logprobs": 3}, "top_logprobs needs logprobs: true"),
        ({"stream": True, "logprobs": True}, "are not streamed"),
        ({"messages": []}, "messages: the list is empty; give at least one item"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": []}]}, "messages.0.tool_calls: this server"),
    ],
)  # fmt: skip
def test_what_it_does_not_do_is_refused_by_name(url, more, says):
    body = {"model": "tiny", "messages": TALK, "max_tokens": 4, **more}
    status, found = ask(f"{url}/v1/chat/completions", body, authorization="Bearer secret")
    assert status == 400 and says in found["error"]["message"]


def test_parameters_that_say_nothing_are_accepted(url):
    nothing = {
        "tools": None,
        "frequency_penalty": 0,
        "response_format": {"type": "text"},
        "user": "u",
        "logit_bias": {},
    }
    body = {"model": "tiny", "messages": TALK, "max_tokens": 2, **nothing}
    assert ask(f"{url}/v1/chat/completions", body, authorization="Bearer secret")[0] == 200


def test_ids_outside_the_vocabulary_are_refused_and_the_engine_lives(url, client):
    body = {"model": "tiny", "prompt": [5, 300], "max_tokens": 2}
    status, found = ask(f"{url}/v1/completions", body, authorization="Bearer secret")
    assert status == 400 and found["error"]["message"] == "300 is not a token id of this model; its ids are 0 to 299"
    assert client.completions.create(model="tiny", prompt=[5, 299], max_tokens=2).usage.completion_tokens == 2


def test_keys_names_health_and_tokens(url, client, model):
    assert [found.id for found in client.models.list()] == ["tiny"]
    assert ask(f"{url}/health") == (200, {"status": "ok", "engine": "togi", "kind": "causal"})
    for key in ("wrong", ""):
        status, found = ask(f"{url}/v1/models", authorization=f"Bearer {key}")
        assert status == 401 and "key is missing or wrong" in found["error"]["message"]
    with pytest.raises(openai.NotFoundError, match="'big' is not served here; this is 'tiny'"):
        client.chat.completions.create(model="big", messages=TALK)
    body = {"model": "tiny", "messages": TALK}
    counted = ask(f"{url}/tokenize", body, authorization="Bearer secret")[1]
    assert counted["tokens"] == render_prompt(model.template, model.tokenizer, (Message("user", TALK[0]["content"]),))
    assert counted["count"] == len(counted["tokens"]) and counted["max_model_len"] == model.context


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_client_that_goes_away_cancels_its_request(url, engine, stream, monkeypatch):
    added: list[Request] = []
    add = engine.add
    monkeypatch.setattr(engine, "add", lambda request: added.append(request) or add(request))
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (time.sleep(0.05), step()))  # 400 tokens would take 20 s
    body = f'{{"model": "tiny", "prompt": "a", "max_tokens": 400, "ignore_eos": true, "stream": {stream}}}'
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer secret\r\ncontent-length: {len(body)}\r\n"
    )
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as sent:
        sent.sendall(f"{head}content-type: application/json\r\n\r\n{body}".encode())
        end = time.monotonic() + 10
        while not (added and engine.busy):
            assert time.monotonic() < end
            time.sleep(0.01)
    left = time.monotonic()
    while engine.busy:
        assert time.monotonic() - left < 10
        time.sleep(0.01)


def test_a_stream_over_http_1_0_is_refused(url):
    body = b'{"model": "tiny", "prompt": "a", "max_tokens": 2, "stream": true}'
    head = b"POST /v1/completions HTTP/1.0\r\nauthorization: Bearer secret\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=60) as sent:
        sent.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        found = b""
        while piece := sent.recv(4096):
            found += piece
    assert b" 400 " in found.partition(b"\r\n")[0] and b"HTTP/1.0 cannot carry a stream" in found


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"logprobs": 0, "stream": True}, "are not streamed"),
        ({"max_tokens": 0, "echo": True, "temperature": -5}, "temperature is -5"),
        ({"max_tokens": 0, "echo": True, "stop": ""}, "strings that are not empty"),
    ],
)
def test_no_parameter_of_a_completion_is_ignored(url, more, says):
    body = {"model": "tiny", "prompt": "a", "max_tokens": 4, **more}
    status, found = ask(f"{url}/v1/completions", body, authorization="Bearer secret")
    assert status == 400 and says in found["error"]["message"]


def test_a_prompt_that_is_only_read_has_as_many_choices_as_asked_for(url, model):
    body = {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 0, "echo": True, "n": 3}
    found = ask(f"{url}/v1/completions", body, authorization="Bearer secret")[1]
    assert [each["text"] for each in found["choices"]] == ["a"] * 3 + ["b"] * 3
    assert [each["index"] for each in found["choices"]] == list(range(6))
