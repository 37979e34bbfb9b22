"""Reward models trained elsewhere: declared with `kind: reward`, they score like one that a stage trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from grpo_runs import Bench, lines
from peft import LoraConfig, get_peft_model
from tiny import BYTES, SHAPE, tiny_tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    Gemma2Config,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
)

from togi.cli import main
from togi.core.codec import write_records
from togi.core.errors import InputError, RecipeError
from togi.core.records import Message, Prompt
from togi.core.sources import ModelSource
from togi.model.forest import Sequence
from togi.model.load import load, load_tokenizer
from togi.model.reward_model import ModelScorer, check_scalar_head, load_reward_model
from togi.recipe.graph import Graph, build
from togi.recipe.schema import validate
from togi.recipe.source import read_tree
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Resolved
from togi.stages.evaluation.evaluate import Evaluate
from togi.stages.evaluation.evaluate_work import run as evaluate
from togi.stages.training.grpo_work import run

CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "gemma2": Gemma2Config}
TURN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<eos>{% endfor %}"
TEMPLATE = TURN + "{% if add_generation_prompt %}[assistant]{% endif %}"
TALK = (Message("user", "Why?"),)


def write_scorer(folder: Path, kind: str = "llama", template: str | None = TEMPLATE, **changes: Any) -> Path:
    """Writes a random reward model as the library saves it; the folder holds nothing of togi."""
    torch.manual_seed(5)
    shape = {key: value for key, value in SHAPE.items() if key != "head_dim" or kind == "gemma2"}
    config = CONFIGS.get(kind, BertConfig)(**{**shape, "vocab_size": BYTES, "num_labels": 1, **changes})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def source(folder: Path, template: str | None = None) -> ModelSource:
    return ModelSource(kind="path", name=str(folder), template=template)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_of_the_library_gives_the_librarys_score(kind, tmp_path):
    folder = write_scorer(tmp_path / "rm", kind)
    judge = ModelScorer(load_reward_model(source(folder), tmp_path))
    ids = judge.model.tokenizer("[user]Why?<eos>[assistant]So.<eos>", add_special_tokens=False)["input_ids"]
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()(torch.tensor([ids])).logits[0, 0]
    assert judge.score([(TALK, "So.")])[0] == pytest.approx(theirs.item(), abs=1e-5)


def test_a_template_that_is_named_is_used(tmp_path):
    folder = write_scorer(tmp_path / "rm", template=None)
    with pytest.raises(InputError, match="it has no chat template"):
        load_reward_model(source(folder), tmp_path)
    assert ModelScorer(load_reward_model(source(folder, "chatml"), tmp_path)).score([(TALK, "So.")])


def test_a_head_that_is_read_otherwise_is_refused(tmp_path):
    with pytest.raises(InputError, match="bert models are not supported"):
        load_reward_model(source(write_scorer(tmp_path / "bert", "bert")), tmp_path)
    model = load_reward_model(source(write_scorer(tmp_path / "rm")), tmp_path)
    model.net.score = torch.nn.Linear(32, 1)  # a bias does not prevent loading
    check_scalar_head(model)
    model.net.score = torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    with pytest.raises(InputError, match=r"LlamaForSequenceClassification has none; use a reward model of a decoder"):
        check_scalar_head(model)
    with pytest.raises(InputError, match="its head gives 3 numbers; a scorer gives one"):
        load_reward_model(source(write_scorer(tmp_path / "three", num_labels=3)), tmp_path)


def test_an_adapter_that_brings_its_head_is_a_scorer(tmp_path):
    """As peft saves a reward model: the base is a causal model, and the head is stored with the adapter."""
    torch.manual_seed(1)
    shape = {key: value for key, value in SHAPE.items() if key != "head_dim"}
    LlamaForCausalLM(LlamaConfig(**{**shape, "vocab_size": BYTES})).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    net = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    adapted: Any = get_peft_model(net, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    adapted.save_pretrained(tmp_path / "rm")
    ids = tiny_tokenizer()("[user]Why?", add_special_tokens=False)["input_ids"]
    expected = adapted.eval()(input_ids=torch.tensor([ids])).logits[0, 0].item()
    made = load_reward_model(source(tmp_path / "rm", "chatml"), tmp_path)
    assert ModelScorer(made).score_sequences([Sequence(tuple(ids), (False,) * len(ids))], ["p"])[0] == pytest.approx(
        expected, abs=1e-4
    )
    assert load_tokenizer(source(tmp_path / "rm", "chatml"), tmp_path, "scorer")
    with pytest.raises(InputError, match="the base has no layers for"):
        load(source(tmp_path / "rm", "chatml"), tmp_path)


# --- in a recipe ------------------------------------------------------------------------------------------------------

RECIPE = """
name: r
models:
  base: {path: base, template: chatml}
  rm: {path: rm, kind: reward}
data: {d: {path: d.jsonl}}
stages:
  policy: {type: train.grpo, init: $base, prompts: $d, reward: {terms: [{type: model, scorer: $rm}]}}
  scores: {type: evaluate, base: $base, policy: $policy, prompts: $d, reward: $rm, held_out: $rm}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("base", "rm"):
        (tmp_path / name).mkdir()
    (tmp_path / "d.jsonl").write_text('{"prompt": "Why?"}\n')
    return tmp_path


def graph(folder: Path, text: str = RECIPE) -> Graph:
    (folder / "r.yaml").write_text(text)
    return build(validate(read_tree(folder / "r.yaml", ())))


def test_a_declared_reward_model_stands_wherever_a_trained_one_does(folder):
    found = graph(folder)
    for name in ("policy", "scores"):
        resolved = found.resolve(found.nodes[name], folder)["$rm"]
        assert resolved.source is not None
        assert (resolved.kind, resolved.source.name) == ("scorer", str(folder / "rm"))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("scorer: $rm", "scorer: $base", r"needs scorer, but \$base gives model; .*models\.base\.kind: reward"),
        ("init: $base", "init: $rm", r"needs model, but \$rm gives scorer; .*models\.rm\.kind: causal"),
        ("prompts: $d, reward: {", "prompts: $rm, reward: {", r"needs prompts, but \$rm gives scorer; stages that"),
        ("kind: reward", "kind: scorer", r"models\.rm\.kind: .*'causal', 'reward' or 'embedder'"),
    ],
)
def test_the_other_kind_of_model_is_refused(folder, old, new, expected):
    assert old in RECIPE
    with pytest.raises(RecipeError, match=expected):
        graph(folder, RECIPE.replace(old, new))


def test_nobody_talks_to_a_reward_model(folder):
    graph(folder)
    ended = CliRunner().invoke(main, ["chat", str(folder / "r.yaml"), "rm"])
    assert ended.exit_code == 2 and "models.rm is of kind reward, not a model to talk to" in ended.output


def context(bench: Bench, name: str) -> Context:
    made = bench.context(name)
    write_scorer(bench.folder / "rm")
    made.inputs["$rm"] = Resolved("scorer", source=source(bench.folder / "rm"))
    made.inputs["$policy"] = made.inputs["$base"]
    return made


def test_a_policy_learns_from_it_and_is_evaluated_by_it(tmp_path):
    bench = Bench(tmp_path)
    made = context(bench, "policy")
    run(bench.settings(reward={"terms": [{"type": "model", "scorer": "$rm"}]}, steps=1, group_size=2), made)
    assert "reward/rm/mean" in lines(made.folder)[0]

    prompts = [Prompt(id=f"p{i}", messages=(Message("user", f"Question {i}?"),)) for i in range(3)]
    write_records(tmp_path / "prompts" / RECORDS_FILE, "prompts", prompts)
    made = context(Bench(tmp_path), "scores")
    settings = {"base": "$base", "policy": "$policy", "prompts": "$prompts", "reward": "$rm", "held_out": "$rm"}
    evaluate(Evaluate.model_validate({**settings, "max_tokens": 4, "bootstrap": 100}), made)
    assert [row["metric"] for row in made.summary["table"]][1:3] == ["reward", "held-out reward"]
