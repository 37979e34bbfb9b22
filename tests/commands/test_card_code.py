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
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList

from togi.commands.export import LONGEST
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


class Written(StoppingCriteria):
    """Ends each row whose last tokens are `ids`."""

    def __init__(self, ids: torch.Tensor) -> None:
        self.ids = ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **more: Any) -> Any:
        return (input_ids[:, -len(self.ids) :] == self.ids).all(-1)


def by_criteria(folder: Path, text: str, end: str) -> tuple[str, int]:
    """The library's greedy answer to a text, as code on published cards writes it: only the tokens of `end` stop it,
    and no id does. Returns the answer without `end`, and the number of tokens after it was written."""
    words, net = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    inputs = words(text, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)
    ids = torch.tensor(words.encode(end, add_special_tokens=False))
    assert len(ids) > 1
    # Of the settings given to `generate`, the library fills those that are None from the network's own.
    net.generation_config.update(eos_token_id=None, stop_strings=None, pad_token_id=words.pad_token_id)
    stops = StoppingCriteriaList([Written(ids)])
    with torch.inference_mode():
        given = net.generate(**inputs, stopping_criteria=stops, max_new_tokens=LONGEST, do_sample=False)
    written = given[0, inputs["input_ids"].shape[1] :]
    return words.decode(written).split(end, 1)[0], len(written)


@pytest.mark.parametrize("ends", [True, False])
def test_a_stopping_criteria_on_the_terminators_ids_writes_what_togi_writes(tmp_path, ends):
    chatml, question = get_template("chatml-nobos"), "Why is the sky blue?"
    speaker(tmp_path / "model", chatml)
    if not ends:  # a random network writes no terminator, but other things until it is cut
        words = byte_bpe()
        net = tiny_model("llama", torch.float32, vocab_size=len(words), eos_token_id=words.eos_token_id, head_dim=32)
        net.save_pretrained(tmp_path / "model")
    more = ("--template", "chatml-nobos", "--question", question, "--json")
    ended = togi(tmp_path / "home", "export", str(tmp_path / "model"), str(tmp_path / "out"), *more)
    assert ended.returncode == 0, ended.stderr
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    answer, count = by_criteria(tmp_path / "out", text, "<|im_end|>")
    assert answer == json.loads(ended.stdout)["answers"]["merged"]
    assert (answer == SAYS and count < LONGEST) if ends else (len(answer) > 20 and count == LONGEST)
