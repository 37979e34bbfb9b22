"""`togi score`: the same scores as transformers for the same text, alone and in a batch."""

import json
from pathlib import Path

import pytest
import torch
from tiny_run import QUESTIONS, tiny_model, togi
from transformers import AutoModelForSequenceClassification, AutoTokenizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def reward_model(folder: Path) -> Path:
    """A random reward model in the library's own format, with its chat template."""
    tiny_model(folder / "base")
    torch.manual_seed(1)
    net = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.chat_template, tokenizer.pad_token, net.config.pad_token_id = TEMPLATE, "<s>", tokenizer.bos_token_id
    for made in (net, tokenizer):
        made.save_pretrained(folder / "rm")
    return folder / "rm"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reward_model(tmp_path_factory.mktemp("score"))


def test_scores_are_those_of_transformers_whatever_stands_beside(model: Path):
    rows = [{"prompt": question, "answer": "Because. " * (1 + place)} for place, question in enumerate(QUESTIONS[:5])]
    talk = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
    path = model.parent / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"messages": talk}]))
    ended = togi(model.parent / "home", "score", str(model), str(path), "--json")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["rows"], found["dropped"]) == (6, {})
    net = AutoModelForSequenceClassification.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    for each in found["scores"]:
        turns = [{"role": "user", "content": each["prompt"]}, {"role": "assistant", "content": each["answer"]}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        for more in ({}, {"padding": "max_length", "max_length": 200}):
            with torch.no_grad():
                expected = net(**tokenizer(text, return_tensors="pt", add_special_tokens=False, **more)).logits.item()
            assert each["score"] == pytest.approx(expected, abs=1e-4)
    assert len({each["score"] for each in found["scores"]}) == 6


def test_a_bad_row_is_dropped_and_counted_as_the_error_advises(model: Path):
    path = model.parent / "bad.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": "Hi?", "answer": text}) + "\n" for text in ("One.", None, "Two.", "Three."))
    )
    ended = togi(model.parent / "home", "score", str(model), str(path))
    assert ended.returncode == 3 and "bad.jsonl:2: " in ended.stderr and "--on-bad-row drop" in ended.stderr
    ended = togi(model.parent / "home", "score", str(model), str(path), "--on-bad-row", "drop", "--json")
    found = json.loads(ended.stdout)
    assert (found["rows"], len(found["scores"]), found["dropped"]) == (4, 3, {"empty_text": 1})
    ended = togi(model.parent / "home", "score", str(model), str(path), "--on-bad-row", "drop")
    assert "3 answers, empty_text 1; " in ended.stdout
    path.write_text(json.dumps({"prompt": "Hi?", "answer": None}) + "\n")
    ended = togi(model.parent / "home", "score", str(model), str(path), "--on-bad-row", "drop")
    assert ended.returncode == 3 and "--on-bad-row error)" in ended.stderr
    path.write_text(json.dumps({"prompt": "Hi?", "answer": "One."}) + "\n")
    assert "\n1 answer; run " in togi(model.parent / "home", "score", str(model), str(path)).stdout
