"""A stage's arithmetic settings are recorded with the stage and stay fixed until it is finished."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest
import torch

from togi import kernels
from togi.core.errors import StageError
from togi.core.files import read_json
from togi.core.ranks import Ranks
from togi.model.numerics import Numerics, processor
from togi.stages import arithmetic as stages
from togi.stages.context import Context, Control, hold_numerics


def begin(folder: Path, name: str) -> Context:
    """Returns the context of a stage in a worker that has just started."""
    stages.chosen_numerics.cache_clear()
    return Context(name, folder / name, folder / "store", 1, {}, Control(send=lambda event: None))


@pytest.fixture
def measure(monkeypatch):
    """Lets the test decide which settings the machine chooses; nothing is applied to this process."""
    monkeypatch.setattr(stages, "apply_numerics", lambda found: None)

    def choose(mode: str, dtype: str) -> None:
        found = Numerics(
            device="cpu", fp32_mode=mode, compute_dtype=dtype, threads=torch.get_num_threads(), cpu=processor()
        )
        monkeypatch.setattr(stages, "choose_numerics", lambda kind: found)

    yield choose
    stages.chosen_numerics.cache_clear()


def test_an_unfinished_stage_does_not_go_on_with_arithmetic_that_was_chosen_otherwise(tmp_path, measure):
    measure("default", "float32")
    first = begin(tmp_path, "learn")
    hold_numerics(first.folder, {"torch": "2"})
    stages.arithmetic(first)
    noted = read_json(first.folder / "numerics.json")
    assert noted["torch"] == "2" and noted["torch_threads"] == torch.get_num_threads()
    assert (noted["device"], noted["fp32_mode"], noted["compute_dtype"]) == ("cpu", "default", "float32")

    measure("onednn", "bfloat16")
    stages.arithmetic(begin(tmp_path, "learn"))  # the store still holds the first choice
    for path in (tmp_path / "store").glob("arithmetic-*.json"):
        path.unlink()
    changed = "fp32_mode: default then, onednn now; compute_dtype: float32 then, bfloat16 now"
    with pytest.raises(StageError, match=f"{changed}.*--accept-numerics"):
        stages.arithmetic(begin(tmp_path, "learn"))
    stages.arithmetic(begin(tmp_path, "another"))

    hold_numerics(first.folder, {"torch": "2"}, anew=True)  # what --accept-numerics does
    stages.arithmetic(begin(tmp_path, "learn"))
    assert read_json(first.folder / "numerics.json")["fp32_mode"] == "onednn"


def test_of_runs_that_measure_at_once_one_chooses_for_all(tmp_path, monkeypatch, measure):
    """Both measure on a loaded machine before either has written its choice, and their results differ."""
    measure("default", "float32")
    plain, both = stages.choose_numerics("cpu"), Barrier(2)
    results = iter(["float32", "bfloat16"])

    def measured(kind: str) -> Numerics:
        dtype = next(results)
        both.wait(20)
        return replace(plain, compute_dtype=dtype)

    monkeypatch.setattr(stages, "choose_numerics", measured)
    with ThreadPoolExecutor(2) as pool:
        chosen = list(pool.map(lambda _: stages.chosen_numerics(tmp_path, "auto", Ranks()).compute_dtype, range(2)))
    (path,) = tmp_path.iterdir()
    stages.chosen_numerics.cache_clear()
    again = stages.chosen_numerics(tmp_path, "auto", Ranks()).compute_dtype
    assert chosen == [again, again] == [read_json(path)["compute_dtype"]] * 2


def test_an_unfinished_stage_does_not_go_on_with_other_compiled_functions(tmp_path, monkeypatch, measure):
    measure("default", "float32")
    monkeypatch.setattr(kernels, "identity", lambda: "nothing")
    stages.arithmetic(begin(tmp_path, "answers"))
    stages.arithmetic(begin(tmp_path, "answers"))
    monkeypatch.setattr(kernels, "identity", lambda: "native-1")
    with pytest.raises(StageError, match=r"compiled: nothing then, native-1 now.*--accept-numerics"):
        stages.arithmetic(begin(tmp_path, "answers"))
