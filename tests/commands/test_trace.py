"""The history of a record, forwards and backwards across stages."""

import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from togi.commands.trace import Place, Tracer
from togi.core.codec import KEY, write_records
from togi.core.errors import InputError
from togi.core.files import write_json
from togi.core.records import Completion, Match, Message, Pair, Prompt, Provenance, Record, Sample, Verdict

SEEDS = Provenance(dataset="seeds.jsonl", licence="CC-BY", terms="ask", inherit=True)
ASKED = (Message("user", "Why is the sky blue?"),)
SEED = Prompt(id="5eed", source=SEEDS, messages=(Message("user", "Seed?"),))
DRAFT = Prompt(id="aa11", parents=("5eed",), inherited=(SEEDS,), messages=ASKED)
OTHER = Prompt(id="aa22", parents=("5eed",), messages=(Message("user", "Bad?"),))
LED = replace(DRAFT, messages=(Message("system", "Be kind."), *ASKED))


def sample(name: str, **more: object) -> Sample:
    values = {"id": name, "parents": ("aa11",), "prompt": LED, "completion": Completion(text=name, stop="length")}
    return Sample(**(values | {"model": "base", "index": 0} | more))  # type: ignore[arg-type]


ANSWERS = [sample("5a01"), sample("5a02")]
SCORED = [sample("5a01", scores={"rm": 0.5}), sample("5a02", scores={"rm": 0.25})]
PAIR = Pair(id="bb01", parents=("5a01", "5a02"), prompt=ASKED, chosen=ASKED, rejected=ASKED)
VERDICT = Verdict(id="cc01", prompt="aa11", answers=("5a01",), judge="j", text="7")
STAGES: dict[str, tuple[str, str, list[Record], list[str], dict[str, str]]] = {
    "seeds": ("import", "prompts", [SEED], [], {}),
    "drafts": ("synthesize", "prompts", [DRAFT, OTHER], ["seeds"], {"dead": "too_short"}),
    "good": ("curate", "prompts", [DRAFT], ["drafts"], {"aa22": "judged_low"}),
    "led": ("select", "prompts", [LED], ["good"], {}),
    "answers": ("respond", "samples", list(ANSWERS), ["led"], {}),
    "scored": ("score", "samples", list(SCORED), ["answers"], {}),
    "pairs": ("pairs", "pairs", [PAIR], ["scored"], {}),
    "judged": ("label", "verdicts", [VERDICT], ["answers"], {}),
    "reward": ("train.reward", "model", [], ["pairs"], {}),
}


@pytest.fixture
def tracer(tmp_path: Path) -> Tracer:
    places = []
    for name, (kind, records, rows, reads, drops) in STAGES.items():
        path = tmp_path / name / "output" / "records.parquet"
        if records != "model":
            write_records(path, records, rows)
        if drops:
            write_json(tmp_path / name / "drops.json", [{"id": each, "reason": why} for each, why in drops.items()])
        files = {} if records == "model" else {"main": path}
        from_ = [(each, "main") for each in reads]
        places.append(Place(stage=name, type=kind, folder=tmp_path / name, files=files, reads=from_))
    return Tracer(places)


def test_a_record_is_followed_forwards_and_backwards(tracer: Tracer) -> None:
    life = tracer.life("aa1")
    assert (life.id, life.kind, life.text) == ("aa11", "prompt", "Why is the sky blue?")
    assert life.sources == ["seeds.jsonl (CC-BY; ask; binds what is made from it)"]
    assert [(each.stage, each.event, each.what, [*each.made]) for each in life.events] == [
        ("drafts", "made", "from 1 record", []),
        ("good", "passed on", "", []),
        ("led", "changed", "messages", []),
        ("answers", "read", "", ["5a01", "5a02"]),
        ("judged", "read", "", ["cc01"]),
    ]
    assert [(known.id, known.stage) for known in life.before] == [("5eed", "seeds")]
    assert [(known.id, known.stage) for known in life.after] == [
        ("5a01", "answers"),
        ("5a02", "answers"),
        ("cc01", "judged"),
        ("bb01", "pairs"),
    ]
    assert tracer.text(life.after[0]) == "5a01"


def test_scores_drops_and_training_are_told(tracer: Tracer) -> None:
    events = [(each.stage, each.event, each.what) for each in tracer.life("5a02").events]
    assert events[:2] == [("answers", "made", "by base, from 1 record"), ("scored", "changed", "rm 0.25")]
    assert [(each.stage, each.event, each.what) for each in tracer.life("aa22").events] == [
        ("drafts", "made", "from 1 record"),
        ("good", "dropped", "judged_low"),
    ]
    assert [(each.stage, each.event) for each in tracer.life("bb01").events] == [("pairs", "made"), ("reward", "read")]
    never = tracer.life("dead")
    assert (never.kind, [(each.stage, each.what) for each in never.events]) == ("", [("drafts", "too_short")])
    seed = tracer.life("5eed")
    assert [(k.id, k.dropped) for k in seed.after][:2] == [("aa11", None), ("aa22", ("good", "judged_low"))]


def test_what_a_stage_made_something_from_or_kept_was_not_dropped(tmp_path: Path, tracer: Tracer) -> None:
    """A sample of its answers was cut, and counted under the id of the prompt."""
    for stage, name in (("answers", "aa11"), ("good", "aa22"), ("scored", "5a01")):
        write_json(tmp_path / stage / "drops.json", [{"id": name, "reason": "truncated"}])
    before = {known.id: known.dropped for known in tracer.life("5a01").before}
    assert before == {"aa11": None, "5eed": None}
    after = {known.id: known.dropped for known in tracer.life("5eed").after}
    assert after["aa22"] == ("good", "truncated") and after["aa11"] is None and after["5a01"] is None


# Equal prompts in two data sets have one id. `tests` comes first, and nothing of it reaches `drafts`.
BOOK = Prompt(id="b00c", messages=(Message("user", "A book."),))
TWIN = Prompt(id="5eed", parents=("b00c",), messages=SEED.messages)
GRADED = sample("7e57", parents=("5eed",))
MATCH = Match(
    id="3a7c",
    parents=("5eed", "7e57"),
    record="5eed",
    other="7e57",
    where="$exam",
    how="text",
    similarity=1.0,
    text="Seed?",
)


def twins(folder: Path) -> Tracer:
    """The stages above beside those of another data set with the same seed, and `clean`, which compares with it."""
    branch = {
        "books": Place(stage="books", type="import", folder=folder / "books", files={}, reads=[]),
        "tests": Place(stage="tests", type="select", folder=folder / "tests", files={}, reads=[("books", "main")]),
        "exam": Place(stage="exam", type="respond", folder=folder / "exam", files={}, reads=[("tests", "main")]),
        "seeds": Place(stage="seeds", type="import", folder=folder / "seeds", files={}, reads=[]),
        "clean": Place(
            stage="clean",
            type="decontaminate",
            folder=folder / "clean",
            files={},
            reads=[("seeds", "main")],
            apart=[("tests", "main")],
        ),
        "drafts": Place(stage="drafts", type="synthesize", folder=folder / "d", files={}, reads=[("clean", "main")]),
    }
    rows: dict[str, tuple[str, list[Record]]] = {
        "books": ("prompts", [BOOK]),
        "tests": ("prompts", [TWIN]),
        "exam": ("samples", [GRADED]),
        "seeds": ("prompts", [SEED]),
        "clean": ("prompts", [SEED]),
        "drafts": ("prompts", [DRAFT, OTHER]),
    }
    for name, (kind, records) in rows.items():
        path = folder / name / "output" / "records.parquet"
        write_records(path, kind, records)
        branch[name] = replace(branch[name], files={"main": path})
    write_records(folder / "clean" / "matches.parquet", "matches", [MATCH])
    files = {**branch["clean"].files, "matches": folder / "clean" / "matches.parquet"}
    apart = [*branch["clean"].apart, ("exam", "main")]
    branch["clean"] = replace(branch["clean"], files=files, apart=apart)
    write_json(folder / "exam" / "drops.json", [{"id": "5eed", "reason": "failed"}])
    return Tracer(list(branch.values()))


def test_equal_prompts_of_two_data_sets_do_not_join_their_histories(tmp_path: Path) -> None:
    found = twins(tmp_path)
    draft = found.life("aa11")
    assert [(known.id, known.stage, known.dropped) for known in draft.before] == [("5eed", "seeds", None)]
    match = found.life("3a7c")
    assert [(known.id, known.stage) for known in match.before] == [
        ("5eed", "tests"),
        ("7e57", "exam"),
        ("b00c", "books"),
    ]
    graded = found.life("7e57")
    assert [(known.id, known.stage) for known in graded.before] == [("5eed", "tests"), ("b00c", "books")]
    book = found.life("b00c")
    assert [(known.id, known.stage) for known in book.after] == [
        ("5eed", "tests"),
        ("7e57", "exam"),
        ("3a7c", "clean"),
    ]
    assert [each.stage for each in book.events] == ["books", "tests"]
    both = found.life("5eed")
    assert [known.id for known in both.after] == ["7e57", "3a7c", "aa11", "aa22"]


def test_an_unknown_id_names_those_near_and_a_short_one_all_that_it_means(tracer: Tracer) -> None:
    with pytest.raises(InputError, match="no record of this run has the id 'aa12'; similar ids are aa22, aa11"):
        tracer.life("aa12")
    with pytest.raises(
        InputError, match=r"2 records have ids that begin with 'aa': aa11 \(drafts\), aa22 \(drafts\); give"
    ):
        tracer.life("aa")


def test_a_damaged_file_is_told(tmp_path: Path, tracer: Tracer) -> None:
    place = next(iter(tracer.places.values()))
    place.files["main"].write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not a file of records, or a damaged one"):
        Tracer([place])


def test_a_hundred_thousand_records_take_seconds(tmp_path: Path) -> None:
    first = [replace(DRAFT, id=f"{i:08x}", parents=("5eed",)) for i in range(2000)]
    path = tmp_path / "one.parquet"
    write_records(path, "prompts", first)
    table = pq.read_table(path)
    big = tmp_path / "big.parquet"
    with pq.ParquetWriter(big, table.schema) as writer:
        for number in range(50):
            ids = [f"{number:04x}{i:04x}{0:08x}" for i in range(2000)]
            writer.write_table(table.set_column(0, "id", [ids]))
    assert KEY in pq.read_schema(big).metadata
    write_records(tmp_path / "seeds.parquet", "prompts", [SEED])
    places = [
        Place(stage="seeds", type="import", folder=tmp_path, files={"main": tmp_path / "seeds.parquet"}, reads=[]),
        Place(stage="big", type="synthesize", folder=tmp_path, files={"main": big}, reads=[("seeds", "main")]),
    ]
    start = time.process_time()
    tracer = Tracer(places)
    assert len(tracer.life("5eed").after) == 100_000
    assert [known.id for known in tracer.life("003107cf").before] == ["5eed"]
    assert time.process_time() - start < 20
