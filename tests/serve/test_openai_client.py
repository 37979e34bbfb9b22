"""The examples of the openai library's README, against this server: chats, streams, asyncio, raw responses, errors."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator

import numpy as np
import openai
import pytest
from served import serving
from tiny_encoders import write_embedder

from togi.model.embed import SentenceEmbedder
from togi.rollout.local import Sampler
from togi.serve.app import Served
from togi.serve.chat import Speaker, chat_app
from togi.serve.embed import embed_app
from togi.serve.limits import Limits

ASKED = {
    "model": "tiny",
    "messages": [
        {"role": "developer", "content": "Talk like a pirate."},
        {"role": "user", "content": "How do I check if a Python object is an instance of a class?"},
    ],
    "max_completion_tokens": 8,
    "seed": 1,
}


def app(model, **limits):
    served = Served(
        name="tiny", kind="causal", limit=model.context, vocabulary=300, key="secret", limits=Limits(**limits)
    )
    engine = Sampler(model.net, model.tokenizer, model.template.terminator)
    return chat_app(served, Speaker(engine=engine, tokenizer=model.tokenizer, template=model.template)), engine


@pytest.fixture(scope="module")
def url(model) -> Iterator[str]:
    with serving(app(model)[0]) as found:
        yield f"{found}/v1"


@pytest.fixture
def client(url) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="secret", max_retries=0) as found:
        yield found


@pytest.fixture
def text(client) -> str:
    found = client.chat.completions.create(**ASKED).choices[0].message.content
    assert found
    return found


def test_streams(client, text):
    with client.chat.completions.create(**ASKED, stream=True) as stream:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
    with client.chat.completions.stream(**ASKED) as helper:
        assert "".join(event.delta for event in helper if event.type == "content.delta") == text
        assert helper.current_completion_snapshot.choices[0].finish_reason == "length"


def test_asyncio(url, text):
    async def ask() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="secret", max_retries=0) as client:
            whole, stream = await asyncio.gather(
                client.chat.completions.create(**ASKED), client.chat.completions.create(**ASKED, stream=True)
            )
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return whole.choices[0].message.content, "".join(pieces)

    assert asyncio.run(ask()) == (text, text)


def test_raw_and_streamed_responses(client, text):
    raw = client.chat.completions.with_raw_response.create(**ASKED)
    assert raw.status_code == 200 and raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].message.content == text
    with client.chat.completions.with_streaming_response.create(**ASKED) as streamed:
        assert json.loads("".join(streamed.iter_text()))["choices"][0]["message"]["content"] == text


def test_the_list_of_models(client):
    assert [each.id for each in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "togi"
    with pytest.raises(openai.NotFoundError, match="'large' is not served here"):
        client.models.retrieve("large")


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"temperature": -1}, openai.BadRequestError, "temperature is -1"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools: this server does not support it"),
        ({"model": "large"}, openai.NotFoundError, "'large' is not served here"),
    ],
)
def test_errors_have_their_classes(client, more, error, says):
    with pytest.raises(error, match=says) as found:
        client.chat.completions.create(**{**ASKED, **more})
    assert found.value.status_code == found.value.response.status_code == int(found.value.code)
    assert found.value.body["type"] == "invalid_request_error"


def test_errors_of_keys_addresses_and_paths(url, client):
    with pytest.raises(openai.AuthenticationError, match="key is missing or wrong"):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="tiny", input="a")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(openai.APIConnectionError):
            client.with_options(base_url=f"http://127.0.0.1:{nobody.getsockname()[1]}/v1").models.list()


def test_waits_end(model, monkeypatch):
    made, engine = app(model, seconds=1.5)
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (time.sleep(0.5), step()))
    with serving(made) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.2).chat.completions.create(**ASKED)
        with pytest.raises(openai.InternalServerError, match=r"no answer within 1\.5 s"):
            client.chat.completions.create(**ASKED)
        with pytest.raises(openai.APIError, match=r"no complete answer within 1\.5 s") as found:
            for chunk in client.chat.completions.create(**ASKED, stream=True):
                assert chunk.choices[0].finish_reason is None
        assert int(str(found.value.code)) == 504
    made, _ = app(model, waiting=0)
    with (
        serving(made) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client,
        pytest.raises(openai.RateLimitError, match="retry later"),
    ):
        client.chat.completions.create(**ASKED)


def test_embeddings(tmp_path):
    embedder = SentenceEmbedder(write_embedder(tmp_path), tmp_path)
    served = Served(name="e5", kind="embedder", limit=embedder.max_tokens, vocabulary=256)
    texts = ["The quick brown fox", "jumps over the lazy dog"]
    with serving(embed_app(served, embedder)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        found = client.embeddings.create(model="e5", input=texts)
        plain = client.embeddings.create(model="e5", input=texts, encoding_format="float")
    expected = embedder.embed(texts)
    np.testing.assert_array_equal(np.array([row.embedding for row in found.data], np.float32), expected)
    np.testing.assert_array_equal(np.array([row.embedding for row in plain.data], np.float32), expected)
    assert found.usage.prompt_tokens == sum(map(len, texts))
