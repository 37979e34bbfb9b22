"""vLLM serves the models that togi saves: the same scores, and the same greedy text up to the terminator.

vLLM pins other versions of torch and transformers, so it lives in an environment of its own: TOGI_VLLM_PYTHON is its
interpreter, and without it these tests are skipped.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from places import TESTS
from tiny_texts import bare_context, chat
from vllm_here import END, PYTHON, SETTINGS, needs_vllm, wide_llama

from togi.core.records import Message, Prompt, SamplingParams
from togi.core.sources import ModelSource
from togi.model.load import LoadedModel, load
from togi.model.reward_model import ModelScorer, add_scalar_head
from togi.model.save import save_model
from togi.rollout.generator import ModelGenerator
from togi.stages.base import MODEL_FOLDER
from togi.stages.training import sft_work
from togi.stages.training.sft import TrainSft
from togi.text.template import Template, get_template

pytestmark = [pytest.mark.slow, needs_vllm]
ANSWERS = {"Why is the sky blue?": "Light scatters.", "Where do rivers begin?": "In the hills, as rain."}


def ask_vllm(tmp_path: Path, **request: Any) -> Any:
    """The answer of vLLM, which runs in a process of its own."""
    told = tmp_path / "answer.json"
    peer = TESTS / "vllm_peer.py"
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(
        [str(PYTHON), str(peer), str(told)],
        input=json.dumps(request),
        env={**kept, **SETTINGS, "VLLM_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return json.loads(told.read_text())


def named(folder: Path, template: str | None = None) -> LoadedModel:
    return load(ModelSource(kind="path", name=str(folder), template=template), folder)


@pytest.mark.parametrize("ends", ["newline", "pad"])
def test_vllm_gives_the_same_scores(ends, tmp_path):
    """Also if texts ended with the pad token: vLLM reads the last token, the library the last one before pads."""
    loaded = named(wide_llama(tmp_path / "base"), "chatml")
    template = get_template("chatml", loaded.tokenizer)
    if ends == "pad":
        roles = {role: (f"[{role}]", "</s>") for role in ("user", "assistant")}
        template = Template(name="eos", terminator="</s>", generation="[assistant]", roles=roles)
        loaded.tokenizer.pad_token = "</s>"
        loaded.net.config.pad_token_id = loaded.tokenizer.pad_token_id
    base = LoadedModel(net=loaded.net, tokenizer=loaded.tokenizer, template=template, name="tiny")
    scorer = add_scalar_head(base, seed=4)
    save_model(scorer, tmp_path / "rm")
    judge = ModelScorer(scorer)
    items = [((Message("user", question),), answer) for question, answer in ANSWERS.items()]
    items.append((items[0][0], ""))
    prompts = [list(judge.sequence(*item).ids) for item in items]
    found = ask_vllm(tmp_path, task="scores", folder=str(tmp_path / "rm"), prompts=prompts)
    assert found == pytest.approx(judge.score(items), abs=1e-4)
    assert len({round(score, 3) for score in found}) == len(items)


def test_vllm_ends_where_togi_ends(tmp_path):
    chats = [chat(("user", q), ("assistant", a), name=f"c{i}") for i, (q, a) in enumerate(ANSWERS.items())]
    wide_llama(tmp_path / "model")
    context = bare_context(tmp_path, chats=chats)
    settings = {"init": "$base", "chats": "$chats", "batch_size": 2, "epochs": 60, "learning_rate": 1e-2}
    sft_work.run(TrainSft.model_validate(settings), context)
    folder = context.folder / MODEL_FOLDER
    trained = named(folder)
    generator = ModelGenerator(trained.net, trained.tokenizer, trained.template)
    prompts = [Prompt(id=q, messages=(Message("user", q),)) for q in ANSWERS]
    groups = generator.generate(prompts, SamplingParams(temperature=0.0, max_tokens=60))
    ours = [group[0].text for group in groups]
    assert ours == [f"{answer}{END}" for answer in ANSWERS.values()]  # it ends, and not with the base's eos
    talks = [[{"role": "user", "content": question}] for question in ANSWERS]
    found = ask_vllm(tmp_path, task="texts", folder=str(folder), conversations=talks, max_tokens=60)
    assert found == list(ANSWERS.values())
