"""The code on the cards of exported models writes what togi writes, however an answer ends and whatever the base's
generation settings are."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from card_code import code_of, run
from huggingface_hub import ModelCard
from tiny import tiny_model
from tiny_run import togi
from tokenizers_made import byte_bpe

from togi.core.records import Message
from togi.text.render import render_answer, render_prompt
from togi.text.template import Template, get_template, jinja_template

SAYS = "the cat"
LINES = """\
{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}@{% endif %}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""
RECIPE = """\
name: cards
models:
  at: {path: at, template: {file: lines.jinja, terminator: "@"}}
  several: {path: several, template: chatml}
  special: {path: special, template: chatml}
data: {chats: {path: chats.jsonl}}
stages:
  at_end: {type: train.sft, init: $at, chats: $chats, epochs: 1, learning_rate: 1e-9, batch_size: 2}
  several_end: {type: train.sft, init: $several, chats: $chats, epochs: 1, learning_rate: 1e-9, batch_size: 2}
  special_end:
    {type: train.sft, init: $special, chats: $chats, epochs: 1, learning_rate: 1e-9, batch_size: 2,
     lora: {rank: 2, save: adapter}}
card: {title: "研ぎ: \\"#1\\"\\n {x}", language: ["no", ja], licence: "Llama 3: 'ours'"}
"""


def speaker(folder: Path, template: Template, special: tuple[str, ...] = ()) -> None:
    """Saves a model that answers everything with SAYS and the terminator: each token depends on the one before it."""
    words = byte_bpe(special=special)
    net = tiny_model("llama", torch.float32, vocab_size=len(words), eos_token_id=words.eos_token_id, head_dim=32)
    bound, asked = template.bind(words), (Message("user", "Hi"),)
    chain = [
        render_prompt(bound, words, asked)[-1],
        *render_answer(bound, words, asked, SAYS + bound.terminator),
        words.eos_token_id,
    ]
    assert len({*chain}) == len(chain)
    follow(net, chain)
    net.save_pretrained(folder)
    words.save_pretrained(folder)


def follow(net, chain: Sequence[int]) -> None:
    """Makes a network write the tokens of a chain after its first one."""
    table = net.get_input_embeddings().weight
    with torch.no_grad():
        for layer in net.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        net.lm_head.weight.zero_()
        for token, following in pairwise(chain):
            net.lm_head.weight[following] = table[token] / table[token].norm()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three models: the end of an answer is an ordinary token, several tokens, or a special token of which
    the base's settings do not know. The second base has settings that forbid to repeat what was said."""
    folder = tmp_path_factory.mktemp("speakers")
    (folder / "lines.jinja").write_text(LINES)
    speaker(folder / "at", jinja_template("lines", LINES, byte_bpe(), "@"))
    speaker(folder / "several", get_template("chatml"))
    speaker(folder / "special", get_template("chatml"), ("<|im_start|>", "<|im_end|>"))
    path = folder / "several" / "generation_config.json"
    more = {"repetition_penalty": 30.0, "suppress_tokens": byte_bpe()(SAYS)["input_ids"][:1]}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": SAYS}]
    (folder / "chats.jsonl").write_text(f"{json.dumps({'messages': turns})}\n" * 4)
    (folder / "cards.yaml").write_text(RECIPE)
    ended = togi(folder / "home", "run", str(folder / "cards.yaml"))
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.parametrize(
    ("stage", "form"),
    [("at_end", "merged"), ("several_end", "merged"), ("special_end", "merged"), ("special_end", "adapter")],
)
def test_the_code_writes_what_togi_writes(done, tmp_path, stage, form):
    asked = (f"{done / 'cards.yaml'}:{stage}", str(tmp_path / "out"), "--format", form, "--json")
    ended = togi(done / "home", "export", *asked)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["answers"][form] == SAYS
    for name in ("README.md", "README.ja.md"):
        assert run(code_of(tmp_path / "out" / name)) == f"{SAYS}\n"
    card: Any = ModelCard.load(tmp_path / "out" / "README.md")
    assert '# 研ぎ: "#1" {x}\n' in card.text and card.data.language == ["no", "ja"]  # in YAML 1.1, `no` is false
