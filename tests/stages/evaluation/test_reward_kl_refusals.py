"""What `reward_kl` refuses before it samples: a model on a server, another tokenizer, another template, prompts that
leave no room."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import tiny_model

from togi.client.endpoint import Endpoint
from togi.core.codec import write_records
from togi.core.errors import InputError
from togi.core.records import Message, Prompt
from togi.core.settings import ModelRef, PromptsRef, ScorerRef
from togi.core.sources import ModelSource
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Control, Resolved
from togi.stages.evaluation.benchmarks import reward_kl_work
from togi.stages.evaluation.benchmarks.reward_kl import RewardKl
from togi.stages.evaluation.benchmarks.room_work import Room

BASE, POLICY = ModelRef("$base"), ModelRef("$policy")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in `model`, and the same model with another tokenizer in `other`."""
    folder = tmp_path_factory.mktemp("models")
    tiny_model(folder / "model")
    tiny_model(folder / "other")
    words = json.loads((folder / "other" / "tokenizer.json").read_text())
    ids = words["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (folder / "other" / "tokenizer.json").write_text(json.dumps(words))
    return folder


def here(folder: Path, template: str = "chatml") -> Resolved:
    return Resolved("model", source=ModelSource(kind="path", name=str(folder), template=template, device="cpu"))


def measure(folder: Path, base: Resolved, policy: Resolved, **changes: Any) -> None:
    prompt = Prompt(id="p", messages=(Message("user", "Why is the sky blue?"),))
    write_records(folder / "questions" / RECORDS_FILE, "prompts", [prompt])
    questions = Resolved("prompts", folder=folder / "questions")
    inputs: dict[str, Resolved] = {PromptsRef("$questions"): questions, BASE: base, POLICY: policy}
    context = Context("scores", folder / "stage", folder, 1, inputs, Control(send=lambda event: None))
    subjects = {"base": BASE, "policy": POLICY}
    settings = RewardKl(prompts=PromptsRef("$questions"), reward=ScorerRef("$reward"), **{"max_tokens": 8, **changes})
    room = Room(context, "reward_kl", subjects, baseline="base", baseline_ref=BASE, reasons=("too_long", "no_score"))
    reward_kl_work.run(settings, room)


def test_a_model_on_a_server_tells_no_log_probabilities(models: Path, tmp_path: Path):
    endpoint = Endpoint(name="policy", urls=("http://127.0.0.1:9/v1",), model="m")
    served = Resolved("model", source=ModelSource(kind="endpoint", name="m"), endpoint=endpoint)
    with pytest.raises(InputError, match="policy is on a server, which gives no log-probabilities"):
        measure(tmp_path, here(models / "model"), served)


def test_another_tokenizer_has_no_kl(models: Path, tmp_path: Path):
    with pytest.raises(InputError, match="policy and base have different tokenizers"):
        measure(tmp_path, here(models / "model"), here(models / "other"))


def test_another_template_renders_other_prompts(models: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"policy and base render a prompt differently.* the same `template`"):
        measure(tmp_path, here(models / "model"), here(models / "model", "llm-jp"))


def test_prompts_that_leave_no_room_are_told(models: Path, tmp_path: Path):
    with pytest.raises(InputError, match="no prompt leaves room for 250 tokens; lower max_tokens"):
        measure(tmp_path, here(models / "model"), here(models / "model"), max_tokens=250)
