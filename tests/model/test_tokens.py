"""Tokens that a recipe adds: their rows of embeddings and head start as the mean, are trained, and are saved."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import loaded
from transformers import AutoModelForCausalLM, AutoTokenizer

from togi.core.errors import RecipeError
from togi.core.sources import ModelSource
from togi.model.adapter import LoraSettings, token_ids
from togi.model.load import LoadedModel, load
from togi.model.lora import add_lora
from togi.model.save import check_saved, save_model
from togi.model.tokens import add_tokens, give_rows
from togi.recipe.graph import build
from togi.recipe.schema import validate
from togi.recipe.source import read_tree
from togi.recipe.worker import resolved_from_json, resolved_to_json
from togi.stages.context import Resolved
from togi.stages.training.sft import TrainSft
from togi.text.template import TEMPLATES

NEW = ("<|start_header_id|>", "<|end_header_id|>")


def with_tokens(folder: Path, *, tied: bool, tokens: tuple[str, ...] = NEW) -> LoadedModel:
    """A tiny model that was saved and is loaded with tokens added."""
    save_model(loaded("llama", tie_word_embeddings=tied), folder)
    return load(ModelSource(kind="path", name=str(folder), tokens=tokens), folder)


@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_begin_as_the_mean_of_the_old_ones(tmp_path, tied):
    before = load_old(tmp_path / "m", tied)
    made = with_tokens(tmp_path / "m", tied=tied)
    ids = token_ids(made.tokenizer, NEW)
    old = before.get_input_embeddings().weight
    used = len(made.tokenizer.get_vocab()) - len(NEW)
    assert made.new_tokens == NEW and made.net.config.vocab_size == max(len(old), max(ids) + 1)
    for name in ("get_input_embeddings", "get_output_embeddings"):
        table = getattr(made.net, name)().weight
        mean = getattr(before, name)().weight[:used].mean(0)
        assert all(torch.equal(table[i], mean) for i in ids)
        assert torch.equal(table[:used], getattr(before, name)().weight[:used])
    assert (made.net.get_input_embeddings().weight is made.net.get_output_embeddings().weight) == tied


def load_old(folder: Path, tied: bool) -> Any:
    save_model(loaded("llama", tie_word_embeddings=tied), folder)
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("targets", [None, ("all-linear",), ("q_proj", "lm_head")])
def test_new_rows_are_trained_and_saved(tmp_path, tied, targets):
    made = with_tokens(tmp_path / "m", tied=tied)
    ids = token_ids(made.tokenizer, NEW)
    start = made.net.get_input_embeddings().weight[list(ids)].detach().clone()
    if targets is not None:
        settings = LoraSettings(rank=2, targets=targets, new_rows=ids)
        made = replace(made, net=add_lora(made.net, settings, seed=1))
    step(made.net, ids)
    save_model(made, tmp_path / "out")
    assert check_saved(made, tmp_path / "out") == []
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert [tokenizer(token, add_special_tokens=False)["input_ids"] for token in NEW] == [[i] for i in ids]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == made.net.config.vocab_size
    moved = again.get_input_embeddings().weight[list(ids)] - start
    assert (moved.abs().amax(1) > 1e-3).all()
    assert (again.get_output_embeddings().weight[list(ids)] - start).abs().max() > 1e-3


def step(net: Any, ids: tuple[int, ...]) -> None:
    """Two updates by the sign of the gradient of the new tokens' loss: the first moves an adapter away from 0."""
    for _ in range(2):
        net(input_ids=torch.tensor([[*ids, *ids]]), labels=torch.tensor([[*ids, *ids]])).loss.backward()
        with torch.no_grad():
            for param in net.parameters():
                if param.grad is not None:
                    param -= 0.01 * param.grad.sign()
                    param.grad = None


def test_a_token_that_is_there_keeps_its_row_and_needs_no_training(tmp_path):
    made = with_tokens(tmp_path / "m", tied=False)
    rows = made.net.get_input_embeddings().weight.detach().clone()
    assert add_tokens(made.tokenizer, NEW) == ()
    give_rows(made.net, made.tokenizer, ())
    assert torch.equal(made.net.get_input_embeddings().weight, rows)


# --- the recipe's side ------------------------------------------------------------------------------------------------

RECIPE = """
name: r
models: {base: {path: m, MORE}}
data: {d: {path: d.jsonl}}
stages: {tuned: {type: train.sft, init: $base, chats: $d, steps: 1, PRESET}}
"""


def source_and_mark(folder: Path, more: str, preset: str = "") -> tuple[ModelSource, str]:
    (folder / "d.jsonl").write_text("{}\n")
    (folder / "m").mkdir(exist_ok=True)
    (folder / "r.yaml").write_text(RECIPE.replace(", MORE", more).replace(", PRESET", preset))
    graph = build(validate(read_tree(folder / "r.yaml")))
    source = next(s for s in graph.nodes["tuned"].inputs.values() if isinstance(s, ModelSource))
    return source, graph.nodes["tuned"].fingerprint


def test_the_content_of_a_template_and_added_tokens_are_in_the_fingerprint(tmp_path):
    file = tmp_path / "my.jinja"
    marks = []
    for text, more in (
        ("a", ", template: {file: my.jinja}"),
        ("b", ", template: {file: my.jinja}"),
        ("b", ", template: {file: my.jinja, terminator: END}"),
        ("b", ", tokens: {add: ['<x>']}"),
        ("b", ", tokens: {add: ['<y>']}"),
        ("b", ""),
    ):
        file.write_text(text)
        source, mark = source_and_mark(tmp_path, more)
        marks.append(mark)
    assert len(dict.fromkeys(marks)) == len(marks)
    assert (source.template, source.template_file, source.tokens) == (None, "", ())


def test_a_template_file_and_tokens_reach_the_worker(tmp_path):
    (tmp_path / "my.jinja").write_text("a")
    source, _ = source_and_mark(tmp_path, ", template: {file: my.jinja, terminator: END}, tokens: {add: ['<x>']}")
    assert (source.template_file, source.terminator) == (str(tmp_path / "my.jinja"), "END")
    sent = json.loads(json.dumps(resolved_to_json(Resolved("model", source=source))))
    assert resolved_from_json(sent).source == source


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (", tokens: {add: []}", "tokens.add"),
        (", tokens: {add: [a, a]}", "each token must be unique"),
        (", tokens: {add: [' ']}", "not blank"),
        (", template: chatlm", "did you mean 'chatml'"),
        (", template: {fil: x}", "template"),
    ],
)
def test_what_a_model_cannot_be_given(tmp_path, more, said):
    with pytest.raises(RecipeError, match=said):
        source_and_mark(tmp_path, more)


def test_the_preset_of_vikhr_nemo_brings_template_and_tokens(tmp_path):
    preset = ", preset: vikhr-nemo-sft"
    source, _ = source_and_mark(tmp_path, "", preset)
    assert (source.template, source.tokens) == ("vikhr-nemo", NEW)
    source, _ = source_and_mark(tmp_path, ", template: chatml", preset)
    assert (source.template, source.tokens) == ("chatml", ())
    assert source_and_mark(tmp_path, "")[0].template is None
    made = TrainSft.model_validate({"init": "$base", "chats": "$d", "preset": "vikhr-nemo-sft"})
    assert made.lora is not None and (made.lora.rank, "lm_head" in made.lora.targets) == (256, True)


def test_the_template_of_vikhr_nemo_is_the_published_one():
    turns = [
        SimpleNamespace(role=r, content=c, extra={}, train=True) for r, c in (("documents", " [] "), ("user", "Hi"))
    ]
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    text = f"<s>{head.format('documents')}[]</s>{head.format('user')}Hi</s>{head.format('assistant')}"
    assert TEMPLATES["vikhr-nemo"].prompt_text(turns) == text
