"""`togi plan`: what a recipe will take, and what is not known before it ran."""

import json
import subprocess
import sys

import pytest
from tiny_run import QUESTIONS, togi, write_recipe
from tokenizers import Tokenizer

CHATS = """\
name: plan
models:
  base: {path: model, template: chatml}
data:
  questions: {path: questions.jsonl}
  talks: {path: talks.jsonl}
stages:
  some: {type: select, input: $questions, count: 6}
  pairs: {type: contrast, input: $some, model: $base, max_tokens: 12}
  tuned: {type: train.sft, init: $base, chats: $talks, epochs: 2, max_length: 160, micro_batch_tokens: 256}
  preferred: {type: train.dpo, init: $tuned, pairs: $pairs, steps: 3, batch_size: 4, max_length: 160}
  policy:
    type: train.grpo
    init: $preferred
    prompts: $some
    steps: 6
    prompts_per_step: 2
    group_size: 4
    sampling: {max_tokens: 12}
    reward: {gates: [{type: length, min: 1}]}
"""


@pytest.fixture
def planned(tmp_path):
    path = write_recipe(tmp_path, CHATS)
    answer = {"role": "assistant", "content": "x" * 20}
    rows = [{"messages": [{"role": "user", "content": q}, answer]} for q in QUESTIONS]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_bounds_follow_from_settings_and_data_before_anything_ran(planned, tmp_path):
    ended = togi(tmp_path / "home", "plan", str(planned), "--json")
    assert ended.returncode == 0, ended.stderr
    found = {row["stage"]: row["estimate"] for row in json.loads(ended.stdout)}
    assert found["questions"]["records"] == 8 and found["some"]["records"] == 6
    assert found["pairs"]["records"] == 6 and found["pairs"]["sampled"] == 2 * 6 * 12
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    lengths = [len(tokenizer.encode(f"{q}\n{'x' * 20}", add_special_tokens=False).ids) for q in QUESTIONS]
    tuned = found["tuned"]
    assert tuned["samples"] == 16 and tuned["tokens"] == round(16 * sum(lengths) / 8)
    assert tuned["peak_bytes"] > 0 and tuned["flops"] > 0
    assert tuned["seconds"] is None and "no train.sft has finished" in tuned["unknown"][0]
    preferred = found["preferred"]  # the pairs are not there yet
    assert preferred["samples"] == 12 and preferred["tokens"] == 12 * 160 * 2
    assert found["policy"]["sampled"] == 6 * 2 * 4 * 12
    assert any("prompts are unknown" in why for why in found["policy"]["unknown"])


def test_text_output_says_what_is_not_known(planned, tmp_path):
    shown = togi(tmp_path / "home", "plan", str(planned), "stages.tuned.micro_batch_tokens=auto").stdout
    assert "not known: time: no train.sft has finished" in shown
    assert "micro_batch_tokens is auto" in shown and "0 of 7 stages are done" in shown


def test_the_time_comes_from_a_finished_stage_of_the_same_type(planned, tmp_path):
    home = tmp_path / "home"
    ended = togi(home, "run", str(planned), "--until", "tuned", "--threads", "1", "--compute", "float32")
    assert ended.returncode == 0, ended.stderr
    assert "peak memory:" in ended.stderr and "predicted" in ended.stderr
    memory = json.loads(next(home.glob("store/train.sft-*/memory.json")).read_text())
    assert memory["micro_batch_tokens"] == 256 and memory["measured"] > 0 and memory["flops"] > 0
    ended = togi(home, "plan", str(planned), "stages.tuned.epochs=4", "--json")
    rows = {row["stage"]: row for row in json.loads(ended.stdout)}
    assert rows["tuned"]["state"] == "to do" and rows["tuned"]["estimate"]["seconds"] > 0
    assert rows["questions"]["state"] == "to do" or rows["talks"]["estimate"] is None


def test_planning_imports_no_torch(planned, tmp_path):
    code = (
        "import sys; from togi.cli import main\n"
        f"try: main(['plan', {str(planned)!r}])\n"
        "except SystemExit as ended: assert ended.code == 0, ended.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
