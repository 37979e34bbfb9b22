"""Weights that a server receives over a connection, and a server that sleeps: what it is told, and what arrives."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from policy_servers import Server, policy_server
from tokenizers_made import byte_bpe
from transfer_servers import NapSGLang, NapVLLM, identity

from togi.client.endpoint import Endpoint
from togi.client.live import LiveClient
from togi.client.store import AnswerStore
from togi.client.wire_samples import Weights
from togi.client.wire_transfer import TensorForm, parts
from togi.core.errors import InputError, StageError
from togi.core.protocols import Request
from togi.core.records import Completion, SamplingParams
from togi.rollout.engine import answer
from togi.rollout.remote import RemoteEngine
from togi.rollout.transfer import Sender, open_link, packed

PROTOCOLS = [pytest.param(NapVLLM, id="vllm"), pytest.param(NapSGLang, id="sglang")]
CPU = torch.device("cpu")
TOKENIZER: Any = byte_bpe(special=("<|im_end|>",))
LETTERS = [TOKENIZER(letter, add_special_tokens=False)["input_ids"][-1] for letter in "abcdefghij"]
REQUEST = Request(prompt_ids=(5, 6, 7), params=SamplingParams(n=2, max_tokens=6), seeds=(1, 2))


def tensors(value: float) -> dict[str, torch.Tensor]:
    half = torch.full((3, 4), value, dtype=torch.bfloat16)
    return {"model.a": half, "model.b": torch.arange(5.0) * value, "scale": torch.tensor(value)}


def form(name: str, tensor: torch.Tensor) -> TensorForm:
    return TensorForm(name, str(tensor.dtype)[6:], tuple(tensor.shape), tensor.numel() * tensor.element_size())


@contextmanager
def engine(server: Server, tmp_path: Path, **more: Any) -> Iterator[RemoteEngine]:
    """An engine that sends the weights that it publishes."""
    piped = isinstance(server.speaks, NapVLLM)
    sender = Sender(CPU, *((server.speaks.pipe.opener,) if piped else ()))
    marks = iter(range(1, 99))

    def write(weights: Any) -> Weights:
        made = dict(weights)
        sender.load([form(*each) for each in made.items()], lambda: iter(made.items()))
        return Weights("", f"togi-{next(marks)}")

    endpoint = Endpoint(name="there", **{"urls": (server.url,), "model": "policy", **more})
    with closing(AnswerStore(tmp_path / "answers.sqlite")) as store:
        client = LiveClient(endpoint, store, run="test", wire=sender)
        with closing(RemoteEngine(client, TOKENIZER, "<|im_end|>", write)) as made:
            yield made


def ask(made: RemoteEngine) -> list[Completion]:
    return next(answer(made, [REQUEST]))


def told(server: Server) -> list[str]:
    return [path for path, _ in server.calls if path not in ("/v1/completions", "/generate")]


# --- transfer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speaks", PROTOCOLS)
def test_the_tensors_arrive_byte_for_byte_and_answers_come_from_them(speaks, tmp_path):
    with policy_server(speaks, LETTERS) as server, engine(server, tmp_path) as made:
        answers = []
        for value in (1.5, 2.5, 1.5):
            made.publish(tensors(value).items())
            assert server.loaded == identity(tensors(value))
            answers.append(ask(made))
    first, second, third = answers
    assert first == third != second and made.foreign == 0 and server.wrong == []


def test_vllm_is_told_to_start_to_receive_and_to_finish(tmp_path):
    with policy_server(NapVLLM, LETTERS) as server, engine(server, tmp_path) as made:
        for _ in range(2):
            made.publish(tensors(1.0).items())
        made.close()
    update = ["/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache"]
    assert told(server) == [
        "/init_weight_transfer_engine", *update, *update, "/shutdown_weight_transfer_engine",
    ]  # fmt: skip
    assert server.wrong == []


def test_sglang_meets_once_and_gets_the_version_with_the_last_part(tmp_path):
    with policy_server(NapSGLang, LETTERS) as server, engine(server, tmp_path) as made:
        for _ in range(2):
            made.publish(tensors(1.0).items())
        made.close()
    update = "/update_weights_from_distributed"
    assert told(server) == ["/init_weights_update_group", update, update, "/destroy_weights_update_group"]
    bodies = [body for path, body in server.calls if path == update]
    assert [body["weight_version"] for body in bodies] == ["togi-1", "togi-2"] and server.wrong == []


def test_a_server_that_lost_the_meeting_is_met_again(tmp_path):
    with policy_server(NapSGLang, LETTERS) as server, engine(server, tmp_path) as made:
        made.publish(tensors(1.0).items())
        server.speaks.forget()
        made.publish(tensors(2.0).items())
        assert server.loaded == identity(tensors(2.0))
    assert told(server).count("/init_weights_update_group") == 2 and server.wrong == []


@pytest.mark.parametrize(
    ("speaks", "path", "words"),
    [
        (NapVLLM, "/init_weight_transfer_engine", r"answers 404: Not Found \(3 tries\); .* --weight-transfer-config"),
        (NapVLLM, "/update_weights", r"answers 404: Not Found \(3 tries\)"),
        (NapSGLang, "/update_weights_from_distributed", r"answers 404: Not Found \(3 tries\)"),
    ],
)
def test_a_server_that_cannot_receive_is_told_with_what_to_do(speaks, path, words, tmp_path):
    with policy_server(speaks, LETTERS) as server, engine(server, tmp_path) as made:
        del server.speaks.paths[path]
        with pytest.raises(StageError, match=words):
            made.publish(tensors(1.0).items())


def test_servers_that_share_the_work_otherwise_are_refused(tmp_path):
    with policy_server(NapSGLang, LETTERS) as server, engine(server, tmp_path) as made:
        server.pages["/server_info"] = lambda: {"tp_size": 1, "dp_size": 2}
        with pytest.raises(StageError, match=r"dp_size is 2; weights can only be sent"):
            made.publish(tensors(1.0).items())
    (tmp_path / "second").mkdir()
    with policy_server(NapSGLang, LETTERS) as server:
        more = {"urls": (server.url, server.url), "protocol": "sglang"}
        with engine(server, tmp_path / "second", **more) as made, pytest.raises(InputError, match="needs a single url"):
            made.publish(tensors(1.0).items())


def test_vllm_gets_nothing_from_a_processor():
    with pytest.raises(InputError, match=r"needs a CUDA device, .* use engine.publish: disk"):
        open_link("vllm", "http://127.0.0.1:1/v1", 2, CPU)


def test_a_pack_ends_with_the_tensor_that_exceeds_it():
    made = [torch.arange(count, dtype=torch.int16) for count in (2, 3, 1, 4)]  # 4, 6, 2 and 8 bytes
    packs = list(packed(iter(made), most=8))
    assert [pack.numel() for pack in packs] == [10, 10]
    assert torch.equal(torch.cat(packs).view(torch.int16), torch.cat(made))
    forms = [form(str(each.numel()), each) for each in made]
    assert [[each.name for each in part] for part in parts(forms, most=8)] == [["2", "3"], ["1", "4"]]


# --- sleep ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speaks", PROTOCOLS)
def test_a_server_sleeps_and_wakes_for_the_next_weights(speaks, tmp_path):
    with policy_server(speaks, LETTERS) as server, engine(server, tmp_path) as made:
        for value in (1.0, 2.0):
            made.publish(tensors(value).items())
            ask(made)
            assert made.client.sleep() and server.speaks.asleep
            assert made.client.sleep()  # a second time is no error
            made.client.wake()
            made.client.wake()
            assert not server.speaks.asleep
    assert server.wrong == []
    naps = [path for path in told(server) if path in ("/sleep?level=1", "/release_memory_occupation")]
    assert len(naps) == 2


@pytest.mark.parametrize("speaks", PROTOCOLS)
def test_a_server_that_a_killed_run_left_asleep_is_woken(speaks, tmp_path):
    with policy_server(speaks, LETTERS) as server:
        for name in ("killed", "next"):
            (tmp_path / name).mkdir()
            with engine(server, tmp_path / name) as made:
                made.client.wake()
                made.publish(tensors(1.0).items())
                ask(made)
                made.client.sleep()
    assert server.wrong == []


def test_a_server_that_cannot_sleep_is_refused_with_what_to_do(tmp_path):
    with policy_server(NapVLLM, LETTERS) as server, engine(server, tmp_path) as made:
        server.speaks.able = False
        with pytest.raises(InputError, match=r"was told to sleep, but does not; .* --enable-sleep-mode"):
            made.client.sleep()
    (tmp_path / "second").mkdir()
    with policy_server(NapVLLM, LETTERS) as server, engine(server, tmp_path / "second") as made:
        del server.pages["/is_sleeping"]
        with pytest.raises(InputError, match=r"/is_sleeping answers 404: Not Found; .* VLLM_SERVER_DEV_MODE=1"):
            made.client.wake()
