"""The benchmark `reward_accuracy` on rows with one right answer and several wrong ones, as in RewardBench 2."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from togi.core.errors import GraderError, InputError
from togi.core.settings import ModelRef, PairsRef, ScorerRef
from togi.core.sources import ModelSource
from togi.evaluate.benchmarks.table import Table
from togi.judge.asking import Answered, Attempt
from togi.stages.context import Context, Control, Resolved
from togi.stages.data import importing_work
from togi.stages.data.importing import Import
from togi.stages.evaluation.benchmarks import reward_accuracy_work
from togi.stages.evaluation.benchmarks.reward_accuracy import REASONS, RewardAccuracy
from togi.stages.evaluation.benchmarks.room_work import Room

PRESET = "allenai/reward-bench-2"


class Scored(Room):
    """A room whose reward model scores an answer by the number that it says, and whose judge writes that number: as a
    grade if it is from 1 to 10, and otherwise one that cannot be read. To an answer `down` it gives no reply."""

    asked: list[str]
    roles: list[str]

    def scores(self, ref: Any, answers: Any, name: str) -> list[Any]:
        self.roles = [message.role for messages, _ in answers for message in messages]
        self.asked.extend(text for _, text in answers)
        return [GraderError("too long") if text == "?" else float(text) for _, text in answers]

    def ask(self, questions: Any, read: Any, how: Any) -> list[Any]:
        said = [question.messages[-1].content.partition("[Answer]")[2].split()[0] for question in questions]
        self.asked.extend(said)
        return [
            Answered([Attempt("", None, failed=True) if text == "down" else Attempt(text, read(f"So.\n[[{text}]]"))])
            for text in said
        ]


def row(name: str, chosen: Any, *rejected: str, subset: str = "Math") -> dict[str, Any]:
    right = [chosen] if isinstance(chosen, str) else chosen
    return {"id": name, "prompt": f"{name}?", "chosen": right, "rejected": list(rejected), "subset": subset}


PLAIN = (row("a", "4", "1", "2", "3"), row("b", "2", "1", "2.0", "2.00", subset="Focus"), row("c", "2", "1", "3"))
TIES = (
    row("ref:0", "9", "1", "2", subset="Ties"),
    row("tied:0", ["8", "7", "8.0"], "1", "2", subset="Ties"),
    row("ref:1", "9", "1", "10", subset="Ties"),
    row("tied:1", ["8", "5"], "4", "3", "2", "1", subset="Ties"),
)


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


def measured(folder: Path, *rows: dict[str, Any], kind: str = "scorer", **more: Any) -> tuple[Table, list[str]]:
    """The table, and the answers that were scored or graded."""
    found, room = measured_in(folder, *rows, kind=kind, **more)
    return found, room.asked


def measured_in(folder: Path, *rows: dict[str, Any], kind: str = "scorer", **more: Any) -> tuple[Table, Scored]:
    """The table, and the room in which it was measured."""
    subject = ScorerRef("$rm") if kind == "scorer" else ModelRef("$rm")
    rm = Resolved(kind, source=ModelSource(kind="path", name=str(folder)))
    inputs = {PairsRef("$pairs"): imported(folder, *rows), subject: rm}
    context = Context("scores", folder / "stage", folder, 1, inputs, Control(send=lambda event: None))
    room = Scored(context, "bench", {"rm": subject}, reasons=REASONS)
    room.asked = []
    settings = RewardAccuracy.model_validate({"type": "reward_accuracy", "pairs": "$pairs", **more})
    return reward_accuracy_work.run(settings, room), room


def test_pairs_of_one_row_are_counted_together_and_each_answer_is_scored_once(tmp_path: Path) -> None:
    found, asked = measured(tmp_path, *PLAIN, best_of="id", by="subset")
    accuracy = found.cells["rm"]["accuracy"]
    assert (found.rows, accuracy.n) == (3, 3) and accuracy.value == pytest.approx((1 + 1 / 3) / 3)
    assert found.cells["rm"]["accuracy, macro"].value == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert len(asked) == 4 + 4 + 3
    told = "\n".join(found.notes)
    assert "it counts 1 / (1 + n)" in told and "one by one" not in told and "grades" not in told
    assert not any(column.name == "Ties score" for column in found.columns)


def test_the_subset_ties_has_its_score_and_is_one_of_the_subsets(tmp_path: Path) -> None:
    found, asked = measured(tmp_path, *PLAIN, *TIES, best_of="id", by="subset")
    first = 0.3 + 0.3 + 0.2 + 0.2 + 0.01 * math.tanh(5 / 1 - 1)
    second = 0.3 + 0.0 + 0.0 + 0.0 + 0.01 * math.tanh(-1 / 3 - 1)
    cells = found.cells["rm"]
    assert cells["Ties score"].value == pytest.approx((first + second) / 2) and cells["Ties score"].n == 2
    assert cells["accuracy"].n == 3, "rows of Ties are not right or wrong"
    assert cells["accuracy, macro"].value == pytest.approx((1 / 2 + 1 / 3 + (first + second) / 2) / 3)
    assert (found.rows, len(asked)) == (5, 11 + 3 + 5 + 3 + 6)
    assert all("left out: none" in note for note in found.notes if "rows kept" in note)


def test_a_judge_grades_every_answer_alone_and_the_best_grade_wins(tmp_path: Path) -> None:
    found, asked = measured(tmp_path, *PLAIN, *TIES, kind="model", best_of="id", by="subset")
    scored, _ = measured(_in(tmp_path, "2"), *PLAIN, *TIES, best_of="id", by="subset")
    assert len(asked) == 28
    for name in ("accuracy", "accuracy, macro", "Ties score", "ties"):
        assert found.cells["rm"][name] == scored.cells["rm"][name], name
    assert "a judge grades each answer alone from 1 to 10" in found.notes and found.dropped == {}
    assert found.manifest["common"]["read"] == "grades"


def _in(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def test_a_grade_that_cannot_be_read_is_below_all_grades_and_a_failed_request_is_no_credit(tmp_path: Path) -> None:
    rows = (row("a", "4", "99", "2"), row("b", "99", "1"), row("c", "99", "98"), row("d", "4", "down"))
    found, _ = measured(tmp_path, *rows, kind="model", best_of="id")
    assert found.values["rm"]["accuracy"] == [1.0, 0.0, 0.5, None]
    assert found.dropped == {"no_verdict": 4, "failed": 1}


def test_an_answer_that_cannot_be_scored_leaves_its_row_without_credit(tmp_path: Path) -> None:
    found, _ = measured(tmp_path, row("a", "4", "?", "2"), row("b", "3", "1"), best_of="id")
    assert found.values["rm"]["accuracy"] == [None, 1.0] and found.dropped == {"no_score": 1}


def test_pairs_counted_one_by_one_say_so(tmp_path: Path) -> None:
    found, _ = measured(tmp_path, *PLAIN)
    assert found.cells["rm"]["accuracy"].n == 8
    assert any("set `best_of: id`" in note for note in found.notes)


def test_rows_that_do_not_share_a_right_answer_and_a_column_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pairs of \$pairs with subset 'Math' have 2 different right answers"):
        measured(tmp_path, *PLAIN, best_of="subset")
    with pytest.raises(InputError, match="has no column 'row', which `best_of` names; it has id, subset"):
        measured(_in(tmp_path, "2"), *PLAIN, best_of="row")


def test_log_probabilities_of_two_answers_are_no_grades() -> None:
    settings = {"type": "reward_accuracy", "pairs": "$pairs", "best_of": "id", "read": "logprobs"}
    with pytest.raises(ValidationError, match="a judge grades each answer in text"):
        RewardAccuracy.model_validate(settings)


@pytest.mark.parametrize("more", [{"best_of": "id"}, {}])
def test_reward_models_may_be_shown_no_system_turns(tmp_path: Path, more: dict[str, Any]) -> None:
    talk = [{"role": "system", "content": "Count."}, {"role": "user", "content": "a?"}]
    rows = [{**each, "prompt": talk} for each in PLAIN]
    kept, with_system = measured_in(_in(tmp_path, "keep"), *rows, **more)
    found, without = measured_in(_in(tmp_path, "drop"), *rows, system="drop", **more)
    assert set(with_system.roles) == {"system", "user"} and set(without.roles) == {"user"}
    told = [table.manifest["common"].get("system") for table in (kept, found)]
    assert told == [None, "drop"], "tables of different conversations do not agree"


def test_system_turns_that_only_judges_would_read_are_not_dropped_in_silence(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="bench: system: drop is read by reward models, and the models here are judges"
    ):
        measured(tmp_path, *PLAIN, kind="model", system="drop", best_of="id")
