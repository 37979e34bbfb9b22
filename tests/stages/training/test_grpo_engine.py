"""A policy that is sampled on a server: over HTTP by togi's own, in this process and in one of its own."""

from collections.abc import Iterator
from typing import Any

import pytest
from engines import ENGINE, context, train
from grpo_runs import Bench, lines, weights
from served import serving

from togi.core.sources import ModelSource
from togi.model.load import load
from togi.rollout.local import Sampler
from togi.rollout.prompt_logprobs import text_logprobs
from togi.serve.app import Served
from togi.serve.chat import Speaker, chat_app


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("engine"))


def app(bench: Bench, takes: bool = True) -> Any:
    """togi's own server, in this process; one that does not take weights says that it does."""
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
    return chat_app(served, speaker)


@pytest.fixture
def url(bench) -> Iterator[str]:
    with serving(app(bench)) as found:
        yield f"{found}/v1"


@pytest.mark.parametrize("more", [{}, {"lora": {"rank": 2}}, {"lora": {"rank": 2}, "publish": "adapter"}])
def test_a_policy_sampled_on_a_server_learns_what_one_sampled_here_does(bench, url, more):
    publish = more.get("publish", "disk")
    settings: dict[str, Any] = {
        "validation": 0.3,
        "evaluate_every": 2,
        **{k: v for k, v in more.items() if k == "lora"},
    }
    here = bench.run(f"here-{len(more)}-{publish}", bench.settings(**settings))
    there = context(bench, f"there-{len(more)}-{publish}", url)
    assert train(bench.settings(**settings, engine={**ENGINE, "publish": publish}), there) == weights(here)
    rows = lines(there.folder)
    assert all(row["engine/probe"] < 1e-4 for row in rows)
    assert [row["reward/total/mean"] for row in rows] == [row["reward/total/mean"] for row in lines(here)]
