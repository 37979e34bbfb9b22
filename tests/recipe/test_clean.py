"""`togi clean` and forgetting a stage: after a kill at any point each folder is whole or gone; used ones stay."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from stored_stage import begun_stage, finished_stage

from togi.cli import main
from togi.client.store import AnswerStore, keep_answer
from togi.core.files import write_json
from togi.core.locks import take
from togi.recipe.runs import known_runs
from togi.recipe.state import STATE, running
from togi.recipe.store import clear_stage, is_done
from togi.recipe.sweep import older_note, register, sweep

OTHER, MINE, THIRD = (f"select-{digit * 16}" for digit in "abc")
POINTS = ["before_forgetting:1", "forgotten:1", "removing:1", "removing:4", "removing:6", "forgotten:2"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOGI_HOME", str(tmp_path))
    return tmp_path


def used(home: Path, *names: str, recipe: str = "tiny") -> Path:
    """The folder of a recipe's run that used these stages."""
    run = home / "runs" / recipe
    run.mkdir(parents=True)
    register(run, names)
    return run


def clean(*arguments: str) -> str:
    ended = CliRunner().invoke(main, ["clean", *arguments])
    assert ended.exit_code == 0, ended.output
    return ended.output


def killed(code: str, point: str) -> None:
    """Runs `code` in a process that is killed at `point`."""
    code = f"from togi.core.files import install_fault\ninstall_fault({point!r})\n{code}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL


def names(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "store").glob("*-*"))


@pytest.mark.parametrize("point", POINTS)
def test_a_clean_that_is_killed_leaves_stages_whole_or_gone(home, point):
    used(home, MINE)
    for name in (OTHER, MINE, THIRD):
        finished_stage(home / "store", name)
    killed("from togi.cli import main\nmain(['clean', '--yes'])", point)
    assert all(is_done(home / "store" / name) for name in names(home)) and MINE in names(home)
    clean("--yes")
    assert names(home) == [MINE] and not list((home / "store" / ".trash").iterdir())


@pytest.mark.parametrize("point", ["before_forgetting:1", "forgotten:1", "removing:1", "removing:3"])
def test_forgetting_that_is_killed_leaves_a_stage_whole_or_gone(home, point):
    folder = finished_stage(home / "store")
    before = {path.relative_to(folder) for path in folder.rglob("*")}
    code = f"from pathlib import Path\nfrom togi.recipe.store import clear_stage\nclear_stage(Path({str(folder)!r}))"
    killed(code, point)
    if folder.exists():
        assert is_done(folder) and {path.relative_to(folder) for path in folder.rglob("*")} == before
        clear_stage(folder)
    sweep()
    assert not folder.exists() and not list((home / "store" / ".trash").iterdir())


def test_a_folder_that_somebody_works_in_is_left_alone_and_the_others_go(home):
    for name in (OTHER, MINE, THIRD):
        begun_stage(home / "store", name)
    with (home / "store" / MINE / "lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        shown = clean("--yes")
    assert names(home) == [MINE] and "in use now, kept" in shown and "2 folders" in shown
    assert clean("--yes").count("in use now") == 0 and names(home) == []


def test_folders_without_a_lock_are_listed_and_strangers_are_not(home):
    (home / "store" / OTHER / "output").mkdir(parents=True)
    (home / "store" / "my own-folder").mkdir()
    write_json(home / "store" / "arithmetic-0123456789abcdef.json", {})
    assert json.loads(clean("--json"))["folders"] == [{"folder": str(home / "store" / OTHER), "bytes": 0, "why": ""}]
    clean("--yes")
    assert sorted(p.name for p in (home / "store").iterdir() if not p.name.startswith(".")) == [
        "arithmetic-0123456789abcdef.json",
        "my own-folder",
    ]


@pytest.mark.parametrize("state", ["", "{", "[]", '{"stages": [3]}', '{"stages": [{"name": "x"}]}'])
def test_where_it_is_not_known_what_a_run_used_all_that_it_links_to_stays(home, state):
    finished_stage(home / "store", MINE)
    finished_stage(home / "store", OTHER)
    run = home / "runs" / "tiny"
    run.mkdir(parents=True)
    (run / "some").symlink_to(Path("../../store") / MINE)
    (run / "state.json").write_text(state)
    assert "all folders that it links to are kept" in clean("--yes")
    assert names(home) == [MINE]


def test_what_a_run_says_that_it_uses_stays_before_it_has_a_state(home):
    finished_stage(home / "store", MINE)
    run = used(home, MINE)
    write_json(run / "state.json", {"stages": [{"folder": f"/gone/store/{OTHER}"}]})  # of the previous run
    assert "0 folders" in clean("--yes") and names(home) == [MINE]


def test_what_an_older_togi_made_is_told_and_goes_unless_its_run_is_at_work(home):
    store = home / "store"
    write_json(store / OTHER / "DONE", {"fingerprint": "ab", "seconds": 1.0, "made_from": [], "files": {}})
    run = home / "runs" / "tiny"
    run.mkdir(parents=True)
    write_json(run / "state.json", {"stages": [{"folder": str(store / OTHER)}]})
    (note,) = older_note()
    assert note.startswith("1 folder of an older togi is no longer used; `togi clean` lists unused folders,")
    with running(run, lambda folder: None):
        assert "0 folders" in clean()
    assert "(of an older togi)" in clean("--yes") and names(home) == []


def test_converted_weights_stay_while_their_package_is_installed(home):
    version = subprocess.run(
        [sys.executable, "-c", "from importlib import metadata; print(metadata.version('click'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    for name, source in ((MINE, f"click=={version}:*.gguf"), (OTHER, "click==0.0.1:*.gguf"), (THIRD, "gone==1:x")):
        write_json(home / "store" / name / "converted.json", {"source": source})
    assert "weights of click 0.0.1, which is not installed" in clean("--yes") and names(home) == [MINE]


def test_leftovers_of_kills_are_swept_and_what_is_at_work_is_not(home):
    store = home / "store"
    done = finished_stage(store)
    (done / "checkpoints" / "step-00000004").mkdir(parents=True)
    begun = begun_stage(store, OTHER)
    (begun / "checkpoints").mkdir()
    (store / ".smollm-0123456789abcdef.999999999.tmp").mkdir()
    (store / f".smollm-0123456789abcdef.{os.getpid()}.tmp").mkdir()
    (store / ".smollm-0123456789abcdef.old").mkdir()
    sweep()
    assert not (done / "checkpoints").exists() and is_done(done) and (begun / "checkpoints").exists()
    assert [path.name for path in store.glob(".smollm*")] == [f".smollm-0123456789abcdef.{os.getpid()}.tmp"]


def test_tokens_go_unless_a_run_is_at_work(home):
    tokens = home / "store" / f"tokens-{'a' * 16}"
    write_json(tokens / "tokens.json", {})
    (tokens / "ids.bin").write_bytes(bytes(3_000_000))
    run = used(home)
    listed = CliRunner().invoke(main, ["list", "--runs"]).output
    assert "tokenised data for training: 3.0 MB; `togi clean --yes` removes it" in listed
    with running(run, lambda folder: None):
        assert "0 folders" in clean("--yes") and tokens.exists()
    assert f"3.0 MB  {tokens.name}  (tokenised data, made again when a training stage needs it)" in clean("--yes")
    assert not tokens.exists()


def test_tokens_that_a_kill_left_half_made_go_and_those_being_made_stay(home):
    left, making = (home / "store" / f".tokens-{digit * 16}.making" for digit in "ab")
    for folder in (left, making):
        (folder / "new").mkdir(parents=True)
    held = take(making)
    shown = clean()
    assert f"{left.name}  (left by a kill)" in shown and making.name not in shown
    sweep()
    assert not left.exists() and (making / "new").exists()
    held.close()
    clean("--yes")
    assert not making.exists()


# --- what cannot be read, or removed ----------------------------------------------------------------------------------


def refused(*arguments: str) -> str:
    """The only line that a clean says which ends with exit code 3."""
    ended = CliRunner().invoke(main, ["clean", *arguments])
    assert ended.exit_code == 3, ended.output
    (line,) = ended.output.splitlines()
    return line


def keep_one_answer(home: Path) -> None:
    with AnswerStore(home / "store" / "answers.sqlite") as answers:
        answers.write(lambda db: keep_answer(db, (b"question", 0), "m@1", b"{}"))


def earlier(home: Path, *stages: str, name: str = "0123456789ab") -> Path:
    """The folder of an earlier run that used these stages."""
    run = home / "history" / name
    run.mkdir(parents=True)
    register(run, stages)
    listed = [{"name": "a", "type": "select", "state": "done", "folder": f"/store/{each}"} for each in stages]
    write_json(run / STATE, {"name": "tiny", "state": "done", "stages": listed})
    return run


@contextmanager
def closed(folder: Path, mode: int) -> Iterator[None]:
    """Takes permissions away from a folder; skips a test of a user who may do everything."""
    folder.chmod(mode)
    try:
        if os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            pytest.skip("this user may read and write everywhere")
        yield
    finally:
        folder.chmod(0o755)


def unreadable(home: Path, place: str) -> None:
    """Puts a file where a folder is expected, or a folder where a lock is: then not even root can read it."""
    if place.endswith("lock"):
        (home / place).mkdir(parents=True)
    else:
        (home / place).rename(home / "moved")
        (home / place).write_text("")


@pytest.mark.parametrize("place", ["runs", "runs/tiny/lock", "history", "history/0123456789ab/lock"])
@pytest.mark.parametrize("option", ["--yes", "--samples", "--answers"])
def test_nothing_goes_while_it_is_unknown_what_a_run_uses(home, place, option):
    finished_stage(home / "store", MINE)
    finished_stage(home / "store", OTHER)
    used(home, MINE)
    earlier(home, OTHER)
    keep_one_answer(home)
    unreadable(home, place)
    assert "cannot be read (" in refused(option, "--yes") and "check who owns" in refused(option, "--yes")
    assert names(home) == [OTHER, MINE] and "1 answers" in clean("--answers")


@pytest.mark.parametrize("place", ["runs", "history"])
def test_a_run_whose_folder_is_elsewhere_counts_and_one_whose_disk_is_away_stops_the_clean(home, place, tmp_path):
    finished_stage(home / "store", MINE)
    (home / place).mkdir()
    register(tmp_path / "disk" / "one", [MINE])
    (home / place / "one").symlink_to(tmp_path / "disk" / "one")
    assert "0 folders" in clean("--yes") and names(home) == [MINE]
    (tmp_path / "disk").rename(tmp_path / "away")
    assert "it is a link to" in refused("--yes") and names(home) == [MINE]


def test_a_link_that_is_forgotten_goes_and_the_folder_that_it_names_is_empty(home, tmp_path):
    earlier(home, MINE).rename(tmp_path / "elsewhere")
    (home / "history" / "0123456789ab").symlink_to(tmp_path / "elsewhere")
    assert "would be forgotten, with its report" in clean("--forget", "all")
    assert "forgotten: run" in clean("--forget", "all", "--yes")
    assert [*(home / "history").iterdir()] == [] and [*(tmp_path / "elsewhere").iterdir()] == []


def test_a_run_that_cannot_be_forgotten_is_told_in_one_line_and_stays_known(home):
    run = earlier(home, MINE)
    with closed(run, 0o555):
        assert f"{run}: cannot be removed (Permission denied); check who owns it" in refused("--forget", "all", "--yes")
    assert [each.folder for each in known_runs()] == [run]


def test_a_run_that_is_not_known_cannot_be_forgotten(home):
    ended = CliRunner().invoke(main, ["clean", "--forget", "abcdef"])
    assert ended.exit_code == 2 and "--forget: 'abcdef' is not a known run" in ended.output


@pytest.mark.parametrize("place", [1, 2, 3, 4])
def test_forgetting_a_run_that_is_killed_leaves_one_that_can_be_forgotten_again(home, place):
    run = earlier(home, MINE)
    for name in ("recipe.lock.yaml", "report.html"):
        (run / name).write_text("")
    killed("from togi.cli import main\nmain(['clean', '--forget', 'all', '--yes'])", f"forgetting:{place}")
    assert [each.folder for each in known_runs()] == [run]
    clean("--forget", "all", "--yes")
    assert not run.exists()


def test_a_stage_that_may_not_be_removed_is_not_called_in_use(home):
    finished_stage(home / "store", MINE)
    finished_stage(home / "store", OTHER)
    with closed(home / "store" / MINE, 0o555):
        (home / "store" / MINE / "lock").chmod(0o444)
        ended = CliRunner().invoke(main, ["clean", "--yes"])
    assert ended.exit_code == 3 and "(not removed)" in ended.output and "in use" not in ended.output
    assert f"could not be removed completely: {home / 'store' / MINE}; check who owns" in ended.output
    assert names(home) == [MINE] and is_done(home / "store" / MINE)


def test_a_conversion_on_another_machine_is_left_alone(home):
    making = home / "store" / ".smollm-0123456789abcdef.999999999.tmp"  # a process id that is not of this machine
    held = take(making)
    assert held is not None
    sweep()
    assert "0 folders" in clean("--yes") and making.exists()
    held.close()
    clean("--yes")
    assert not making.exists()


def test_answers_stay_while_a_run_may_be_paying_for_them(home):
    run = used(home)
    keep_one_answer(home)
    with running(run, lambda folder: None):
        assert "1 answers" in clean("--answers")
        assert "--answers: a run of tiny is at work" in refused("--answers", "--yes")
    assert "1 answers" in clean("--answers", "--yes") and "0 answers" in clean("--answers")
