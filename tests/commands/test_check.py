"""`togi check`: rows of each stage, rendered, cut and masked as in a run, and errors that would stop a run early."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny_run import RECIPE, tiny_model, togi, write_recipe

from togi.cli import main
from togi.commands.check_rows import AROUND, some
from togi.core.records import Document

STAGES = """\
name: checked
seed: 3
models:
  base: {path: model, template: chatml}
data:
  chats: {path: chats.jsonl}
  pairs: {path: pairs.jsonl}
  texts: {path: texts.jsonl}
  questions: {path: questions.jsonl}
stages:
  sft: {type: train.sft, init: $base, chats: $chats, steps: 1, batch_size: 2, system: Be kind., max_length: 120}
  dpo: {type: train.dpo, init: $sft, pairs: $pairs, steps: 1, batch_size: 2}
  smpo: {type: train.smpo, init: $base, pairs: $pairs, steps: 1, batch_size: 2, score_header: true}
  reward: {type: train.reward, init: $base, pairs: $pairs, steps: 1, batch_size: 2}
  pre: {type: train.pretrain, init: $base, steps: 1, batch_tokens: 64, max_length: 32, sources: [{documents: $texts}]}
  contrast: {type: contrast, input: $questions, model: $base, max_tokens: 8}
  curated: {type: curate, input: $questions, model: $base}
  scores: {type: evaluate, base: $base, policy: $sft, prompts: $questions, max_tokens: 8}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    """A recipe of many stages, with rows for all of them."""
    monkeypatch.setenv("TOGI_HOME", str(tmp_path / "home"))
    tiny_model(tmp_path / "model")
    rows: dict[str, list[dict[str, Any]]] = {
        "chats": [{"prompt": "Hi", "completion": "Hello"}, {"prompt": "Why?", "completion": "So. " * 20}],
        "pairs": [{"prompt": f"Name {i}.", "chosen": f"It is {i}.", "rejected": "I do not know."} for i in range(6)],
        "texts": [{"text": "A page about rain and rivers and what they do."}] * 2,
        "questions": [{"question": f"How long is a day on moon {i}?"} for i in range(4)],
    }
    for name, values in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
    (tmp_path / "checked.yaml").write_text(STAGES)
    return tmp_path / "checked.yaml"


RULES = """\
name: ruled
models:
  base: {path: model, template: chatml}
data:
  questions: {path: questions.jsonl}
stages:
  curated: {type: curate, input: $questions, method: rules}
  scores: {type: evaluate, models: [$base], benchmarks: [{type: answers, prompts: $questions, max_tokens: 8}]}
"""


def test_a_stage_that_asks_no_model_says_what_its_rules_do(recipe):
    with (recipe.parent / "questions.jsonl").open("a") as file:
        file.write(json.dumps({"question": "Why?"}) + "\n")
    recipe.write_text(RULES)
    ended = check(recipe)
    assert ended.exit_code == 0, ended.output
    said = "stage curated (curate): no rows for a model\n  dropped: too_short 1\n  records that pass the rules 4\n"
    assert said in ended.output and "0 rows" not in ended.output


def check(recipe: Path, *arguments: str) -> Any:
    return CliRunner().invoke(main, ["check", str(recipe), *arguments])


def found(recipe: Path, *arguments: str) -> dict[str, Any]:
    """The output of --json, without an error that follows it."""
    return json.JSONDecoder().raw_decode(check(recipe, "--json", *arguments).stdout)[0]


def scored(shown: dict[str, Any]) -> list[str]:
    """The text that carries loss, for each sequence."""
    return ["".join(token["text"] for token in side if token["scored"]) for side in shown["sides"]]


def test_every_stage_renders_its_own_rows(recipe):
    checked = found(recipe)
    assert checked["problems"] == []
    stages = checked["stages"]
    # contrast uses two instructions, evaluate two models; both pages are cut into windows
    counts = {"dpo": 6, "smpo": 6, "reward": 6, "contrast": 8, "curated": 4, "scores": 8}
    assert {name: stages[name]["rows"] for name in counts} == counts
    assert stages["pre"]["rows"] == 4
    first = {name: stage["shown"][0] for name, stage in stages.items()}
    assert scored(first["sft"]) == ["Hello<|im_end|>"]
    assert scored(first["dpo"]) == ["It is 0.<|im_end|>", "I do not know.<|im_end|>"]
    assert scored(first["smpo"])[0] == "<|im_start|>assistant\nIt is 0.<|im_end|>"
    assert scored(first["reward"]) == ["", ""] and scored(first["scores"]) == [""]
    text = "".join(token["text"] for token in first["sft"]["sides"][0])
    turns = (("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"))
    assert text == "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns)


def test_characters_of_several_tokens_are_shown_whole(recipe):
    answers = ("空は青いです。", "Небо голубое.", "🙂 ok")
    rows = [{"prompt": "色は?", "completion": answer} for answer in answers]
    (recipe.parent / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = CliRunner().invoke(main, ["check", str(recipe), "stages.sft.validation=null"])
    part = ended.output.partition("stage sft")[2].partition("\nstage ")[0]
    shown = part.replace("[", "").replace("]", "").replace("·", "")
    assert answers[0] in shown and "色は?" in shown and "\ufffd" not in part
    found = json.loads(CliRunner().invoke(main, ["check", str(recipe), "--json"]).output)
    for row in found["stages"]["sft"]["shown"]:
        text = "".join(token["text"] for side in row["sides"] for token in side)
        assert any(answer in text for answer in answers)


def test_what_is_too_long_is_counted_and_lengths_are_told(recipe):
    kept = found(recipe)["stages"]["sft"]
    assert kept["drops"] == {"too_long": 1} and kept["lengths"]["limit"] == 120
    whole = found(recipe, "stages.sft.max_length=null")["stages"]["sft"]
    assert whole["rows"] == 2 and whole["lengths"]["limit"] == 256
    assert whole["lengths"]["longest"] > 120 and sum(count for _, count in whole["lengths"]["bins"]) == 2
    (longest,) = [shown for shown in whole["shown"] if "longest" in shown["which"]]
    assert any(isinstance(token, int) and token >= AROUND for token in longest["sides"][0])
    printed = check(recipe).output
    assert "dropped: too_long 1" in printed and "[Hello<|im_end|>]" in printed.replace("][", "")


def test_what_no_stage_uses_is_noted(recipe):
    notes = found(recipe, "data.spare.path=nowhere.jsonl", "models.other.path=nowhere")["notes"]
    unused = [note.partition(":")[0] for note in notes if note.endswith("no stage uses it, so it was not checked")]
    assert unused == ["models.other", "data.spare"]


def test_what_the_settings_ask_for_and_cannot_have_is_noted(recipe):
    late = ("stages.dpo.steps=9", "stages.dpo.warmup_steps=2", "stages.dpo.final_rate=0.1")
    (note,) = [each for each in found(recipe, *late, "stages.dpo.final_steps=7")["notes"] if each.startswith("dpo: ")]
    assert "at most 9 steps; warmup_steps 2 and final_steps 7 leave none for the cosine decay" in note
    assert [
        each for each in found(recipe, *late, "stages.dpo.final_steps=5")["notes"] if each.startswith("dpo: ")
    ] == []


def test_a_limit_that_drops_every_row_is_an_error(recipe):
    ended = check(recipe, "stages.sft.max_length=20")
    assert ended.exit_code == 3
    assert "stage sft: every record was dropped" in ended.stderr


def test_all_that_would_stop_a_run_is_listed_at_once(recipe):
    """A template that rejects system turns stops the stage with a system prompt, and contrast by its instructions."""
    (recipe.parent / "model" / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}"
        "<|{{ m.role }}|>{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    ended = check(recipe, "models.base.template=null", "stages.dpo.init=$base")
    assert ended.exit_code == 3
    assert "stage sft: chat" in ended.stderr and "stage contrast: prompt" in ended.stderr
    assert ended.stderr.count("no system turn here") == 2
    assert "if it contains {question}" in ended.stderr
    assert "stage dpo (train.dpo): 6 rows" in ended.output


def test_what_could_not_be_trained_or_saved_is_refused_before_anything_is(recipe):
    config = recipe.parent / "model" / "config.json"
    plain = config.read_text()
    adapters = ["stages.sft.lora={rank: 2, save: adapter}", "stages.dpo.lora={rank: 2, save: both}"]
    ended = check(recipe, *adapters)
    assert ended.exit_code == 3 and "$sft: it is an adapter itself" in ended.stderr
    config.write_text(json.dumps({**json.loads(plain), "quantization_config": {"load_in_4bit": True}}))
    ended = check(recipe, "stages.sft.lora={rank: 2}")
    assert ended.exit_code == 3 and "stored in 4 bits and cannot be updated" in ended.stderr
    assert ended.stderr.count("cannot be updated") == 1  # smpo, reward and pre share this reason


def test_an_adapter_for_layers_that_the_model_does_not_have_is_refused(recipe):
    problem = "$base: lora.targets: no linear layer is called 'foo'; this model has q_proj, k_proj, v_proj, o_proj, "
    sft = ["stages.sft.lora.targets=[foo, q_proj]", "stages.sft.lora.rank=2"]
    assert [each.startswith(problem) for each in found(recipe, *sft)["problems"]] == [True]
    reward = found(recipe, "stages.reward.lora.targets=[score, all-linear]", "stages.dpo.lora.targets=[down_proj]")
    assert reward["problems"] == []
    made = found(recipe, "stages.dpo.lora.targets=[c_attn]")["problems"]
    assert [each.startswith("$sft: lora.targets: no linear layer is called 'c_attn'") for each in made] == [True]


def test_a_stage_whose_data_cannot_be_read_is_not_said_to_wait_for_a_stage(recipe):
    (recipe.parent / "chats.jsonl").write_text('{"prompt": "Hi"}\n')
    (recipe.parent / "questions.jsonl").write_text("")
    shown = found(recipe)
    assert len(shown["problems"]) == 2
    assert {"sft", "contrast", "curated", "scores"}.isdisjoint(shown["stages"]) and "reward" in shown["stages"]
    assert "wait for stages" not in check(recipe).output


def test_a_row_that_the_template_leaves_a_part_out_of_is_told_with_its_reason(recipe):
    called = {"role": "assistant", "content": "Let me look.", "tool_calls": [{"function": {"name": "f"}}]}
    with (recipe.parent / "chats.jsonl").open("a") as handle:
        handle.write(json.dumps({"messages": [{"role": "user", "content": "Weather?"}, called]}) + "\n")
    printed = check(recipe).output
    assert "not_rendered 1" in printed
    assert "ALARM not_rendered: 1 of 3 records are dropped; the first is" in printed and "tool_calls" in printed


def test_a_template_that_leaves_a_part_of_every_row_out_says_so_once(recipe):
    called = {"role": "assistant", "content": "Let me look.", "tool_calls": [{"function": {"name": "f"}}]}
    row = json.dumps({"messages": [{"role": "user", "content": "Weather?"}, called]}) + "\n"
    (recipe.parent / "chats.jsonl").write_text(row * 3)
    ended = check(recipe)
    assert ended.exit_code == 3
    assert "stage sft: every record was dropped: not_rendered 3; the first is" in ended.stderr


def test_prompts_that_leave_no_room_for_an_answer_are_an_error(recipe):
    ended = check(recipe, "stages.scores.max_tokens=250")
    assert ended.exit_code == 3
    assert "stage scores: prompt" in ended.stderr and "the context of" in ended.stderr


def test_rows_that_a_stage_will_choose_from_stand_in_for_its_choice(tmp_path, monkeypatch):
    monkeypatch.setenv("TOGI_HOME", str(tmp_path / "home"))
    recipe = write_recipe(tmp_path, RECIPE)
    stages = found(recipe)["stages"]
    assert stages["policy"]["stands_in"] == stages["pairs"]["stands_in"] == "questions"
    assert stages["policy"]["rows"] == 8
    assert stages["reward"]["waits"] == "pairs"
    assert "reward (for pairs)" in check(recipe).output


CHOSEN = """\
name: chosen
data:
  questions: {path: questions.jsonl}
stages:
  some: {type: select, input: $questions, count: 3}
  rest: {type: select, input: $questions, skip: 4}
  more: {type: select, input: $some, count: 4}
  parts: {type: split, input: $questions, parts: {train: 4, test: 2}}
  good: {type: split, input: $questions, parts: {train: 3, test: 1}}
  last: {type: select, input: $good.train, skip: 1, count: 2}
"""


def test_a_choice_of_more_records_than_there_are_is_refused_as_by_a_run(recipe):
    recipe.write_text(CHOSEN)
    checked, more = sorted(found(recipe)["problems"]), "make more records upstream"
    assert checked == [
        f"stage more: records 0 to 4 are asked for, but $some has only 3; lower skip or count, or {more}",
        f"stage parts: the parts need 6 records, but $questions has only 4; lower the counts, or {more}",
        f"stage rest: records 4 to 4 are asked for, but $questions has only 4; lower skip or count, or {more}",
    ]
    ran = togi(recipe.parent / "home", "run", str(recipe), "--until", "parts")
    assert ran.returncode == 3 and checked[1] in " ".join(ran.stderr.split())


def test_a_trial_is_checked_and_planned_with_its_own_counts(recipe):
    (recipe.parent / "questions.jsonl").write_text('{"question": "Why?"}\n{"question": "How?"}\n')
    recipe.write_text(CHOSEN.partition("  rest:")[0].replace("$questions, count: 3", "$questions, count: 9"))
    assert check(recipe).exit_code == 3 and check(recipe, "--limit", "2").exit_code == 0


def test_a_large_data_set_is_sampled_with_its_longest_row():
    records = [Document(id=str(i), text="x" * (50 if i == 33 else i % 7)) for i in range(100)]
    chosen = some(records, 10)
    assert [record.id for record in chosen] == ["0", "10", "20", "30", "33", "40", "50", "60", "70", "80", "90"]
    assert some(records, 100) == records


GRADED = """\
name: graded
models:
  base: {path: model, template: chatml}
data:
  questions: {path: questions.jsonl}
  others: {path: others.jsonl}
stages:
  some: {type: select, input: $questions, count: 2}
  policy:
    type: train.grpo
    init: $base
    prompts: $some
    validation: $others
    steps: 1
    prompts_per_step: 2
    group_size: 2
    sampling: {max_tokens: 8}
    reward: {terms: [{type: function, file: reward.py, name: NAME, style: trl}]}
"""
ASKING = """\
def right(completions, answer, **columns):
    return [0.0] * len(completions)

def graded(completions, level):
    return [0.0] * len(completions)
"""


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("right", "", "right asks for `answer`, and none of the 4 rows has one (they have no other columns)"),
        ("right", "answer", "right asks for `answer`, and none of the 1 validation rows"),
        ("graded", "answer", "graded asks for `level`, and none of the 4 rows has a column of that name (the other c"),
        ("graded", "level", ""),
    ],
)
def test_a_reward_function_that_needs_what_no_row_has_is_refused(recipe, name, key, message):
    """As by a run, but before the stage that chooses the rows has run."""
    questions = [{"question": f"How many are {i}?", **({key: i} if key else {})} for i in range(4)]
    others = [{"question": "And?", **({"level": 2} if key == "level" else {})}]
    for file, rows in (("questions", questions), ("others", others)):
        (recipe.parent / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (recipe.parent / "reward.py").write_text(ASKING)
    recipe.write_text(GRADED.replace("NAME", name))
    problems = found(recipe)["problems"]
    assert len(problems) == bool(message) and all(message in each for each in problems)
