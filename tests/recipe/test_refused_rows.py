"""A row that a model's own chat template refuses: the error names its file and line, and the model."""

import json
import re
from pathlib import Path

import pytest
from tiny_run import tiny_model, togi

TEMPLATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
RECIPE = """\
name: refused
models:
  base: {path: model}
data:
  chats: {path: chats.jsonl}
stages:
  some: {type: mix, inputs: [{input: $chats}], by: rows}
  sft: {type: train.sft, init: $base, chats: $some, steps: 1, batch_size: 2}
"""
COMMANDS = [
    ("check",),
    ("check", "stages.sft.chats=$chats", "stages.some=null"),
    ("run",),
    ("run", "stages.sft.workers=2"),
]
ADVICE = "change the conversation, or choose another template for the model (template: chatml)"


def turns(*words: str) -> str:
    said = [{"role": role, "content": text} for role, text in (word.split(":") for word in words)]
    return json.dumps({"messages": said}) + "\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe whose third row has two questions in a row."""
    tiny_model(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
    good, bad = turns("user:Why?", "assistant:So."), turns("user:Hi", "user:Are you there?", "assistant:Yes.")
    (tmp_path / "chats.jsonl").write_text(good + turns("user:What?", "assistant:It.") + bad + good)
    (tmp_path / "refused.yaml").write_text(RECIPE)
    return tmp_path / "refused.yaml"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_file_and_line_the_model_and_the_words_of_its_template_are_told(recipe: Path, command) -> None:
    folder = recipe.parent
    ended = togi(folder / "home", command[0], str(recipe), *command[1:])
    assert ended.returncode == 3
    shard = r"(, shard 0)?"
    found = rf"{re.escape(str(folder))}/chats\.jsonl:3: stage sft{shard}: chat \w{{16}}: model {re.escape(str(folder))}"
    told = "the chat template refuses a conversation of user, user, assistant: roles must alternate; "
    assert re.search(rf"{found}/model: {re.escape(told + ADVICE)}", ended.stderr), ended.stderr
