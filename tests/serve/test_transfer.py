"""A server receives weights over a connection, in a process of its own, and refuses what does not fit."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from engines import Forked
from served import ask
from tiny_run import tiny_model

from togi.core.sources import ModelSource
from togi.model.load import load
from togi.rollout.prompt_logprobs import text_logprobs
from togi.rollout.transfer import Group

JOIN, UPDATE, LEAVE = "/init_weights_update_group", "/update_weights_from_distributed", "/destroy_weights_update_group"
BODY = {"model": "policy", "prompt": [1, 2, 3, 4], "max_tokens": 1, "temperature": 0, "logprobs": 0, "echo": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("transfer")
    tiny_model(found / "model")
    return found


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Forked]:
    found = Forked(folder / "model", folder / "home", reward=False)
    yield found
    found.kill()


def told(server: Forked, path: str, **body: Any) -> tuple[int, Any]:
    return ask(server.url.removesuffix("/v1") + path, body)


def join(server: Forked, group: Group, **more: Any) -> tuple[int, Any]:
    place = {"master_address": "127.0.0.1", "master_port": group.port, "rank_offset": 1, "world_size": 2}
    return told(server, JOIN, **{**place, "group_name": group.name, "backend": "gloo", **more})


def joined(server: Forked, name: str) -> Group:
    group = Group(name, "127.0.0.1", 0, 0, 2)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(join, server, group)
        group.join()
        assert asked.result()[0] == 200
    return group


def test_answers_come_from_the_weights_that_arrived_and_name_them(server: Forked, folder: Path) -> None:
    net: Any = load(ModelSource(kind="path", name=str(folder / "model"), template="chatml"), folder / "cache").net
    for weight in net.parameters():
        weight.data.mul_(1.5)
    own = dict(net.named_parameters())
    group = joined(server, "first")
    shapes = [list(each.shape) for each in own.values()]
    forms = {"names": list(own), "dtypes": ["float32"] * len(own), "shapes": shapes}
    before = ask(f"{server.url}/completions", BODY)[1]
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(told, server, UPDATE, **forms, group_name="first", weight_version="a")
        for weight in own.values():
            group.broadcast(weight.detach())
        assert asked.result()[1]["success"] is True
    after = ask(f"{server.url}/completions", BODY)[1]
    assert told(server, LEAVE, group_name="first")[0] == 200
    wanted = text_logprobs(net, BODY["prompt"], 0).logprobs
    found = after["choices"][0]["logprobs"]["token_logprobs"][1:4]
    assert found == pytest.approx(wanted, abs=1e-5) and after["weight_version"] == "a"
    assert before["choices"][0]["logprobs"] != after["choices"][0]["logprobs"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"group_name": "another"}, "this server is not in a group 'another'"),
        ({"names": ["no.such"]}, r"no.such, shape \(1,\): the served model has no such weight"),
        ({"shapes": [[7]]}, r"shape \(7,\): the served model has the shape"),
        ({"dtypes": ["pickle"]}, "dtype: found 'pickle', allowed are torch's names"),
        ({"dtypes": []}, "names, dtypes and shapes must have the same length"),
        ({"load_format": "dummy"}, "load_format"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_they_are_sent(server: Forked, change: Any, words: str) -> None:
    name = "model.norm.weight"
    group = joined(server, "second")
    shape = [1] if change.get("names") else [32]
    body = {"names": [name], "dtypes": ["float32"], "shapes": [shape], "group_name": group.name}
    status, reply = told(server, UPDATE, **{**body, **change})
    assert status == 400 and re.search(words, reply["error"]["message"])
    told(server, LEAVE, group_name=group.name)
    group.close()


def test_a_group_that_nobody_keeps_or_of_another_kind_is_refused(server: Forked) -> None:
    group = Group("third", "127.0.0.1", 0, 0, 2)
    assert "receives weights over gloo" in join(server, group, backend="nccl")[1]["error"]["message"]
    status, reply = join(server, group, master_port=1)
    assert status == 400 and "group third cannot be joined" in reply["error"]["message"]


def test_a_client_that_dies_in_the_middle_leaves_a_server_that_answers(server: Forked) -> None:
    group = joined(server, "fourth")
    body = {"names": ["model.norm.weight"], "dtypes": ["float32"], "shapes": [[32]], "group_name": group.name}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(told, server, UPDATE, **body)
        group.close()  # as the end of its process does
        status, reply = asked.result()
    assert status == 400 and "group fourth broke" in reply["error"]["message"]
    assert ask(f"{server.url}/completions", BODY)[0] == 200
