"""A whole recipe, run as a user runs it: caching, the effect of a changed setting, and messages for bad input."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_run import RECIPE, environment, results, togi, togi_plainly, write_recipe

from togi.model.sizes import Job, Shape, predict
from togi.recipe.store import manifest, mark_done
from togi.stages.base import MODEL_FOLDER

WEIGHTS = f"{MODEL_FOLDER}/model.safetensors"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


def states(home: Path) -> dict[str, str]:
    rows = json.loads((home / "runs" / "tiny" / "state.json").read_text())["stages"]
    return {row["name"]: "cached" if row["cached"] else row["state"] for row in rows}


def test_every_stage_is_done_and_the_report_stands(finished):
    assert list(states(finished / "home")) == ["questions", "some", "pairs", "reward", "policy", "scores"]
    assert all(state == "done" for state in states(finished / "home").values())
    report = (finished / "home" / "runs" / "tiny" / "report.html").read_text()
    assert "held-out reward" in report and "Why is the sky blue?" in report and " policy</p>" in report
    assert "group_size: 4" in (finished / "home" / "runs" / "tiny" / "recipe.lock.yaml").read_text()


def test_the_policy_took_its_steps_and_knows_the_probabilities_that_were_sampled(finished):
    folder = finished / "home" / "runs" / "tiny" / "policy"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert max(line["sampler_mismatch"] for line in lines) < 1e-4


def test_the_predicted_memory_of_the_policy_counts_its_reward_model(finished):
    shape = Shape.of(json.loads((finished / "model" / "config.json").read_text()))
    found = json.loads((finished / "home" / "runs" / "tiny" / "policy" / "memory.json").read_text())
    alone = predict(shape, Job(entropy=True), found["largest_micro_batch"]).peak
    assert found["predicted"] == round(alone + 4 * replace(shape, tied=True).parameters)


def test_an_evaluation_on_prompts_that_were_learnt_from_is_an_alarm(finished):
    lines = (finished / "home" / "runs" / "tiny" / "scores" / "alarms.jsonl").read_text().splitlines()
    told = [json.loads(line)["message"] for line in lines]
    assert [message.split(", so")[0] for message in told] == [
        "$policy was trained on 6 of 6 prompts",  # all the prompts it was trained on
        "$reward was trained on 4 of 6 prompts",  # all except the held-out ones
    ]


def test_products_in_bfloat16_are_used_where_asked_for(tmp_path):
    recipe = write_recipe(tmp_path, f"compute: bfloat16\n{RECIPE}")
    command = ["run", str(recipe), "--threads", "1", "--until", "policy"]
    ended = togi(tmp_path / "home", *command, TOGI_COMPUTE="auto")
    assert ended.returncode == 0, ended.stderr
    assert "products in bfloat16, as requested" in ended.stderr
    text = (tmp_path / "home" / "runs" / "tiny" / "policy" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == 6
    assert 1e-5 < max(line["sampler_mismatch"] for line in lines) < 1e-2  # rounding errors, and no larger ones


def test_the_same_command_again_does_nothing(copied):
    before = results(copied / "home")
    start = time.monotonic()
    ended = togi(copied / "home", "run", str(copied / "tiny.yaml"), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    assert time.monotonic() - start < 30
    assert all(state == "cached" for state in states(copied / "home").values())
    assert results(copied / "home") == before


def test_one_knob_reruns_only_what_depends_on_it(copied):
    ended = togi(copied / "home", "run", str(copied / "tiny.yaml"), "stages.policy.steps=2", "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    found = states(copied / "home")
    assert {name for name, state in found.items() if state == "cached"} == {"questions", "some", "pairs", "reward"}


def test_redo_gives_the_same_bits(copied):
    before = results(copied / "home")
    ended = togi(copied / "home", "run", str(copied / "tiny.yaml"), "--redo", "policy", "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    assert results(copied / "home") == before


def test_one_byte_that_flipped_is_found_before_it_is_read(copied):
    """A damaged model that other stages read is set aside and remade with the same bits."""
    recipe, home = str(copied / "tiny.yaml"), copied / "home"
    before = results(home)
    reward = (home / "runs" / "tiny" / "reward").resolve()
    flip(reward / WEIGHTS)
    chatted = togi(home, "chat", recipe, "policy", "-m", "Hello?", "--max-tokens", "2")
    assert chatted.returncode == 0 and "checking the files of policy against their hashes" in chatted.stderr
    asked = togi(home, "run", recipe, "--redo", "scores", "--threads", "1")
    assert asked.returncode == 0, asked.stderr
    told = f"reward: {reward / WEIGHTS}: it has changed since it was made, so it is done again; the old files are in"
    assert told in asked.stderr and asked.stderr.count("finished earlier, not repeated") == 4
    assert results(home) == before
    assert "(damaged, set aside)" in togi(home, "clean").stdout
    flip((home / "runs" / "tiny" / "policy").resolve() / WEIGHTS)
    chatted = togi(home, "chat", recipe, "policy", "-m", "Hello?")
    assert chatted.returncode == 3 and f"togi run {recipe} --redo policy" in chatted.stderr


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("finished_before", [True, False])
def test_what_follows_a_changed_result_is_done_again(copied, finished_before):
    scores = (copied / "home" / "runs" / "tiny" / "scores").resolve()
    if not finished_before:  # only started: its units still belong to the old result
        (scores / "DONE").unlink()
    units = {path: path.stat().st_mtime_ns for path in (scores / "units").iterdir()}
    policy = (copied / "home" / "runs" / "tiny" / "policy").resolve()
    weights = load_file(policy / WEIGHTS)
    save_file({name: value * 1.5 for name, value in weights.items()}, policy / WEIGHTS, {"format": "pt"})
    before = manifest(policy)
    mark_done(policy, before["fingerprint"], before["seconds"], before["made_from"])
    ended = togi(copied / "home", "run", str(copied / "tiny.yaml"), "--threads", "1")
    assert ended.returncode == 0 and "scores: its inputs have changed" in ended.stderr
    assert ended.stderr.count("finished earlier, not repeated") == 5
    assert units and all(path.stat().st_mtime_ns != before for path, before in units.items())


def test_other_numerics_are_refused_for_unfinished_work_alone(copied):
    folder = (copied / "home" / "runs" / "tiny" / "scores").resolve()
    (folder / "DONE").unlink()
    numerics = json.loads((folder / "numerics.json").read_text())
    (folder / "numerics.json").write_text(json.dumps({**numerics, "torch": "1.0"}))
    ended = togi(copied / "home", "run", str(copied / "tiny.yaml"), "--threads", "1")
    assert ended.returncode == 4 and "torch: 1.0 then" in ended.stderr and "--accept-numerics" in ended.stderr
    ended = togi(copied / "home", "run", str(copied / "tiny.yaml"), "--threads", "1", "--accept-numerics")
    assert ended.returncode == 0, ended.stderr


def test_an_alarm_is_told_once_however_often_its_stage_was_killed(tmp_path):
    recipe = write_recipe(
        tmp_path, f"{RECIPE[: RECIPE.index('  some:')]}  few: {{type: diversify, input: $questions, keep: 20}}\n"
    )
    for _ in range(2):
        ended = togi(tmp_path / "home", "run", str(recipe), "--threads", "1")
        assert ended.returncode == 0, ended.stderr
        folder = (tmp_path / "home" / "runs" / "tiny" / "few").resolve()
        (folder / "DONE").unlink()  # as if killed just before it was written
    assert (folder / "alarms.jsonl").read_text().count("under_budget") == 1


def test_the_other_commands_read_what_the_run_left(finished):
    recipe, home = str(finished / "tiny.yaml"), finished / "home"
    assert "6 of 6 stages are done" in togi(home, "plan", recipe).stdout
    assert "tiny: done" in togi(home, "status", recipe).stdout
    assert "Why is the sky blue?" in togi(home, "show", recipe, "some", "-n", "9").stdout
    shown = json.loads(togi(home, "show", recipe, "policy", "--json").stdout)
    assert shown["metrics"][-1]["step"] == 6
    assert togi(home, "report", recipe).stdout.strip().endswith("report.html")
    assert unreferred(togi(home, "clean", "--json").stdout) == []
    checked = togi(home, "check", recipe)
    assert checked.returncode == 0 and "stage policy (train.grpo): 6 rows" in checked.stdout, checked.stderr


def test_clean_removes_only_what_no_run_refers_to(copied):
    togi(copied / "home", "run", str(copied / "tiny.yaml"), "stages.scores.bootstrap=300", "--threads", "1")
    kept = togi(copied / "home", "clean", "--json")
    assert unreferred(kept.stdout) == []  # the replaced run is still known by its id
    old = togi(copied / "home", "clean", "--forget", "all", "--json")
    assert len(unreferred(old.stdout)) == 1
    assert togi(copied / "home", "clean", "--forget", "all", "--yes").returncode == 0
    assert len(json.loads(togi(copied / "home", "clean", "--json").stdout)["folders"]) == 0
    assert all((copied / "home" / "runs" / "tiny" / name / "DONE").exists() for name in ("policy", "scores"))


def unreferred(shown: str) -> list[str]:
    """The stage folders among those that may be removed; the others are the tokens that the trainings read."""
    folders = json.loads(shown)["folders"]
    tokens = [row for row in folders if Path(row["folder"]).name.startswith("tokens-")]
    assert tokens and all(row["bytes"] > 0 and row["why"].startswith("tokenised data") for row in tokens)
    return [row["folder"] for row in folders if row not in tokens]


def test_the_model_can_be_talked_to(finished):
    arguments = ("chat", str(finished / "tiny.yaml"), "policy", "-m", "Hello?", "--max-tokens", "8")
    ended = togi_plainly(finished / "home", *arguments, "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["question"] == "Hello?"


def test_what_was_made_names_its_hashes(finished):
    folder = (finished / "home" / "runs" / "tiny" / "policy").resolve()
    assert "output/model/model.safetensors" in manifest(folder)["files"]


# --- bad input: one clear message, its exit code, nothing lost ------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "code", "expected"),
    [
        ("steps: 6", "stesp: 6", 2, r"tiny.yaml:16: stages.policy.stesp: unknown key; did you mean 'steps'?"),
        ("questions.jsonl}", "gone.jsonl}", 3, "gone.jsonl: there is no such file or folder"),
        ("{path: questions.jsonl}", "{path: bad.jsonl}", 3, "bad.jsonl:2"),
        ("{path: questions.jsonl}", "{path: latin.jsonl}", 3, "latin.jsonl:1"),
        ("{path: questions.jsonl}", "{path: empty.jsonl}", 3, "empty.jsonl"),
        ("sampling: {max_tokens: 12}", "sampling: {max_tokens: 4000}", 3, "the model's context is 256"),
        ("path: model,", "path: bare,", 3, "it has no tokenizer"),
        ("name: vowels}", "name: consonants}", 3, "consonants"),
        (
            "learning_rate: 1e-3\n    save_every",
            "learning_rate: 1e30\n    save_every",
            4,
            "the weights are those of the step before",
        ),
        ("[{type: length, min: 1}]", "[{type: terminator}]", 4, "no answer passed the gates"),
    ],
)
def test_bad_input_ends_with_one_clear_message(tmp_path, old, new, code, expected):
    assert old in RECIPE
    text = RECIPE.replace(old, new).replace(
        "    save_every: 2\n    sampling", "    save_every: 2\n    dead_steps: 2\n    sampling"
    )
    text = text[: text.index("  scores:")]
    recipe = write_recipe(tmp_path, text)
    (tmp_path / "bad.jsonl").write_text('{"question": "Why?"}\n{"nothing": 1}\n')
    (tmp_path / "latin.jsonl").write_bytes('{"question": "Où?"}\n'.encode("latin-1"))
    (tmp_path / "empty.jsonl").write_text("")
    shutil.copytree(tmp_path / "model", tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    ended = togi(tmp_path / "home", "run", str(recipe), "--threads", "1")
    assert ended.returncode == code, ended.stderr
    assert expected in ended.stderr.replace("\n", " ")
    assert "Traceback" not in ended.stderr
    assert not list((tmp_path / "home").rglob(".*.tmp"))


def test_a_preflight_finds_a_function_that_is_not_there(tmp_path):
    recipe = write_recipe(tmp_path, RECIPE.replace("name: vowels}", "name: consonants}"))
    checked = togi(tmp_path / "home", "check", str(recipe))
    assert checked.returncode == 3 and "no function 'consonants'; it has vowels" in checked.stderr
    checked = togi(tmp_path / "home", "check", str(write_recipe(tmp_path)))
    assert checked.returncode == 0 and "reward function vowels: found" in checked.stdout


def test_a_package_that_is_not_installed_is_named_with_its_extra(tmp_path):
    recipe = write_recipe(tmp_path)
    (tmp_path / "without" / "torch").mkdir(parents=True)
    (tmp_path / "without" / "torch" / "__init__.py").write_text("raise ModuleNotFoundError('no torch', name='torch')\n")
    path = os.pathsep.join([str(tmp_path / "without"), *filter(None, [os.environ.get("PYTHONPATH")])])
    for command in ("run", "check"):
        ended = togi(tmp_path / "home", command, str(recipe), PYTHONPATH=path)
        assert ended.returncode == 2 and "pip install 'togi[train]'" in ended.stderr, ended.stderr
        assert "Traceback" not in ended.stderr and "a bug in togi" not in ended.stderr


def test_a_full_disk_loses_nothing(tmp_path):
    """A limit on file size stands in for a full disk: weights do not fit, small files do."""
    recipe = write_recipe(tmp_path)
    command = f"ulimit -f 40; exec {sys.executable} -m togi run {recipe} --threads 1"
    ended = subprocess.run(
        ["bash", "-c", command], env=environment(tmp_path / "home"), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 4, ended.stderr
    assert "run the same command again" in ended.stderr and "Traceback" not in ended.stderr
    assert togi(tmp_path / "home", "run", str(recipe), "--threads", "1").returncode == 0
