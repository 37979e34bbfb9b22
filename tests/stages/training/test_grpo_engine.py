"""A policy sampled on a server: togi's own over HTTP, and fakes of other servers, which are killed like the trainer."""

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from engines import ENGINE, Forked, Process, context, fake, togi_serve, train
from grpo_runs import Bench, lines, weights
from policy_servers import VLLM, policy_server
from pydantic import ValidationError
from served import serving
from transfer_servers import NapSGLang, NapVLLM

from togi.core.codec import read_records
from togi.core.errors import StageError
from togi.core.sources import ModelSource
from togi.model.load import load
from togi.rewards.combine import Reward
from togi.rollout.local import Sampler
from togi.rollout.prompt_logprobs import text_logprobs
from togi.rollout.transfer import Receiver
from togi.serve.app import Served
from togi.serve.chat import Speaker, chat_app
from togi.serve.transfer import add_transfers
from togi.stages.training.grpo import TrainGrpo
from togi.stages.training.grpo_updates_work import Updates

AHEAD: dict[str, Any] = {
    "staleness": 1,
    "loss": {"sampler_correction": {"level": "token", "mode": "truncate", "cap": 2.0}},
}


class Killed(BaseException):
    """In place of a SIGKILL: no code of the stage runs after it."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def letters(bench) -> list[int]:
    tokenizer = bench.model().tokenizer
    return [tokenizer(letter, add_special_tokens=False)["input_ids"][-1] for letter in "abcdefghij"]


def app(bench: Bench, takes: bool = True) -> Any:
    """Returns togi's own server in this process. Without `takes` it confirms new weights but does not load them."""
    model = bench.model()
    sampler = Sampler(model.net, model.tokenizer, model.template.terminator)

    def read(folder: str) -> dict[str, Any]:
        source = ModelSource(kind="path", name=folder if takes else str(bench.folder / "model"), template="chatml")
        return dict(load(source, bench.folder / "cache").net.named_parameters())

    served = Served(name="policy", kind="causal", limit=sampler.limit, vocabulary=len(model.tokenizer))
    speaker = Speaker(
        engine=sampler,
        tokenizer=model.tokenizer,
        template=model.template,
        read=lambda ids, top: text_logprobs(model.net, ids, top),
        weights=read,
    )
    found = chat_app(served, speaker)
    add_transfers(found, Receiver(dict(model.net.named_parameters())), sampler.publish)
    return found


@pytest.fixture
def url(bench) -> Iterator[str]:
    with serving(app(bench)) as found:
        yield f"{found}/v1"


# --- the same policy --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("publish", "more"),
    [
        pytest.param("disk", {"validation": 0.3, "evaluate_every": 2, "steps": 2}, id="whole"),
        pytest.param("disk", {"lora": {"rank": 2}, "steps": 2}, id="merged"),
        pytest.param("adapter", {"lora": {"rank": 2}, "steps": 2}, id="adapter"),
        pytest.param("transfer", {"validation": 0.3, "evaluate_every": 2, "steps": 2}, id="sent"),
        pytest.param("transfer", {"lora": {"rank": 2}, "steps": 2}, id="merged-and-sent"),
    ],
)
def test_a_policy_sampled_on_a_server_learns_what_one_sampled_here_does(bench, url, publish, more, request):
    name = request.node.callspec.id
    here = bench.run(f"here-{name}", bench.settings(**more))
    there = context(bench, f"there-{name}", url)
    assert train(bench.settings(**more, engine={**ENGINE, "publish": publish}), there) == weights(here)
    rows = lines(there.folder)
    assert all(row.pop("engine/probe") < 1e-4 for row in rows)
    assert [row["reward/total/mean"] for row in rows] == [row["reward/total/mean"] for row in lines(here)]
    assert all(0 <= row["sampler_kl"] < 1 and row["sampler_weight/max"] > 0 for row in rows)


def test_a_server_without_the_policys_weights_ends_the_stage(bench):
    told = pytest.raises(StageError, match=r"does not have the weights that were published: .* differ from the trainer")
    with serving(app(bench, takes=False)) as url, told:
        train(bench.settings(engine=ENGINE), context(bench, "deaf", f"{url}/v1"))


def test_log_probabilities_of_another_temperature_end_the_stage(bench, letters):
    """Such as those of vLLM, which are at temperature 1 by default."""
    settings = bench.settings(engine={**ENGINE, "tolerance": 0.1}, sampling={"max_tokens": 12, "temperature": 0.2})
    own = bench.at_work(bench.settings())
    with policy_server(VLLM, letters) as server:
        server.logprob = lambda text, at: own.updates.logprobs(text[:at], text[at : at + 1], 1.0)[0]
        with pytest.raises(StageError, match=r"must be taken at temperature 0.2; start vLLM with"):
            train(settings, context(bench, "raw", server.url))
    assert server.wrong == []


# --- one batch ahead --------------------------------------------------------------------------------------------------


def test_one_batch_ahead_is_exactly_one_batch_old(bench, letters):
    settings = bench.settings(**AHEAD, engine={**ENGINE, "tolerance": 100.0}, steps=5)
    with policy_server(VLLM, letters) as server:
        train(settings, context(bench, "old", server.url))
    published = [at for at, (path, _) in enumerate(server.calls) if path == "/collective_rpc"]
    sampled = [at for at, (path, body) in enumerate(server.calls) if "return_token_ids" in body and body["n"]]
    batches = [sum(first < at < last for at in sampled) for first, last in pairwise([*published, len(server.calls)])]
    assert batches == [16 + 1, 8, 8, 8]  # the first weights serve two batches and the check of the server
    assert server.wrong == []


def test_the_embedded_engine_samples_ahead_as_a_server_does(bench, url):
    here = bench.run("here-ahead", bench.settings(**AHEAD, steps=3))
    there = context(bench, "there-ahead", url)
    train(bench.settings(**AHEAD, steps=3, engine=ENGINE), there)
    ids, others = ([each.token_ids for each, _ in texts(folder)] for folder in (here, there.folder))
    assert ids == others and len(ids) == 24
    grads = [[row["grad_norm"] for row in lines(folder)] for folder in (here, there.folder)]
    assert grads[0] == pytest.approx(grads[1], rel=1e-3) and min(grads[0]) > 0


def test_a_batch_ahead_needs_a_word_on_how_it_is_weighed(bench):
    with pytest.raises(ValidationError, match=r"which need importance weights; .* loss.sampler_correction"):
        bench.settings(staleness=1)


# --- kills ------------------------------------------------------------------------------------------------------------


def disturbed(bench: Bench, name: str, settings: TrainGrpo, server: Process, monkeypatch: Any) -> str:
    """Returns the messages of a run whose trainer is killed after its first and third step, and whose server is killed
    and restarted in the middle of a batch each time."""
    plain, left, told = Reward.grade, [0], [""]

    def grade(reward: Reward, *asked: Any) -> Any:
        if left:
            left.pop()
            server.kill()
            server.start()
        return plain(reward, *asked)

    monkeypatch.setattr(Reward, "grade", grade)
    for killed_after in (1, 3, None):
        left[:] = [0]
        made = context(bench, name, server.url, concurrency=1)

        def send(event: dict[str, Any], last: int | None = killed_after) -> None:
            told.append(str(event.get("message", "")))
            if event["event"] == "progress" and event["done"] == last:
                raise Killed

        made.control.send = send
        with nullcontext() if killed_after is None else pytest.raises(Killed):
            train(settings, made)
    return "\n".join(told)


@pytest.mark.parametrize(
    ("protocol", "more"), [pytest.param("vllm", {}, id="at-once"), pytest.param("sglang", AHEAD, id="ahead")]
)
def test_kills_of_trainer_and_server_change_no_bit(bench, letters, tmp_path, monkeypatch, protocol, more, request):
    settings = bench.settings(**more, engine={**ENGINE, "tolerance": 100.0}, steps=4, save_every=2)
    name = request.node.callspec.id
    with fake(protocol, tmp_path / "home", letters) as server:
        whole = train(settings, context(bench, f"whole-{name}", server.url))
        told = disturbed(bench, f"killed-{name}", settings, server, monkeypatch)
    assert told.count("its answers are discarded and sampled again") >= 2
    first, second = bench.folder / f"whole-{name}", bench.folder / f"killed-{name}"
    assert weights(second) == whole
    assert [alike(row) for row in lines(second)] == [alike(row) for row in lines(first)]
    assert texts(second) == texts(first)


def alike(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a step without its probe, which is not measured for replayed samples."""
    return {name: value for name, value in row.items() if name != "engine/probe"}


def texts(folder: Path) -> list[Any]:
    records: Any = read_records(folder / "output" / "samples.parquet")[1]
    return [(each.completion, each.scores) for each in records]


@pytest.mark.slow
def test_togi_serve_is_killed_and_the_run_goes_on_with_the_same_bits(bench, tmp_path, monkeypatch):
    settings = bench.settings(engine=ENGINE)
    with togi_serve(bench.folder / "model", tmp_path / "home", "--updates") as server:
        disturbed(bench, "killed-togi", settings, server, monkeypatch)
    assert weights(bench.folder / "killed-togi") == weights(bench.run("whole-togi", bench.settings()))


def test_a_server_that_lost_the_connection_gets_the_weights_again_over_a_new_one(bench, tmp_path, monkeypatch):
    settings = bench.settings(**AHEAD, engine={**ENGINE, "publish": "transfer"}, steps=4, save_every=2)
    server = Forked(bench.folder / "model", tmp_path / "home", reward=False)
    try:
        whole = train(settings, context(bench, "whole-sent", server.url, concurrency=1))
        told = disturbed(bench, "killed-sent", settings, server, monkeypatch)
    finally:
        server.kill()
    assert told.count("its answers are discarded and sampled again") >= 2
    assert weights(bench.folder / "killed-sent") == whole


# --- sleep ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speaks", [pytest.param(NapVLLM, id="vllm"), pytest.param(NapSGLang, id="sglang")])
def test_a_server_sleeps_while_the_policy_learns_also_after_a_kill(bench, letters, monkeypatch, speaks):
    settings = bench.settings(engine={**ENGINE, "tolerance": 100.0, "sleep": True}, steps=3, save_every=1)
    plain, naps = Updates.steps, []

    def steps(updates: Updates, made: Any) -> Any:
        naps.append(server.speaks.asleep)
        yield from plain(updates, made)

    monkeypatch.setattr(Updates, "steps", steps)
    with policy_server(speaks, letters) as server:
        whole = train(settings, context(bench, f"naps-{speaks.owner}", server.url))
        assert naps == [True] * 3 and not server.speaks.asleep
        made = context(bench, f"killed-nap-{speaks.owner}", server.url)
        made.control.send = lambda event: killed_in(event, 2)
        with pytest.raises(Killed):
            train(settings, made)
        assert server.speaks.asleep
        assert train(settings, context(bench, f"killed-nap-{speaks.owner}", server.url)) == whole
        assert not server.speaks.asleep
    assert server.wrong == []


def killed_in(event: dict[str, Any], step: int) -> None:
    if event["event"] == "progress" and event["done"] == step:
        raise Killed


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"engine": ENGINE, "sampling": {"top_p": 0.9}}, "an engine samples by temperature alone"),
        ({"engine": {**ENGINE, "publish": "adapter"}}, "publish: adapter needs lora"),
        ({"engine": ENGINE, "key_cache": 1.0}, "key_cache limits the embedded engine"),
        ({"engine": ENGINE, "lora": {"rank": 2}, "processes": 2}, "set engine.publish: adapter"),
        ({"engine": {**ENGINE, "publish": "transfer"}, "processes": 2}, "publish: transfer works with one process"),
        ({"engine": {**ENGINE, "publish": "transfer", "folder": "f"}}, "publish: transfer writes no folder"),
        ({"engine": {**ENGINE, "publish": "transfer", "sleep": True}}, "sleep is for a server on the trainer's card"),
        ({**AHEAD, "engine": {**ENGINE, "sleep": True}}, "engine.sleep frees the server's memory during training"),
    ],
)
def test_settings_that_do_not_fit_an_engine_are_refused(bench, more, message):
    with pytest.raises(ValidationError, match=message):
        bench.settings(**more)
