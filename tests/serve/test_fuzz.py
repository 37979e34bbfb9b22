"""Requests that follow the published schema or violate it: no server fails on one, and each answer fits the schema."""

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from served import ask, serving
from tiny_encoders import write_embedder
from tiny_models import loaded

from togi.core.errors import InputError
from togi.model.embed import SentenceEmbedder
from togi.model.reward_model import ModelScorer, add_scalar_head
from togi.rollout.local import Sampler
from togi.rollout.prompt_logprobs import text_logprobs
from togi.serve.app import Served
from togi.serve.chat import Speaker, chat_app
from togi.serve.embed import embed_app
from togi.serve.reward import reward_app

HELD = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SAMPLED = {
    "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "n": 2, "seed": 1,
    "stop": ["x"], "stop_token_ids": [1], "stream": False, "return_token_ids": True,
}  # fmt: skip
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "/v1/chat/completions": (
        "causal", {"messages": TURNS[:1], "logprobs": True, "top_logprobs": 2, "max_tokens": 2}
    ),
    "/v1/completions": ("causal", {**SAMPLED, "prompt": "a", "logprobs": 2, "echo": True, "max_tokens": 2}),
    "/tokenize": ("causal", {"prompt": "a", "add_special_tokens": True}),
    "/update_weights_from_disk": ("causal", {"model_path": "nowhere", "weight_version": "1"}),
    "/v1/scores": ("reward", {"items": [{"messages": TURNS}]}),
    "/classify": ("reward", {"text": ["a"]}),
    "/v1/embeddings": ("embedder", {"input": ["a"], "encoding_format": "float"}),
}  # fmt: skip
"""A valid request for each path, and the kind of model that serves it."""

ODD = [
    "NaN", "Infinity", "-Infinity", "1e400", "1e308", "1e-300", "-1", "0", str(10**30), "1.5", "true", "null",
    '""', '"\\ud800"', '"\\u0000"', '"hot"', "[]", "{}", "[[]]", '[""]', "[-1]", f"[{10**30}]", '["\\udfff"]', "[null]",
    '{"\\ud800": 1}', '[{"role": "\\ud800", "content": "\\udc00"}]', '[{"role": "nobody", "content": "a"}]',
    '[{"ids": [1e3]}]', '[{"ids": []}]', '[{"text": ""}]', "[" * 900 + "]" * 900, f'"{"x" * 5000}"',
]  # fmt: skip
"""Values of a parameter that no client should send."""


def speaking(model: Any) -> Any:
    def refuse(folder: str) -> Any:
        raise InputError(f"{folder}: there is no such folder")

    speaker = Speaker(
        engine=Sampler(model.net, model.tokenizer, model.template.terminator),
        tokenizer=model.tokenizer,
        template=model.template,
        end_of_text=model.end,
        read=lambda ids, top: text_logprobs(model.net, ids, top),
        weights=refuse,
    )
    return chat_app(Served(name="m", kind="causal", limit=64, vocabulary=300), speaker)


@pytest.fixture(scope="module")
def urls(model, tmp_path_factory) -> Iterator[dict[str, str]]:
    """The URL of a server of each kind."""
    folder = tmp_path_factory.mktemp("e5")
    embedder = SentenceEmbedder(write_embedder(folder), folder)
    judge = add_scalar_head(loaded(), seed=4)
    scorer = ModelScorer(judge, max_tokens=200)
    vocabulary = judge.net.get_input_embeddings().num_embeddings
    reward = Served(name="m", kind="reward", limit=200, vocabulary=vocabulary)
    vectors = Served(name="m", kind="embedder", limit=embedder.max_tokens, vocabulary=256)
    with (
        serving(speaking(model)) as first,
        serving(reward_app(reward, scorer, judge.tokenizer)) as second,
        serving(embed_app(vectors, embedder)) as third,
    ):
        yield {"causal": first, "reward": second, "embedder": third}


def fuzz(url: str, path: str, mode: GenerationMode, examples: int) -> list[int]:
    """The statuses of requests that schemathesis generates; each answer is checked against the schema."""
    operation = schemathesis.openapi.from_dict(ask(f"{url}/openapi.json")[1])[path]["POST"]
    found: list[int] = []

    @settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "m"  # the served one; with another name the rest would not be read
            if "prompt" in case.body or "messages" in case.body:
                case.body.setdefault("max_tokens", 2)
        answer = case.call(base_url=url, timeout=300)
        found.append(answer.status_code)
        case.validate_response(answer, checks=HELD)

    run()
    return found


def sent(url: str, path: str, body: str) -> int:
    """The status of a request with this text as its body."""
    asked = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    asked.request("POST", path, body.encode(), {"content-type": "application/json"})
    answer = asked.getresponse()
    assert answer.read()
    asked.close()
    return answer.status


@pytest.mark.parametrize("path", BODIES)
def test_no_value_of_any_parameter_makes_a_server_fail(urls, path):
    kind, good = BODIES[path]
    good = {"model": "m", **good}
    usual = sent(urls[kind], path, json.dumps(good))
    assert usual == (400 if path == "/update_weights_from_disk" else 200)
    found = {}
    for name in good:
        for value in ODD:
            body = ", ".join(f'"{each}": {value if each == name else json.dumps(good[each])}' for each in good)
            found[name, value[:60]] = sent(urls[kind], path, f"{{{body}}}")
    assert not {which: status for which, status in found.items() if status not in (200, 400, 404)}
    assert ask(f"{urls[kind]}/health")[0] == 200 and sent(urls[kind], path, json.dumps(good)) == usual


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("path", BODIES)
def test_what_schemathesis_makes_up_is_answered_as_the_schema_says(urls, path, mode):
    found = fuzz(urls[BODIES[path][0]], path, mode, 8)
    assert len(found) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("path", BODIES)
def test_many_of_them(urls, path, mode):
    assert len(fuzz(urls[BODIES[path][0]], path, mode, 400)) >= 300
