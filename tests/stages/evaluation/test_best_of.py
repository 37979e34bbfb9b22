"""The benchmark `reward_accuracy` on rows with one right answer and several wrong ones, as in RewardBench 2."""

import json
from pathlib import Path
from typing import Any

import pytest

from togi.core.errors import InputError
from togi.core.settings import ModelRef, PairsRef, ScorerRef
from togi.core.sources import ModelSource
from togi.evaluate.benchmarks.table import Table
from togi.stages.context import Context, Control, Resolved
from togi.stages.data import importing_work
from togi.stages.data.importing import Import
from togi.stages.evaluation.benchmarks import reward_accuracy_work
from togi.stages.evaluation.benchmarks.reward_accuracy import RewardAccuracy
from togi.stages.evaluation.benchmarks.room_work import Room

PRESET = "allenai/reward-bench-2"


class Scored(Room):
    """A room whose reward model scores an answer by the number that it says."""

    def scores(self, ref: Any, answers: Any, name: str) -> list[Any]:
        return [float(text) for _, text in answers]


def row(name: str, chosen: str, *rejected: str, subset: str = "Math") -> dict[str, Any]:
    return {"id": name, "prompt": f"{name}?", "chosen": [chosen], "rejected": list(rejected), "subset": subset}


def imported(folder: Path, *rows: dict[str, Any]) -> Resolved:
    (folder / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    settings = Import.model_validate({"kind": "pairs", "path": str(folder / "rows.jsonl"), "preset": PRESET})
    made = folder / "pairs"
    made.mkdir()
    (made / "settings.json").write_text(settings.model_dump_json())
    context = Context("pairs", made, folder, 1, {}, Control(send=lambda event: None))
    importing_work.run(settings, context)
    context.finish()
    return Resolved("pairs", folder=made)


def measured(folder: Path, kind: str = "scorer", **more: Any) -> Table:
    rows = [row("a", "4", "1", "2", "3"), row("b", "2", "1", "2.0", "2.00", subset="Focus"), row("c", "2", "1", "3")]
    subject = ScorerRef("$rm") if kind == "scorer" else ModelRef("$rm")
    rm = Resolved(kind, source=ModelSource(kind="path", name=str(folder)))
    inputs = {PairsRef("$pairs"): imported(folder, *rows, row("d", "1", "2", subset="Ties")), subject: rm}
    context = Context("scores", folder / "stage", folder, 1, inputs, Control(send=lambda event: None))
    room = Scored(context, "bench", {"rm": subject}, reasons=("tie", "same_text", "no_score"))
    settings = RewardAccuracy.model_validate({"type": "reward_accuracy", "pairs": "$pairs", **more})
    return reward_accuracy_work.run(settings, room)


def test_pairs_of_one_row_are_counted_together(tmp_path: Path) -> None:
    found = measured(tmp_path, best_of="id", by="subset")
    accuracy = found.cells["rm"]["accuracy"]
    assert (found.rows, accuracy.n) == (3, 3) and accuracy.value == pytest.approx((1 + 1 / 3) / 3)
    assert found.cells["rm"]["accuracy, macro"].value == pytest.approx((1 / 2 + 1 / 3) / 2)
    told = "\n".join(found.notes)
    assert "it counts 1 / (1 + n)" in told and "subset_ties 1" in told and "one by one" not in told


def test_pairs_counted_one_by_one_say_so(tmp_path: Path) -> None:
    found = measured(tmp_path)
    assert found.cells["rm"]["accuracy"].n == 8
    assert any("set `best_of: id`" in note for note in found.notes)


def test_a_judge_and_a_column_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="best_of compares the scores of reward models, and rm would be a judge"):
        measured(tmp_path, "model", best_of="id")
    (tmp_path / "2").mkdir()
    with pytest.raises(InputError, match="has no column 'row', which `best_of` names; it has id, subset"):
        measured(tmp_path / "2", best_of="row")
