"""A policy whose reward model is on a server gets the weights of a run with a local reward model, kills included."""

import time
from threading import Thread
from typing import Any

import pytest
import torch
from engines import Process, fake, togi_serve, train
from grpo_runs import Bench, lines
from tiny_run import tiny_model
from tokenizers_made import byte_bpe
from transformers import LlamaConfig, LlamaForSequenceClassification

from togi.client.endpoint import Endpoint
from togi.core.errors import StageError
from togi.core.sources import ModelSource
from togi.recipe.worker import StageLogHandler, log
from togi.stages.context import Context, Resolved
from togi.stages.training.grpo import TrainGrpo


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    made = Bench(tmp_path_factory.mktemp("graded"))
    tiny_model(made.folder / "reward")
    config = LlamaConfig.from_pretrained(made.folder / "reward")
    torch.manual_seed(7)
    config.num_labels, config.pad_token_id = 1, None
    LlamaForSequenceClassification(config).save_pretrained(made.folder / "reward")
    byte_bpe().save_pretrained(made.folder / "reward")
    return made


def settings(bench: Bench, **more: Any) -> TrainGrpo:
    term = {"type": "model", "scorer": "$rm"}
    return bench.settings(**{"reward": {"terms": [term]}, "steps": 3, **more})


def context(bench: Bench, name: str, url: str = "", **more: Any) -> Context:
    made = bench.context(name)
    source = ModelSource(kind="path", name=str(bench.folder / "reward"), template="chatml")
    endpoint = Endpoint(name="rm", urls=(url,), model="policy", protocol="togi", **more) if url else None
    made.inputs["$rm"] = Resolved("scorer", source=source, endpoint=endpoint)
    made.cache = bench.folder / name / "cache"  # its own answers
    made.cache.mkdir(parents=True)
    return made


def test_a_reward_model_in_another_process_gives_the_same_weights(bench):
    here = context(bench, "here")
    whole = train(settings(bench), here)
    with togi_serve(bench.folder / "reward", bench.folder / "home", "--reward") as server:
        there = context(bench, "there", server.url)
        assert train(settings(bench), there) == whole
    assert lines(there.folder) == lines(here.folder)
    assert max(row["grad_norm"] for row in lines(here.folder)) > 0


def told_when_killed(made: Context, server: Process, back: bool) -> list[str]:
    """Collects the messages of a run whose server is killed after the first step and, with `back`, restarted."""
    told: list[str] = []

    def send(event: dict[str, Any]) -> None:
        told.append(str(event.get("message", "")))
        if event["event"] == "progress" and event["what"] == "steps" and event["done"] == 1:
            server.kill()
            if back:
                Thread(target=lambda: (time.sleep(1), server.start()), daemon=True).start()

    made.control.send = send
    return told


def test_a_run_waits_for_a_reward_server_that_was_killed(bench, tmp_path):
    with fake("rewards", tmp_path / "home") as server:
        whole = train(settings(bench), context(bench, "undisturbed", server.url))
        made = context(bench, "killed", server.url)
        told = told_when_killed(made, server, back=True)
        log.addHandler(handler := StageLogHandler(made))
        try:
            assert train(settings(bench), made) == whole
        finally:
            log.removeHandler(handler)
    said = "\n".join(told)
    assert "waiting for it, at most 60 s" in said and "answers again" in said


def test_a_reward_server_that_stays_away_ends_the_run_within_its_deadline(bench, tmp_path):
    with fake("rewards", tmp_path / "home") as server:
        made = context(bench, "gone", server.url, deadline=2.0)
        told_when_killed(made, server, back=False)
        with pytest.raises(StageError, match=r"model rm: no server has answered for .* the same command continues"):
            train(settings(bench), made)
