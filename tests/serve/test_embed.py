"""The server of an embedder: its vectors equal the local ones to the bit, in OpenAI's format."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import ask, said, serving
from tiny_encoders import write_embedder, write_encoder

from togi.model.embed import SentenceEmbedder, embeds
from togi.serve.app import Served
from togi.serve.embed import embed_app

TEXTS = ["a cat", "a much longer text about something else", "", "x" * 90]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> SentenceEmbedder:
    folder = tmp_path_factory.mktemp("e5")
    return SentenceEmbedder(write_embedder(folder), folder)


@pytest.fixture(scope="module")
def url(embedder) -> Iterator[str]:
    served = Served(name="e5", kind="embedder", limit=embedder.max_tokens, vocabulary=256)
    with serving(embed_app(served, embedder)) as found:
        yield found


def test_the_vectors_are_those_of_the_embedder_here(url, embedder):
    status, found = ask(f"{url}/v1/embeddings", {"model": "e5", "input": TEXTS})
    assert status == 200 and [row["index"] for row in found["data"]] == [0, 1, 2, 3]
    rows = np.array([row["embedding"] for row in found["data"]], np.float32)
    np.testing.assert_array_equal(rows, embedder.embed(TEXTS))
    assert found["usage"]["prompt_tokens"] == sum(min(len(text), 64) for text in TEXTS)  # cut at the embedder's limit
    packed = ask(f"{url}/v1/embeddings", {"model": "e5", "input": TEXTS[0], "encoding_format": "base64"})[1]
    (row,) = packed["data"]
    np.testing.assert_array_equal(
        np.frombuffer(base64.b64decode(row["embedding"]), "<f4"), embedder.embed(TEXTS[:1])[0]
    )
    assert ask(f"{url}/health")[1]["kind"] == "embedder"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"input": []}, "at least one item"),
        ({"input": [[1, 2]]}, "input"),
        ({"input": "a", "dimensions": 8}, "dimensions: this server does not support it"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
    ],
)
def test_what_does_not_fit_is_refused(url, more, says):
    status, found = ask(f"{url}/v1/embeddings", {"model": "e5", **more})
    assert status == 400 and says in found["error"]["message"]


def test_each_text_is_tokenised_once(url, embedder, monkeypatch):
    seen: list[str] = []
    read = embedder.tokenizer

    class Watched:
        pad = read.pad

        def __call__(self, text: str, **more: Any) -> Any:
            seen.append(text)
            return read(text, **more)

    monkeypatch.setattr(embedder, "tokenizer", Watched())
    assert ask(f"{url}/v1/embeddings", {"model": "e5", "input": TEXTS})[0] == 200
    assert seen == TEXTS


def test_a_text_without_tokens_has_no_direction(url):
    (row,) = ask(f"{url}/v1/embeddings", {"model": "e5", "input": [""]})[1]["data"]
    assert not any(row["embedding"])


def test_an_encoder_with_a_head_that_scores_is_no_embedder(tmp_path: Path):
    assert embeds(write_embedder(tmp_path / "e5"), tmp_path)
    assert not embeds(write_encoder(tmp_path / "rm"), tmp_path)


def test_the_tokens_of_texts_are_counted(url):
    def counted() -> float:
        lines = said(f"{url}/metrics")[1].splitlines()
        name = 'togi_tokens_total{kind="prompt",model="e5"}'
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    before = counted()
    found = ask(f"{url}/v1/embeddings", {"model": "e5", "input": TEXTS})[1]
    assert counted() == before + found["usage"]["prompt_tokens"] > before
