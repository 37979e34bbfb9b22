"""What a running stage reads, writes, counts and drops."""

import ast
from pathlib import Path

import pytest

from togi.core.codec import read_records, write_records
from togi.core.errors import InputError
from togi.core.files import read_json, read_lines, write_json
from togi.core.records import Drop, Message, Prompt, Provenance
from togi.core.settings import PromptsRef
from togi.data import values
from togi.stages import drops
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Control, Resolved
from togi.stages.table import STAGES

REF = PromptsRef("$some")


def prompts(count: int) -> list[Prompt]:
    source = Provenance(dataset="made")
    return [Prompt(id=f"p{i}", source=source, messages=(Message("user", f"{i}?"),)) for i in range(count)]


def context(folder: Path, records: list[Prompt]) -> Context:
    write_records(folder / "some" / RECORDS_FILE, "prompts", records)
    inputs: dict[str, Resolved] = {REF: Resolved("prompts", folder=folder / "some")}
    made = Context("here", folder / "here", folder, 1, inputs, Control(send=lambda event: None))
    made.folder.mkdir()
    made.reasons = ("too_short",)
    return made


def test_batches_join_to_the_records_and_reading_counts_nothing(tmp_path: Path) -> None:
    made = context(tmp_path, prompts(7))
    batches = list(made.batches(REF, 3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert [record for batch in batches for record in batch] == made.records(REF)
    assert made.counts == {} and list(made.data) == [Provenance(dataset="made")]
    made.count_in(7)
    made.count_in(2)
    assert made.counts == {"in": 9}


def test_units_are_called_in_the_progress_what_the_stage_says(tmp_path: Path) -> None:
    made, told = context(tmp_path, prompts(1)), []
    made.control.send = told.append
    assert made.units(2, lambda number: number, "arena-answers-tuned", "batches of arena") == [0, 1]
    made.units(1, lambda number: number, "search")
    assert [(each["done"], each["what"]) for each in told] == [
        (1, "batches of arena"), (2, "batches of arena"), (1, "search")
    ]  # fmt: skip


def test_what_holds_no_records_is_an_error_before_the_first_batch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"stage here: \$some has no records; see .* `togi show RECIPE some`"):
        context(tmp_path, []).batches(REF)


def test_a_writer_counts_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    made, records = context(tmp_path, prompts(1)), prompts(5)
    with pytest.raises(InputError), made.writer("prompts") as writer:
        writer.write(records[:2])
        raise InputError("the data ends in the middle")
    assert not (made.folder / RECORDS_FILE).exists() and "out" not in made.counts
    with made.writer("prompts") as writer:
        writer.write(records[:2])
        writer.write(records[2:])
    assert read_records(made.folder / RECORDS_FILE)[1] == records and made.counts["out"] == 5


def test_a_drop_names_record_stage_and_a_declared_reason(tmp_path: Path) -> None:
    made = context(tmp_path, prompts(1))
    made.drop(prompts(1)[0], "too_short")
    made.drop("parent", "too_short")
    assert [*made.drops] == [Drop(id=name, stage="here", reason="too_short") for name in ("p0", "parent")]
    with pytest.raises(ValueError, match="stage here: 'too_long' is not a declared reason: too_short"):
        made.drop("parent", "too_long")
    with pytest.raises(ValueError, match="not a declared reason"):
        made.drop_all([Drop(id="p0", stage="here", reason="blue")])
    made.finish()
    assert read_json(made.folder / "summary.json")["drops"] == {"too_short": 2}
    assert len(read_json(made.folder / "drops.json")) == 2


def test_many_drops_wait_on_the_disk_and_are_written_as_few_are(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(drops, "HELD", 8)
    made = context(tmp_path, prompts(1))
    (made.folder / ".drops.tmp").write_text('["of a run that was killed", "too_short"]\n')
    found = [Drop(id=f'{number} "質問"\u2028', stage="here", reason="too_short") for number in range(21)]
    made.drop_all(found)
    assert [*made.drops] == found and made.drops[20] == found[20] and len(made.drops) == 21
    assert (made.folder / ".drops.tmp").read_text().count("\n") == 16
    made.finish()
    write_json(tmp_path / "whole.json", [{"id": each.id, "reason": each.reason} for each in found])
    assert (made.folder / "drops.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert sorted(path.name for path in made.folder.iterdir()) == ["drops.json", "summary.json"]


def test_records_aside_are_read_by_number(tmp_path: Path) -> None:
    made, given = context(tmp_path, prompts(9000)), prompts(9000)
    aside = made.aside(REF)
    assert len(aside) == 9000 and aside[8999] == given[8999] and aside[:3] == given[:3] and list(aside) == given
    assert list(made.data) == [Provenance(dataset="made")] and list(made.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("out", "told"),
    [
        (4, ""),
        (3, "5 records came in, 3 went out and 1 were dropped: 1 are gone without a reason"),
        (6, "5 records came in, 6 went out and 1 were dropped: 2 more than came"),
    ],
)
def test_records_that_are_lost_without_a_reason_are_an_alarm(tmp_path: Path, out: int, told: str) -> None:
    made = context(tmp_path, prompts(5))
    made.adds_up = True
    made.count_in(5)
    made.write("prompts", prompts(out))
    made.drop("p4", "too_short")
    made.finish()
    alarms = read_lines(made.folder / "alarms.jsonl")
    assert [alarm["message"] for alarm in alarms] == ([told] if told else [])
    assert read_json(made.folder / "summary.json")["adds_up"] is True


@pytest.mark.parametrize(
    ("came", "left", "told"),
    [
        (2, 0, "none of the 2 records that came in is left; reasons: too_short 2"),
        (2, 1, ""),
        (0, 0, ""),
    ],
)
def test_a_stage_that_keeps_none_of_its_records_raises_an_alarm(tmp_path: Path, came: int, left: int, told: str):
    made = context(tmp_path, prompts(2))
    made.count_in(came)
    for each in prompts(came)[left:]:
        made.drop(each, "too_short")
    made.write("prompts", prompts(left))
    made.finish()
    alarms = read_lines(made.folder / "alarms.jsonl")
    assert [(alarm["name"], alarm["message"]) for alarm in alarms] == ([("nothing_left", told)] if told else [])


def test_every_bad_row_has_a_declared_reason() -> None:
    found: list[str] = []
    for path in Path(values.__file__).parent.glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        bad = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "BadRow"]
        found += [str(call.args[0].value) for call in bad if isinstance(call.args[0], ast.Constant)]
    assert len(found) > 30 and [reason for reason in found if reason not in STAGES["import"].reasons] == []


def test_drops_are_made_in_one_place() -> None:
    """Stages drop records through the context, which checks the reasons. Units below stages only return their
    findings."""
    stages = Path(values.__file__).parents[1] / "stages"
    found = [path.name for path in sorted(stages.rglob("*.py")) if ".drops +=" in path.read_text()]
    assert found == []


def test_an_alarm_is_raised_once(tmp_path: Path) -> None:
    made, sent = context(tmp_path, prompts(1)), []
    made.control = Control(send=sent.append)
    for message in ("9 of 185 dropped", "9 of 185 dropped", "4 of 45 dropped"):
        made.alarm("not_rendered", message)
    stored = [row["message"] for row in read_lines(made.folder / "alarms.jsonl")]
    assert stored == [event["message"] for event in sent] == ["9 of 185 dropped", "4 of 45 dropped"]
