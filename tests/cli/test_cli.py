"""The command line: start-up time, help, and no import of a heavy library before it is needed."""

import json
import os
import shlex
import subprocess
import sys
import time

import click
import pytest

from togi.cli import COMMANDS, SUMMARIES, main
from togi.cli.list import stage_settings
from togi.cli.run import same_command
from togi.core.errors import ERRORS
from togi.recipe.options import Options

HEAVY = ("torch", "transformers", "numpy", "pydantic", "pyarrow", "rich", "matplotlib", "jinja2")


def test_help_starts_fast_and_imports_nothing_heavy():
    code = "import sys\nfrom togi.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += f"print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert ended.stderr.strip() == "[]"
    assert min(seconds) < 0.3


def test_a_misspelt_key_is_named_without_torch(tmp_path):
    (tmp_path / "r.yaml").write_text("name: a\nstages:\n  one: {type: select, inptu: $two}\n")
    code = f"import sys\nfrom togi.cli import main\ntry: main(['check', {str(tmp_path / 'r.yaml')!r}])\n"
    code += "except SystemExit as e: print(e.code, [m for m in ('torch', 'transformers') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "2 []"
    assert "did you mean 'input'" in ended.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_complete_help(name):
    context = click.Context(main)
    command = main.get_command(context, name)
    assert command is not None and command.help
    assert command.help.split("\n")[0].strip().rstrip(".") == SUMMARIES[name].rstrip(".")
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or parameter.help, f"{name}: {parameter.name} has no help"


def test_every_exit_code_is_documented():
    epilog = main.epilog or ""
    for error in ERRORS.values():
        assert f"  {error.exit_code} " in epilog


def test_settings_inside_settings_are_listed():
    grpo, pretrain = (stage_settings(name)["settings"] for name in ("train.grpo", "train.pretrain"))
    assert grpo["sampling"]["default"] == "{}" and grpo["sampling.max_tokens"]["default"] == 64
    assert grpo["loss.sampler_correction.cap"]["default"] == 3.0  # nested two levels deep, in an optional setting
    assert pretrain["sources[].share"]["default"] == 1.0
    gates = [key.split(".")[1] for key in grpo if key.startswith("reward.gates[") and key.endswith(".bonus")]
    assert gates == [f"gates[{kind}]" for kind in ("terminator", "language", "length", "repetition", "echo", "pattern")]
    assert "ends with its terminator" in grpo["reward.gates[terminator].type"]["about"]


def test_errors_can_be_json(tmp_path):
    command = [sys.executable, "-m", "togi", "plan", str(tmp_path / "gone.yaml"), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert json.loads(ended.stdout)["error"] == "RecipeError"


@pytest.mark.parametrize(
    ("words", "kind"),
    [(["list", "--nope"], "NoSuchOption"), (["nope"], "NoSuchCommand"), (["plan"], "MissingParameter")],
)
def test_mistakes_in_the_command_line_can_be_json(capsys, words, kind):
    with pytest.raises(SystemExit) as ended:
        main([*words, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert ended.value.code == told["exit"] == 2 and told["error"] == kind


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["runs"], "`togi list --runs`"),
        (["trian", "r.yaml"], "`togi run`"),
        (["eval"], "`togi evaluate`"),
        (["staus"], "`togi status`"),
        (["list", "sft"], "'train.sft'"),
    ],
)
def test_a_word_near_a_command_or_a_stage_type_is_told(capsys, words, meant):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and f"id you mean {meant}?" in capsys.readouterr().err


def test_models_that_are_compared_need_a_benchmark(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TOGI_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["compare", "r.yaml:base", "r.yaml:tuned"])
    assert ended.value.code == 2
    assert "'r.yaml:base' is no run; to compare models, name a BENCHMARK" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["compare", "abcdef", "abcdee"])
    assert "togi: command line: 'abcdef' is not a known run" in capsys.readouterr().err


def test_a_fault_of_its_own_is_code_1_with_a_traceback_that_steers_no_terminal(tmp_path):
    code = "import togi.recipe.store, sys\nfrom togi.cli import main\n"
    code += "def home(): raise KeyError('a\\x1b[31mb')\n"
    code += "import togi.cli.list as command\ncommand.print_json = lambda value: home()\nmain(['list', '--json'])\n"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "Traceback" in ended.stderr and "\x1b" not in ended.stderr
    assert "a bug in togi" in ended.stderr and json.loads(ended.stdout)["error"] == "KeyError"


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        ("list --json >&-", 0, "", ""),
        ("plan gone.yaml --json >&-", 2, "", ""),
        ("plan gone.yaml 2>&-", 2, "", ""),
        ("list <&- | cat >/dev/null", 0, "", ""),
        ("list --json >/dev/full", 4, "", "togi: standard output cannot be written: No space left on device"),
        ("list >/dev/full", 4, "", "togi: standard output cannot be written: No space left on device"),
        ("plan gone.yaml 2>/dev/full", 2, "", ""),
        ("list train.grpo | true; exit ${PIPESTATUS[0]}", 141, "", ""),
    ],
)
def test_streams_that_are_closed_full_or_left_by_their_reader(words, code, out, err):
    line = f"{shlex.quote(sys.executable)} -m togi {words}"
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.strip(), ended.stderr.strip()) == (code, out, err)


@pytest.mark.parametrize("words", ["plan caf$'\\xe9'.yaml", "plan a.yaml name=$'\\xff'", "list $'\\xff'"])
def test_arguments_that_are_no_text_are_refused(words):
    line = f"{shlex.quote(sys.executable)} -m togi {words}"
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and ended.stderr.startswith("togi: command line: ") and "UTF-8" in ended.stderr


def test_input_that_is_no_text_is_read_with_marks():
    code = "from togi.core.terminal import open_streams\nopen_streams()\nprint(ascii(input()))\n"
    ended = subprocess.run([sys.executable, "-c", code], input=b"a\xffb\n", capture_output=True, check=True)
    assert ended.stdout == b"'a\\ufffdb'\n"


def test_letters_that_the_terminal_cannot_write_are_escapes():
    command = [sys.executable, "-m", "togi", "list", "研", "--json"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 2 and "\\u7814" in json.loads(ended.stdout)["message"].encode("unicode_escape").decode()


def test_the_command_to_go_on_says_what_was_said_and_survives_a_shell():
    said = {"until": "policy", "threads": 2, "compute": "float32", "accept_numerics": True}
    given = Options(recipe="my recipe.yaml", redo=("policy",), **said)
    text = same_command(given, ("stages.round_1.pairs=$mine",), as_json=True)
    heard = subprocess.run(["sh", "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, check=True)
    options = ["--until", "policy", "--threads", "2", "--compute", "float32", "--accept-numerics", "--json"]
    assert heard.stdout.splitlines() == ["togi", "run", "my recipe.yaml", "stages.round_1.pairs=$mine", *options]
    assert shlex.split(same_command(Options(recipe="a.yaml"), (), as_json=False)) == ["togi", "run", "a.yaml"]
