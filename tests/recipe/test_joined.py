"""`togi run` as the ranks that torchrun starts, by two agents as if on two machines: the same bits as one `togi run`,
and a clear message if a rank, an agent with its ranks, or the driver is killed midway."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from agents import TWO_RANKS, Agents, two_agents
from tiny_run import results, togi
from tiny_texts import write_texts

from togi.core.errors import InputError, RecipeError, WorkerDied
from togi.core.ranks import Ranks
from togi.recipe.greeting import GREET, greet, loss, order
from togi.recipe.joined import Joined, joined

RUN = ("run", "--compute", "float32")
SET = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1", "LOCAL_RANK": "0"}


@pytest.fixture
def agents() -> Iterator[Agents]:
    with two_agents() as made:
        yield made


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return write_texts(tmp_path_factory.mktemp("two"), TWO_RANKS)


def test_a_rank_is_known_by_what_torchrun_sets() -> None:
    assert joined(SET) == Joined(rank=1, size=4, local=0, beside=1)
    assert joined({**SET, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}) == Joined(1, 4, 1, 2)
    assert joined({**SET, "RANK": "0", "WORLD_SIZE": "1"}) is None
    assert joined({"RANK": "0", "WORLD_SIZE": "2"}) is None


@pytest.mark.parametrize("wrong", [{"RANK": "4"}, {"RANK": "-1"}, {"WORLD_SIZE": "two"}])
def test_variables_that_say_nothing_sensible_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match=f"environment: {next(iter(wrong))} "):
        joined({**SET, **wrong})


def test_another_number_of_processes_than_were_started_is_refused(recipe: Path, tmp_path: Path) -> None:
    ended = togi(tmp_path, *RUN, str(recipe), **SET)
    assert ended.returncode == 2
    assert "stages.taught.processes is 2, but 4 processes were started" in " ".join(ended.stderr.split())
    alone = togi(tmp_path, *RUN, str(recipe), "stages.taught.processes=1", **SET)
    assert "no stage has `processes: 4`" in " ".join(alone.stderr.split()) and alone.returncode == 2


def test_a_rank_that_does_not_see_the_store_is_told_before_work(agents: Agents, recipe: Path, tmp_path: Path) -> None:
    ended = agents.start([tmp_path / "a", tmp_path / "b"], *RUN, str(recipe)).ended()
    for code, said in ended:
        assert "rank 1 of 2, on " in said and f"cannot see the store of rank 0, {tmp_path / 'a'}/store" in said
        assert code != 0
    assert not list(tmp_path.glob("*/store/*-*"))


class Two(Ranks):
    """The first of two ranks; the second one has the same values except for `other`."""

    size = 2

    def __init__(self, **other: Any) -> None:
        self.other = other

    def gather(self, value: Any) -> list[Any]:
        return [value, {**value, **self.other}]


def test_ranks_that_have_something_other_are_told(tmp_path: Path) -> None:
    command = order(GREET, "a run", tmp_path)
    greet(Two(host="second"), command)
    with pytest.raises(InputError, match=r"rank 1 of 2, on second, has another recipe than rank 0"):
        greet(Two(host="second", run="another run"), command)
    with pytest.raises(InputError, match=r"rank 1 of 2, on second: python absent there, .* here, .*install the same"):
        greet(Two(host="second", versions={}), command)
    with pytest.raises(InputError, match=r"rank 1 of 2, on second, cannot see the store of rank 0"):
        greet(Two(host="second", sees=""), command)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2222",
        "NCCL communicator was aborted on rank 1",
        "failed to recv, got 0 bytes: Connection was likely closed",
    ],
)
def test_that_another_rank_is_gone_is_no_fault(text: str) -> None:
    found = loss(RuntimeError(text), {"name": "policy", "joined": True})
    assert isinstance(found, WorkerDied) and str(found).startswith("stage policy: another rank is gone")
    assert loss(RuntimeError(text), {"name": "policy", "joined": False}) is None
    assert loss(RuntimeError("shape mismatch"), {"name": "policy", "joined": True}) is None


@pytest.mark.slow
def test_what_is_killed_goes_on_and_ends_with_the_bits_of_one_run(agents: Agents, recipe: Path, tmp_path: Path) -> None:
    alone = togi(tmp_path / "alone", *RUN, "--threads", "2", str(recipe))
    assert alone.returncode == 0, alone.stderr
    home = tmp_path / "home"
    run = agents.start([home, home], *RUN, str(recipe)).after_steps(home, 3)
    (worker,) = run.rank(1).children()
    worker.kill()
    (first, said_first), (second, said_second) = run.ended()
    assert first != 0 and second != 0
    assert "the worker (rank 1 of 2) was killed (SIGKILL)" in said_second
    assert "stage taught: another rank is gone" in said_first and "run the same command again" in said_first

    run = agents.start([home, home], *RUN, str(recipe)).after_steps(home, 8)
    run.rank(0).kill()  # the driver
    (first, _), (second, said_second) = run.ended()
    assert first != 0 and second != 0 and "another rank is gone" in said_second

    run = agents.start([home, home], *RUN, str(recipe)).after_steps(home, 12)
    for each in [*psutil.Process(run.processes[-1].pid).children(recursive=True), run.processes[-1]]:
        each.kill()  # the second machine
    assert "another rank is gone" in run.ended()[0][1]

    run = agents.start([home, home], *RUN, str(recipe)).after_steps(home, 16)
    for process in run.processes[-2:]:
        process.terminate()
    assert all("stopped after step" in said and "which is saved" in said for _, said in run.ended())

    assert [code for code, _ in agents.start([home, home], *RUN, str(recipe)).ended()] == [0, 0]
    assert results(home) == results(tmp_path / "alone")
