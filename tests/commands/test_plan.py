"""`togi plan`: the cost of a recipe, and what is unknown before it has run."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
from large_shapes import THIRTEEN
from places import ROOT
from tiny_run import QUESTIONS, togi, write_recipe
from tiny_texts import bare_context, chats
from tokenizers import Tokenizer

from togi.commands import plan, plan_machine
from togi.commands.plan import PlannedStage
from togi.core.settings import ChatsRef, ModelRef
from togi.model.sizes import Job, Shape, predict
from togi.stages.data.importing import Import
from togi.stages.training.phases import TOKENIZER
from togi.stages.training.resources import USABLE_CPU
from togi.stages.training.sft import TrainSft

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
    texts = [
        (f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n", f"{'x' * 20}<|im_end|>\n") for q in QUESTIONS
    ]
    asked, whole = (
        sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in found) / 8
        for found in ([q for q, _ in texts], [q + a for q, a in texts])
    )
    tuned = found["tuned"]
    assert tuned["samples"] == 16 and tuned["tokens"] == round(16 * whole)
    assert tuned["peak_bytes"] > 0 and tuned["flops"] > 0
    assert tuned["seconds"] is None and "no stage that trains has finished" in tuned["unknown"][0]
    preferred = found["preferred"]  # the pairs do not exist yet: two answers to each prompt, at their maximum length
    assert preferred["samples"] == 12 and preferred["tokens"] == round(12 * (asked + 2 * 12))
    policy = found["policy"]
    assert policy["sampled"] == 6 * 2 * 4 * 12 and policy["tokens"] == round(6 * 2 * (asked + 4 * 12))


def test_what_cannot_be_bounded_is_said_to_be_unknown(planned, tmp_path):
    ended = togi(tmp_path / "home", "plan", str(planned), "data.questions={hub: some/questions}", "--json")
    found = {row["stage"]: row["estimate"] for row in json.loads(ended.stdout)}
    assert any("prompts are unknown" in why for why in found["policy"]["unknown"])
    assert found["preferred"]["tokens"] == 12 * 160 * 2  # bounded by max_length


def test_no_number_is_given_for_what_servers_read_if_a_part_of_it_is_unknown(planned, tmp_path):
    def told(*words: str) -> dict[str, Any]:
        server = 'url: "http://127.0.0.1:9/v1", model: m, price: {input: 1, output: 2}'
        words = (f"models.writer={{{server}}}", "data.texts={hub: some/texts}", *words)
        ended = togi(tmp_path / "home", "plan", str(planned), *words, "--json")
        assert ended.returncode == 0, ended.stderr
        return next(row["estimate"] for row in json.loads(ended.stdout) if row["stage"] == "made")

    made = "{type: synthesize, documents: $texts, model: $writer, max_candidates: 5, METHOD}"
    found = told(f"stages.made={made.replace('METHOD', 'method: qa')}")
    assert (found["calls"], found["read"], found["money"]) == (5, None, None)
    assert "tokens read and money: how long the texts are that writer reads" in found["unknown"]
    embedder = "models.near={url: 'http://127.0.0.1:9/v1', model: e, kind: embedder, price: {input: 1}}"
    found = told(f"stages.made={made.replace('METHOD', 'method: grounded, embedder: $near')}", embedder)
    assert (found["calls"], found["read"], found["money"]) == (None, None, None)
    assert "calls: how often near is asked" in found["unknown"]


def test_questions_that_a_model_will_write_are_as_long_as_they_may_be(planned, tmp_path):
    drafts = "stages.some={type: synthesize, model: $base, examples: $questions, count: 6, max_tokens: 30}"
    ended = togi(tmp_path / "home", "plan", str(planned), drafts, "--json")
    policy = next(row["estimate"] for row in json.loads(ended.stdout) if row["stage"] == "policy")
    assert policy["tokens"] == 6 * 2 * (30 + 4 * 12)
    assert any("length: at most 30 tokens, because nothing is written yet" in note for note in policy["notes"])


HUB = """\
name: hub
models:
  base: {hub: some/model, shape: shape.json, template: chatml}
  judge: {url: "http://127.0.0.1:9/v1", model: j, price: {input: 1, output: 2}}
data:
  talks: {hub: some/talks, expect: {rows: 1000, tokens: 90, longest: 700}}
  questions: {hub: some/questions, expect: {rows: 50, tokens: 20, longest: 40}, limit: 30}
stages:
  tuned: {type: train.sft, init: $base, chats: $talks, epochs: 2, max_length: 512, batch_size: 1}
  answers: {type: respond, prompts: $questions, models: [$tuned], samples: 4, max_tokens: 100}
  judged: {type: label, samples: $answers, judge: $judge, max_tokens: 16}
  graded: {type: label, samples: $answers, judge: $judge, method: graded, max_tokens: 16}
  pairs: {type: pairs, samples: $graded, best: 1, worst: 2}
  policy: {type: train.dpo, init: $tuned, pairs: $pairs, reference: false}
"""


@pytest.fixture
def elsewhere(tmp_path):
    """A recipe whose models and data are not on this machine."""
    (tmp_path / "shape.json").write_text(json.dumps({**THIRTEEN, "unpadded_vocab_size": 99000}))
    (tmp_path / "hub.yaml").write_text(HUB)
    return tmp_path / "hub.yaml"


def test_a_plan_of_what_is_elsewhere_follows_from_what_the_recipe_expects(elsewhere, tmp_path):
    ended = togi(tmp_path / "home", "plan", str(elsewhere), "--json")
    assert ended.returncode == 0, ended.stderr
    found = {row["stage"]: row["estimate"] for row in json.loads(ended.stdout)}
    tuned = found["tuned"]
    assert tuned["samples"] == 2000 and tuned["tokens"] == 2000 * 90 and tuned["flops"] > 0
    assert "peak: with micro-batches of 512 tokens" in tuned["notes"][-1]  # the longest row has 700 tokens, cut to 512
    assert found["answers"]["records"] == 30 * 4  # 30 of 50 rows are read
    judged, graded = found["judged"], found["graded"]
    assert judged["records"] == 30 * 6 and judged["calls"] == 2 * 30 * 6  # every two of four, in both orders
    assert judged["read"] > judged["calls"] * 2 * (20 + 100) and judged["sampled"] == judged["calls"] * 16
    assert graded["calls"] == graded["records"] == 120
    assert found["pairs"]["records"] == 30 * 2
    policy = found["policy"]
    assert policy["samples"] == 60 and policy["tokens"] == 60 * (20 + 2 * 100)


def test_a_schedule_that_does_not_fit_the_steps_is_told_before_anything_runs(elsewhere, tmp_path):
    def told(stage: str, *settings: str) -> tuple[int, list[str]]:
        ended = togi(tmp_path / "home", "plan", str(elsewhere), "--json", *(f"stages.{stage}.{s}" for s in settings))
        (found,) = [row["estimate"] for row in json.loads(ended.stdout) if row["stage"] == stage]
        return found["steps"], found["alarms"]

    slow = ("batch_size=8", "final_rate=0.1", "warmup_steps=2", "final_steps=5")
    steps, (alarm,) = told("policy", *slow)
    assert steps == 8 and alarm.startswith(
        "training takes at most 8 steps; warmup_steps 2 and final_steps 5 leave none"
    )
    assert told("policy", *slow, "epochs=2") == (15, []) and told("policy", "batch_size=8")[1] == []
    assert "reaches 1e-06 only at step 5" in told("policy", "batch_size=8", "warmup_steps=5")[1][0]
    assert told("tuned", "batch_size=64", *slow[1:]) == (32, [])
    packed = ("batch_size=64", "packing=blocks", *slow[1:])  # 180,000 tokens are 351 blocks of 513: 6 steps
    steps, (alarm,) = told("tuned", *packed)
    assert steps == 6 and "leave none for the cosine decay" in alarm
    ended = togi(tmp_path / "home", "plan", str(elsewhere), *(f"stages.policy.{each}" for each in slow))
    assert "ALARM: policy: training takes at most 8 steps" in ended.stdout and ended.returncode == 0


def test_a_policys_schedule_is_told_too(planned, tmp_path):
    slow = ("schedule=cosine", "warmup_steps=2", "final_rate=0.1", "final_steps=3")
    overrides = [f"stages.policy.{each}" for each in slow]
    rows = json.loads(togi(tmp_path / "home", "plan", str(planned), *overrides, "--json").stdout)
    ((stage, alarms),) = [(r["stage"], r["estimate"]["alarms"]) for r in rows if r["estimate"]["alarms"]]
    assert stage == "policy" and [each.partition(";")[0] for each in alarms] == ["training takes at most 6 steps"]


def test_a_source_that_is_smaller_than_its_share_is_told_with_its_epochs(elsewhere, tmp_path):
    more = [
        "data.texts={hub: some/texts, expect: {rows: 100, tokens: 50, longest: 90}}",
        "data.pages={hub: some/pages, expect: {rows: 1000, tokens: 50, longest: 90}}",
        "stages.before={type: train.pretrain, init: $base, tokens: 40000, batch_tokens: 1000, max_length: 500, "
        "sources: [{documents: $texts, share: 1}, {documents: $pages, share: 1}]}",
    ]
    rows = json.loads(togi(tmp_path / "home", "plan", str(elsewhere), *more, "--json").stdout)
    (before,) = [row["estimate"] for row in rows if row["stage"] == "before"]
    assert "sources smaller than their share are read again: $texts about 4 times" in before["notes"]
    assert before["steps"] == 40


def test_memory_follows_the_rows_of_a_checkpoint_and_counts_follow_those_of_its_tokenizer(elsewhere, tmp_path):
    rows = json.loads(togi(tmp_path / "home", "plan", str(elsewhere), "--json").stdout)
    tuned = next(row for row in rows if row["stage"] == "tuned")
    assert tuned["models"]["base"]["embeddings"] == 2 * 99000 * 5120
    (tmp_path / "shape.json").write_text(json.dumps(THIRTEEN))
    padded = json.loads(togi(tmp_path / "home", "plan", str(elsewhere), "--json").stdout)
    whole = next(row for row in padded if row["stage"] == "tuned")
    assert whole["models"]["base"]["embeddings"] == 2 * 99487 * 5120
    assert whole["estimate"]["peak_bytes"] == tuned["estimate"]["peak_bytes"]
    shown = togi(tmp_path / "home", "plan", str(elsewhere)).stdout
    assert "without embeddings" in shown and "12,688,184,320" in shown and "1,018,746,880" in shown


def test_what_a_recipe_says_of_a_model_and_data_that_are_here_is_refused(elsewhere, tmp_path):
    (tmp_path / "shape.json").write_text("{}")
    ended = togi(tmp_path / "home", "plan", str(elsewhere))
    assert ended.returncode == 3 and "shape.json: the model's configuration has no" in ended.stderr
    ended = togi(tmp_path / "home", "plan", str(elsewhere), "models.base.hub=null", "models.base.path=somewhere")
    assert ended.returncode == 2 and "shape is read only with hub or url" in ended.stderr
    ended = togi(tmp_path / "home", "plan", str(elsewhere), "data.talks.hub=null", "data.talks.path=talks.jsonl")
    assert ended.returncode == 2 and "expect is only read with a hub data set" in ended.stderr


def test_the_pass_of_the_initial_model_is_counted_once_a_pair_or_batch(planned, tmp_path):
    def flops(stage: str, *overrides: str) -> float:
        rows = json.loads(togi(tmp_path / "home", "plan", str(planned), *overrides, "--json").stdout)
        return next(row["estimate"]["flops"] for row in rows if row["stage"] == stage)

    alone = flops("preferred", "stages.preferred.reference=false")  # forward and backward of 12 samples
    assert flops("preferred") == pytest.approx(alone * (36 + 6) / 36)  # plus a forward of each of the 6 pairs
    held_out = "stages.preferred.validation=$pairs"
    assert flops("preferred", held_out) == pytest.approx(alone * (36 + 12) / 36)
    alone = flops("policy")
    for epochs in (1, 2):  # 6 steps in both cases, from 6 or 3 batches
        more = ("stages.policy.loss.beta=0.1", f"stages.policy.epochs_per_batch={epochs}")
        assert flops("policy", *more) == pytest.approx(alone * (18 + 6 / epochs) / 18)


def test_a_scorers_plan_knows_which_layers_it_trains(planned, tmp_path):
    scorer = "stages.scorer={type: train.reward, init: $base, pairs: $pairs, train_layers: 1}"
    peaks = []
    for overrides in ([scorer], [scorer, "stages.scorer.train_layers=2"], [scorer, "stages.scorer.train_layers=null"]):
        rows = json.loads(togi(tmp_path / "home", "plan", str(planned), *overrides, "--json").stdout)
        peaks.append(next(row["estimate"]["peak_bytes"] for row in rows if row["stage"] == "scorer"))
    assert peaks[0] < peaks[1] < peaks[2]


def test_a_policys_plan_counts_the_reward_model_once_and_only_the_layers_that_it_keeps(planned, tmp_path):
    def updating(*overrides: str) -> float:
        rows = json.loads(togi(tmp_path / "home", "plan", str(planned), *overrides, "--json").stdout)
        return next(row["estimate"]["phases"]["update"] for row in rows if row["stage"] == "policy")

    scorer = "stages.scorer={type: train.reward, init: $base, pairs: $pairs, train_layers: 1}"
    term = "{type: model, scorer: $scorer, name: %s}"
    once = f"stages.policy.reward={{terms: [{term % 'a'}]}}"
    twice = f"stages.policy.reward={{terms: [{term % 'a'}, {term % 'b'}]}}"
    shape = Shape.of(json.loads((tmp_path / "model" / "config.json").read_text()))
    kept = dataclasses.replace(shape, tied=True, layers=1)
    alone = updating(scorer)
    assert updating(scorer, once) - alone == updating(scorer, twice) - alone
    whole = dataclasses.replace(shape, tied=True).parameters * 4
    tokenizer = TOKENIZER * shape.vocabulary
    assert updating(scorer, once) - alone == whole + tokenizer
    assert updating(scorer, "stages.scorer.keep_layers=1", once) - alone == kept.parameters * 4 + tokenizer


def test_the_peak_is_that_of_the_longest_example_where_a_micro_batch_is_smaller(planned, tmp_path):
    def peak(*overrides: str) -> tuple[float, str]:
        rows = json.loads(togi(tmp_path / "home", "plan", str(planned), *overrides, "--json").stdout)
        found = next(row["estimate"] for row in rows if row["stage"] == "tuned")
        return found["peak_bytes"], found["notes"][-1]

    small, note = peak("stages.tuned.micro_batch_tokens=64")
    tokens = int(note.removeprefix("peak: with micro-batches of ").split()[0])
    assert tokens > 64 and note.endswith("tokens, the longest example")
    assert small == peak(f"stages.tuned.micro_batch_tokens={tokens}")[0]
    assert small < peak(f"stages.tuned.micro_batch_tokens={tokens + 64}")[0]
    block = peak("stages.tuned.micro_batch_tokens=64", "stages.tuned.packing=blocks")[1]
    assert block == "peak: with micro-batches of 161 tokens, the longest example"


def test_a_sweep_and_a_control_are_trainings_of_their_own(planned, tmp_path):
    plain = "type: train.reward, init: $base, pairs: $pairs, steps: 3, batch_size: 4, max_length: 160"
    scorers = {
        "one": "",
        "two": ", shuffled_control: true",
        "three": ", shuffled_control: true, sweep: [1e-4, 1e-5]",
        "head": ", shuffled_control: true, train_layers: 0",  # the output of the trunk is computed only once
    }
    stages = [f"stages.{name}={{{plain}{more}}}" for name, more in scorers.items()]
    rows = json.loads(togi(tmp_path / "home", "plan", str(planned), *stages, "--json").stdout)
    found = {row["stage"]: row["estimate"] for row in rows}
    samples, tokens = ([found[name][what] for name in scorers] for what in ("samples", "tokens"))
    assert samples == [12, 24, 36, 24] and tokens == [tokens[0] * times for times in (1, 2, 3, 1)]
    assert found["one"]["peak_bytes"] == found["three"]["peak_bytes"]


def test_auto_is_planned_with_what_the_stage_would_take_now(tmp_path, monkeypatch):
    context = bare_context(tmp_path, chats=chats())
    settings = TrainSft(init=ModelRef("$base"), chats=ChatsRef("$chats"), batch_size=64, micro_batch_tokens="auto")
    source = context.model(settings.init)
    inputs = {settings.init: source, settings.chats: "talks"}
    stage = PlannedStage("tuned", settings, inputs, tmp_path / "tuned", done=False)
    talks = Import(path=str(tmp_path / "talks.jsonl"), kind="chats")
    rows = [{"messages": [{"role": m.role, "content": m.content} for m in each.messages]} for each in chats()]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 20))
    before = PlannedStage("talks", talks, {}, tmp_path / "talks", done=False)
    shape = Shape.of(json.loads((tmp_path / "model" / "config.json").read_text()))
    for tokens, note in ((512, "512 tokens fit"), (8, "the peak is more than")):
        free = predict(shape, Job(), tokens).peak / USABLE_CPU + 1
        monkeypatch.setattr(plan_machine, "available", lambda free=free: free)
        monkeypatch.setattr(plan_machine, "has_accelerator", lambda: False)
        found = plan.estimates([before, stage], tmp_path / "store", "float32")["tuned"]
        assert found.peak_bytes == predict(shape, Job(), max(tokens, 256)).peak
        assert any(line.startswith(f"micro_batch_tokens auto: {note}") for line in found.notes)
    monkeypatch.setattr(plan_machine, "has_accelerator", lambda: True)
    found = plan.estimates([before, stage], tmp_path / "store", "float32")["tuned"]
    assert found.peak_bytes is None and any("accelerator" in why for why in found.unknown)


def test_text_output_says_what_is_not_known(planned, tmp_path):
    shown = togi(tmp_path / "home", "plan", str(planned), "stages.tuned.micro_batch_tokens=auto").stdout
    (line,) = [line for line in shown.splitlines() if "time: no stage that trains has finished" in line]
    assert line.startswith("not known: tuned, ")  # printed once for all training stages
    assert "micro_batch_tokens auto" in shown and "0 of 7 stages are done" in shown


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


LARGE = """\
name: large
models:
  base: {path: thirteen, template: chatml}
data:
  talks: {path: talks.jsonl}
stages:
  tuned:
    type: train.sft
    init: $base
    chats: $talks
    steps: 100
    max_length: 4096
    lora: {rank: 16, alpha: 32, base: nf4}
    activation_checkpointing: true
"""


@pytest.mark.parametrize(
    ("changes", "tokens", "gigabytes"),
    [
        ((), 1024, 10.7),
        ((), 4096, 13.1),
        (("stages.tuned.lora.base=as_loaded", "stages.tuned.weights=bfloat16"), 1024, 29.4),
        (("stages.tuned.lora.base=as_loaded", "stages.tuned.weights=bfloat16"), 4096, 31.8),
    ],
)
def test_a_13b_model_fits_one_card_as_docs_memory_says(tmp_path, changes, tokens, gigabytes):
    (tmp_path / "thirteen").mkdir()
    (tmp_path / "thirteen" / "config.json").write_text(json.dumps(THIRTEEN))
    (tmp_path / "talks.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    recipe = tmp_path / "large.yaml"
    recipe.write_text(LARGE)
    sizes = [f"stages.tuned.{name}={tokens}" for name in ("micro_batch_tokens", "max_length")]
    ended = togi(tmp_path / "home", "plan", str(recipe), *changes, *sizes, "--compute", "bfloat16", "--json")
    assert ended.returncode == 0, ended.stderr
    peak = json.loads(ended.stdout)[-1]["estimate"]["peak_bytes"]
    assert peak / 1e9 == pytest.approx(gigabytes, abs=0.05)
    page = (ROOT / "docs" / "memory.md").read_text()
    weights = "bfloat16" if changes else "NF4"
    assert any(
        row.startswith(f"| {weights} | {tokens:,} |") and row.endswith(f"| {gigabytes} GB |")
        for row in page.splitlines()
    )
