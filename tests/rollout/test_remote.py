"""The engine on a server: what it sends under each protocol, and how it reads the replies."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from policy_servers import VLLM, Server, SGLang, policy_server
from tokenizers_made import byte_bpe

from togi.client.endpoint import Endpoint
from togi.client.live import LiveClient
from togi.client.store import AnswerStore
from togi.client.wire_samples import Weights
from togi.core.errors import InputError, StageError
from togi.core.protocols import Request
from togi.core.records import Completion, SamplingParams
from togi.rollout.engine import answer
from togi.rollout.remote import RemoteEngine

PROTOCOLS = [pytest.param(VLLM, id="vllm"), pytest.param(SGLang, id="sglang")]
END = "<|im_end|>"
TOKENIZER: Any = byte_bpe(special=("<|im_end|>",))
LETTERS = [TOKENIZER(letter, add_special_tokens=False)["input_ids"][-1] for letter in "abcdefghij"]


@contextmanager
def engine(server: Server, tmp_path: Path, *, adapter: bool = False, **more: Any) -> Iterator[RemoteEngine]:
    """An engine that publishes weights by writing them to a file."""
    count = 0

    def write(weights: Any) -> Weights:
        nonlocal count
        count += 1
        folder = tmp_path / f"weights-{count}"
        folder.mkdir()
        (folder / "model.safetensors").write_text(repr(dict(weights)))
        return Weights(str(folder), f"togi-{count}", adapter, f"togi-{count - 1}" if count > 1 else "")

    endpoint = Endpoint(name="there", urls=(server.url,), model="policy", **more)
    with closing(AnswerStore(tmp_path / "answers.sqlite")) as store:
        made = RemoteEngine(LiveClient(endpoint, store, run="test"), TOKENIZER, END, write)
        with closing(made):
            yield made


def ask(made: RemoteEngine, seeds: tuple[int, ...] = (1, 2**40), **params: Any) -> list[Completion]:
    request = Request(prompt_ids=(5, 6, 7), params=SamplingParams(n=len(seeds), max_tokens=6, **params), seeds=seeds)
    return next(answer(made, [request]))


@pytest.mark.parametrize("speaks", PROTOCOLS)
@pytest.mark.parametrize("adapter", [False, True])
def test_samples_come_from_the_weights_that_were_published_last(speaks, adapter, tmp_path):
    with policy_server(speaks, LETTERS) as server, engine(server, tmp_path, adapter=adapter) as made:
        answers = []
        for value in (1, 2, 1):
            made.publish([("w", value)])
            answers.append(ask(made))
    first, second, third = answers
    assert first == third != second and made.foreign == 0
    assert server.wrong == []
    assert len(server.adapters) == adapter  # the previous one was unloaded
    assert all(each.stop == "length" and len(each.token_ids) == len(each.logprobs) == 6 for each in first)
    assert first[0] != first[1]


@pytest.mark.parametrize("speaks", PROTOCOLS)
def test_weights_are_taken_in_the_order_that_the_server_needs(speaks, tmp_path):
    with policy_server(speaks, LETTERS) as server, engine(server, tmp_path) as made:
        made.publish([("w", 1)])
        told = [path for path, _ in server.calls]
        assert told == (["/collective_rpc", "/reset_prefix_cache"] if speaks is VLLM else ["/update_weights_from_disk"])
        assert made.client.score((5, 6, 7))[0] == (-1.0, -1.0)
    assert server.wrong == []


@pytest.mark.parametrize("speaks", PROTOCOLS)
def test_an_answer_ends_behind_its_terminator_and_keeps_it(speaks, tmp_path):
    end = TOKENIZER.convert_tokens_to_ids(END)
    with policy_server(speaks, LETTERS) as server, engine(server, tmp_path) as made:
        server.tokens = lambda *asked: [LETTERS[0], end, LETTERS[1]]  # type: ignore[method-assign]
        (found,) = ask(made, (1,))
    assert (found.text, found.stop, found.token_ids) == (f"a{END}", "terminator", (LETTERS[0], end))
    body = server.calls[-1][1]
    asked = body.get("sampling_params", body)
    assert asked["stop"] == [END] and asked["stop_token_ids"] == [end]


def test_an_answer_that_the_server_cut_is_no_answer(tmp_path):
    with policy_server(VLLM, LETTERS) as server, engine(server, tmp_path) as made:
        server.tokens = lambda *asked: LETTERS[:3]  # type: ignore[method-assign]
        with pytest.raises(StageError, match=r"ended an answer after 3 tokens .* may have 6"):
            ask(made)


def test_a_server_that_takes_no_weights_is_told_with_what_to_do(tmp_path):
    with policy_server(SGLang, LETTERS) as server, engine(server, tmp_path) as made:
        server.takes = False
        with pytest.raises(StageError, match=r"did not load the weights in .*: 'no such folder'; can the server read"):
            made.publish([("w", 1)])
    (tmp_path / "second").mkdir()
    with policy_server(VLLM, LETTERS) as server, engine(server, tmp_path / "second") as made:
        del server.speaks.paths["/collective_rpc"]
        with pytest.raises(InputError, match="VLLM_SERVER_DEV_MODE=1"):
            made.publish([("w", 1)])


def test_a_server_in_openais_shape_is_no_engine(tmp_path):
    told = pytest.raises(InputError, match=r"its protocol is openai, which supports neither .*; use vLLM, SGLang")
    with policy_server(VLLM, LETTERS) as server, engine(server, tmp_path, protocol="openai") as made, told:
        ask(made)


def test_samples_of_other_weights_than_the_last_are_counted(tmp_path):
    with policy_server(SGLang, LETTERS) as server, engine(server, tmp_path) as made:
        made.publish([("w", 1)])
        assert isinstance(server.speaks, SGLang)
        server.speaks.version = "default"  # as after a restart
        ask(made)
    assert made.foreign == 2


def test_nothing_is_stored_and_a_budget_holds(tmp_path):
    with policy_server(VLLM, LETTERS) as server, engine(server, tmp_path) as made:
        made.publish([("w", 1)])
        assert ask(made) == ask(made)
        asked = [path for path, _ in server.calls]
        assert asked.count("/v1/completions") == 4
        assert made.client.spending().calls == 4
