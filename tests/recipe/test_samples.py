"""Stored samples of finished trainings: `togi clean --samples` lists and deletes them, `togi status` counts them."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from stored_stage import begun_stage, finished_stage

from togi.cli import main
from togi.core.errors import InputError
from togi.core.files import write_text
from togi.recipe.samples import bytes_of
from togi.recipe.state import running
from togi.recipe.store import is_done, locked, mark_done, outputs_digests
from togi.recipe.sweep import register

POLICY, OTHER, READER = (f"train.grpo-{digit * 16}" for digit in "abc")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOGI_HOME", str(tmp_path))
    return tmp_path / "store"


def policy(store: Path, name: str = POLICY) -> Path:
    """A finished stage with samples next to its main output."""
    folder = finished_stage(store, name)
    write_text(folder / "output" / "samples.parquet", "s" * 2000)
    mark_done(folder, name[-16:] * 4, 1.5, {})
    return folder


def clean(*arguments: str) -> str:
    ended = CliRunner().invoke(main, ["clean", "--samples", *arguments])
    assert ended.exit_code == 0, ended.output
    return ended.output


def test_samples_are_shown_and_forgotten_and_the_rest_of_the_stage_stays(store):
    folder, plain = policy(store), finished_stage(store)
    before = outputs_digests([(folder, "main")])
    assert json.loads(clean("--json")) == {
        "removed": False,
        "samples": [{"folder": str(folder), "bytes": 2000, "kept": ""}],
    }
    assert "samples of 1 stages, 0.0 MB; remove them with --yes" in clean() and bytes_of(folder) == 2000
    clean("--yes")
    assert bytes_of(folder) == 0 and is_done(folder) and is_done(plain)
    assert (folder / "output" / "records.parquet").exists() and outputs_digests([(folder, "main")]) == before
    assert "samples of 0 stages" in clean()


def test_who_reads_forgotten_samples_is_told_what_to_do(store):
    folder = policy(store)
    outputs_digests([(folder, "samples")])
    clean("--yes")
    with pytest.raises(InputError, match=r"output 'samples' is gone: .*clean --samples.* --redo STAGE"):
        outputs_digests([(folder, "samples")])


def test_samples_that_another_stage_was_made_from_stay(store):
    folder, other = policy(store), policy(store, OTHER)
    begun_stage(store, READER, outputs_digests([(folder, "samples"), (other, "main")]))
    assert f"(kept: {READER} was made from them)" in clean("--yes")
    assert (bytes_of(folder), bytes_of(other)) == (2000, 0)


def test_samples_that_a_run_works_with_stay(store):
    folder, run = policy(store), store.parent / "runs" / "tiny"
    run.mkdir(parents=True)
    register(run, [POLICY])
    with running(run, lambda folder: None):
        assert "(kept: its run is at work)" in clean("--yes")
    with locked(folder):
        clean("--yes")
    assert bytes_of(folder) == 2000
    clean("--yes")
    assert bytes_of(folder) == 0


def test_forgetting_that_is_killed_leaves_a_finished_stage_and_goes_on(store):
    folder = policy(store)
    code = "from togi.core.files import install_fault\ninstall_fault('forgotten:1')\n"
    code += "from togi.cli import main\nmain(['clean', '--samples', '--yes'])"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert is_done(folder) and bytes_of(folder) == 2000
    clean("--yes")
    assert is_done(folder) and bytes_of(folder) == 0
