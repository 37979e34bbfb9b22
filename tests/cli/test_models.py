"""Models that a command line names: of which kind they are, and what is said of a kind that a command does not take."""

import json
from pathlib import Path

from click.testing import CliRunner

from togi.cli import main
from togi.cli.models import named_either, recommended_for
from togi.core.sampling import Recommended

LIMIT = ("--limit", "2")
SCORES = "it scores answers. `togi score {0} FILE` scores those in a file, `togi serve --reward {0}` serves it"


def test_a_reward_model_is_exported_as_one_and_nobody_talks_to_it(shell):
    assert "score of" in shell("export", "tiny.yaml:reward", "out").output
    for words in (("chat", "tiny.yaml", "reward"), ("serve", "tiny.yaml:reward")):
        ended = shell(*words)
        assert ended.exit_code == 2 and SCORES.format("tiny.yaml:reward") in ended.output
        assert "stage reward outputs a reward model, not a model to talk to" in ended.output
    for words in (("chat", "out"), ("serve", "out")):
        ended = shell(*words)
        assert ended.exit_code == 2 and SCORES.format("out") in ended.output
        assert "out: it is a reward model, not a model to talk to" in ended.output
    ended = shell("export", "tiny.yaml:reward", "alone", "--format", "adapter")
    assert ended.exit_code == 2 and "so it is saved whole; use --format merged" in ended.output
    ended = shell("export", "tiny.yaml:policy", "scores", "--reward")
    assert "stage policy outputs a language model, not a reward model" in ended.output


def test_a_language_model_gives_no_scores_which_is_told_before_anything_runs(shell):
    Path("answers.jsonl").write_text('{"prompt": "Hi", "completion": "Yes"}\n')
    told = "it is a language model, which gives no scores; name a reward model"
    for words in (
        ("score", "tiny.yaml:policy", "answers.jsonl"),
        ("score", "model", "answers.jsonl"),
        ("evaluate", "model", "reward_accuracy:answers.jsonl", "--reward"),
    ):
        ended = shell(*words)
        assert ended.exit_code == 2 and told in ended.output, ended.output


def test_a_file_is_no_model_and_is_told_what_it_is(shell):
    for name, told in (("m.gguf", "it is a GGUF file"), ("m.safetensors", "it is a file of weights"), ("m", "a file")):
        Path(name).write_bytes(b"weights")
        for words in (("serve", name), ("export", name, "out"), *([("chat", name)] if "." in name else [])):
            ended = shell(*words)
            assert ended.exit_code == 2 and f"{name}: it is" in ended.output and told in ended.output
            assert "did you mean" not in ended.output
    assert "this is a file of weights; give the path of a recipe" in shell("run", "m.gguf").output


def test_an_unknown_name_is_told_with_those_that_the_command_takes(shell):
    assert "there are: base, policy\n" in shell("chat", "tiny.yaml", "nope").output
    said = shell("export", "tiny.yaml:nope", "out").output
    assert "there is no model or stage 'nope'; models, and stages with records: base, " in said
    for name in ("some", "pairs", "reward", "policy"):
        assert f", {name}" in said


def test_chat_takes_the_same_words_as_other_commands(shell):
    folder = shell("chat", "tiny.yaml", "policy", "-m", "Hi", "--max-tokens", "4")
    one_word = shell("chat", "tiny.yaml:policy", "-m", "Hi", "--max-tokens", "4")
    assert one_word.exit_code == 0 and one_word.stdout == folder.stdout
    assert "there are: base, policy\n" in shell("chat", "tiny.yaml:nope").output
    gone = shell("chat", "nofolder", "-m", "Hi")
    assert gone.exit_code == 2 and "'nofolder' is not a model; give a model folder, RECIPE:STAGE" in gone.output


def test_the_folder_of_a_stage_stands_for_its_model(shell):
    asked = ("-m", "Hi", "--max-tokens", "4")
    folder = shell("chat", "home/runs/tiny/policy", *asked)
    assert folder.exit_code == 0 and folder.stdout == shell("chat", "tiny.yaml:policy", *asked).stdout
    assert shell("export", "home/runs/tiny/policy", "out", "--question", "").exit_code == 0
    ended = shell("serve", "home/runs/tiny/reward")
    assert ended.exit_code == 2 and SCORES.format("home/runs/tiny/reward") in ended.output
    assert named_either("home/runs/tiny/reward")[1:] == ("reward", True)
    ended = shell("chat", "home/runs/tiny/pairs")
    assert ended.exit_code == 2 and "pairs: it is the folder of a stage that outputs no model" in ended.output
    Path("home/runs/tiny/policy/DONE").unlink()
    assert "the folder of a stage that is not finished" in shell("chat", "home/runs/tiny/policy").output
    Path("entry.yaml").write_text("extends: tiny.yaml\nmodels: {base: {path: home/runs/tiny/policy}}\n")
    ended = shell("check", "entry.yaml")
    assert ended.exit_code == 3 and "whose model is in" in ended.output


def test_a_recipes_recommended_sampling_is_for_the_models_that_it_trains(shell):
    Path("warm.yaml").write_text("extends: tiny.yaml\ncard: {sampling: vikhr-nemo}\n")
    told = "recommended sampling (vikhr-nemo): temperature 0.3"
    for words in (("warm.yaml", "policy"), ("warm.yaml:policy",)):
        ended = shell("chat", *words, "-m", "Hi", "--max-tokens", "4")
        assert ended.exit_code == 0 and told in ended.stderr
        assert recommended_for(Path(words[0]), words[1:]) == Recommended.of("vikhr-nemo")
    for words in (("warm.yaml", "base"), ("tiny.yaml", "policy")):
        ended = shell("chat", *words, "-m", "Hi", "--max-tokens", "4")
        assert ended.exit_code == 0 and "recommended" not in ended.stderr
        assert recommended_for(Path(words[0]), words[1:]) is None


def test_the_command_for_an_unfinished_stage_is_that_of_the_last_run(shell):
    text = "extends: tiny.yaml\nname: other\n"
    Path("other.yaml").write_text(text)
    assert shell("run", "other.yaml", "seed=5", "--until", "some").exit_code == 0
    ended = shell("chat", "other.yaml", "policy", "-m", "Hi")
    assert ended.exit_code == 2 and "run it with `togi run other.yaml seed=5 --until policy`" in ended.output


def test_a_trial_is_planned_as_it_runs(shell):
    whole, trial = (json.loads(shell("plan", "tiny.yaml", "seed=9", "--json", *more).output) for more in ((), LIMIT))
    read = [row["estimate"]["records"] for row in (whole[0], trial[0])]
    assert read[1] == 2 < read[0]


def test_the_adapter_beside_a_merged_model_is_exported_with_its_card(shell):
    Path("both.yaml").write_text(
        "extends: tiny.yaml\nname: both\nstages: {policy: {steps: 1, lora: {rank: 2, save: both}}}\n"
    )
    ended = shell("run", "both.yaml", "--until", "policy")
    assert ended.exit_code == 0, ended.output
    ended = shell("export", "both.yaml:policy", "out", "--format", "adapter")
    assert ended.exit_code == 0, ended.output
    assert {"adapter_model.safetensors", "README.md"} <= {path.name for path in Path("out").iterdir()}
    assert not Path("out/model.safetensors").exists()


def test_a_folder_of_gguf_is_for_other_programs(shell):
    Path("gguf").mkdir()
    Path("gguf/m.gguf").write_bytes(b"GGUF")
    ended = shell("chat", "gguf", "-m", "Hi")
    assert ended.exit_code == 3 and "GGUF" in ended.output and "llama.cpp and similar programs" in ended.output


def test_an_empty_message_is_no_question(shell):
    ended = shell("chat", "tiny.yaml", "policy", "-m", " ")
    assert ended.exit_code == 2 and "--message is empty; ask something" in ended.output


def test_piped_questions_leave_only_answers_in_the_output(shell):
    talk = CliRunner().invoke(main, ["chat", "tiny.yaml", "policy", "--max-tokens", "4"], input="Hi\nAnd now?\n")
    assert talk.exit_code == 0, talk.output
    assert ">" not in talk.stdout and "/quit ends the chat" in talk.stderr
