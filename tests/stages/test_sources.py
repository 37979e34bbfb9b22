"""Licences and terms are passed on to what is made from a record, without any code for it in stages."""

from dataclasses import asdict
from pathlib import Path

import pytest

from togi.core.codec import read_records, write_records
from togi.core.errors import InputError
from togi.core.files import read_json, write_json
from togi.core.records import Completion, Document, Message, Prompt, Provenance, Record, Sample, joined
from togi.core.settings import ModelRef, PromptsRef, ScorerRef, ingredients
from togi.core.sources import ModelSource
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Control, Resolved
from togi.stages.shards import ShardTask, do_shard
from togi.stages.sources import Descent, model_sources
from togi.stages.training.sft import TrainSft

FREE = Provenance(dataset="free", licence="CC0")
SAFE = Provenance(dataset="safe", licence="CC-BY", terms="for safety only", inherit=True)
NEAR = Provenance(dataset="near", licence="MIT", terms="ask first")
REF, BENCH, MODEL, JUDGE = PromptsRef("$some"), PromptsRef("$bench"), ModelRef("$base"), ScorerRef("$rm")
GEMMA = ModelSource(kind="hub", name="g/emma", revision="c", licence="gemma", terms="no harm", inherit=True)
GEMMA_SAID = Provenance(dataset="g/emma", revision="c", licence="gemma", terms="no harm", inherit=True, kind="model")


def prompt(name: str, source: Provenance | None = None, *parents: str) -> Prompt:
    return Prompt(id=name, source=source, parents=parents, messages=(Message("user", f"{name}?"),))


def names(record: Record) -> list[str]:
    return [source.dataset for source in record.sources]


def test_a_record_made_of_several_joins_their_sources() -> None:
    descent = Descent()
    descent.note([prompt("a", FREE), prompt("b", SAFE), prompt("c", NEAR)])
    both, one, lost, same = descent.given(
        [prompt("x", None, "b", "c"), prompt("y", None, "a"), prompt("a"), prompt("c", NEAR)]
    )
    assert names(both) == ["safe", "near"] and names(one) == ["free"]
    assert [source.terms for source in both.sources] == ["for safety only", None]  # what does not bind is not passed on
    assert lost.sources == (FREE,) and same == prompt("c", NEAR)  # a passed record keeps all, or gets it back


def test_a_record_without_known_parents_has_all_sources() -> None:
    descent = Descent()
    descent.note([prompt("a", FREE), prompt("b", SAFE)])
    alone, strange = descent.given([prompt("x"), prompt("y", None, "never read")])
    assert names(alone) == names(strange) == ["free", "safe"]


def test_what_is_inherited_is_passed_on_though_the_stage_copies_the_source_alone() -> None:
    descent = Descent()
    before = Prompt(id="a", source=FREE, inherited=(SAFE,), messages=(Message("user", "?"),))
    descent.note([before])
    (made,) = descent.given([prompt("x", FREE, "a")])
    assert made.sources == (FREE, SAFE)


def test_terms_of_a_model_reach_what_it_wrote_and_not_what_passed() -> None:
    other = Provenance(dataset="other", licence="MIT", kind="model")
    descent = Descent({"base": (GEMMA_SAID,), "judge": (other,)})
    descent.note([prompt("a", FREE)])
    answer = Completion(text="!", stop="length")
    sample = Sample(id="s", parents=("a",), prompt=prompt("a"), completion=answer, model="judge")
    passed, made, said = descent.given([prompt("a", FREE), prompt("x", None, "a"), sample])
    assert names(passed) == ["free"] and names(made) == ["free", "g/emma", "other"] and names(said) == ["free", "other"]


def test_a_source_stands_once_and_with_its_terms() -> None:
    assert joined([NEAR.passed_on, FREE, NEAR, FREE]) == (FREE, NEAR)
    assert joined([SAFE.passed_on, SAFE]) == (SAFE,)


def context(folder: Path, records: list[Prompt], bench: list[Prompt] | None = None, **models: ModelSource) -> Context:
    inputs: dict[str, Resolved] = {}
    for ref, rows in ((REF, records), (BENCH, bench)):
        if rows:
            write_records(folder / ref.name / RECORDS_FILE, "prompts", rows)
            inputs[ref] = Resolved("prompts", folder=folder / ref.name)
    inputs |= {MODEL: Resolved("model", source=models["base"])} if "base" in models else {}
    inputs |= {JUDGE: Resolved("scorer", source=models["rm"])} if "rm" in models else {}
    made = Context("here", folder / "here", folder, 1, inputs, Control(send=lambda event: None), apart=(BENCH,))
    made.folder.mkdir()
    return made


def test_a_stage_that_knows_nothing_of_terms_passes_them_on(tmp_path: Path) -> None:
    here = context(tmp_path, [prompt("a", SAFE), prompt("b", FREE)], [prompt("q", NEAR)], base=GEMMA)
    read, _ = here.records(REF), here.records(BENCH)
    with here.writer("prompts") as writer:
        writer.write([prompt("x", None, read[0].id)])
        writer.write([read[1]])
    here.finish()
    new, old = read_records(here.folder / RECORDS_FILE)[1]
    assert names(new) == ["safe", "g/emma"] and old == prompt("b", FREE)
    shown = read_json(here.folder / "summary.json")["sources"]
    assert [(row["dataset"], row["terms"], row["records"]) for row in shown] == [
        ("safe", "for safety only", 1),
        ("g/emma", "no harm", 1),
        ("free", None, 1),
    ]
    assert [source.dataset for source in here.lineage()] == ["safe", "free", "g/emma"]  # the benchmark is kept apart


def test_a_stage_that_reads_its_files_itself_passes_on_all_that_is_in_them(tmp_path: Path) -> None:
    here = context(tmp_path, [prompt("a", SAFE), prompt("b", FREE)], [prompt("q", NEAR)])
    here.write("prompts", [prompt("x"), prompt("b", FREE)])
    new, old = read_records(here.folder / RECORDS_FILE)[1]
    assert names(new) == ["safe", "free"] and names(old) == ["free"]


def test_scores_of_a_bound_reward_model_bind(tmp_path: Path) -> None:
    write_records(tmp_path / "some" / RECORDS_FILE, "prompts", [prompt("a", FREE)])
    here = context(tmp_path, [prompt("a", FREE)], rm=GEMMA)
    answer = Completion(text="!", stop="length")
    (sample,) = here.sourced([Sample(id="s", source=FREE, prompt=prompt("a"), completion=answer)])
    assert names(sample) == ["free", "g/emma"] and here.sourced([prompt("a", FREE)]) == [prompt("a", FREE)]


def test_rows_of_a_shard_get_the_sources_of_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "documents.parquet"
    bound = Document(id="c", text="odd", source=FREE, inherited=(SAFE,))
    write_records(path, "documents", [Document(id=n, text="x", source=NEAR) for n in "ab"] + [bound, bound])
    task = ShardTask(
        rows="row_stage",
        settings_class="row_stage:Toy",
        settings={"folder": str(tmp_path)},
        stage="toy",
        producer="toy-1",
        seed=1,
        source=str(path),
        number=0,
        first=0,
        count=10,
    )
    kept = [[source["dataset"] for source in row["inherited"]] for row in do_shard(task)["kept"]]
    assert kept == [["near"], ["free", "safe"]]


def test_a_model_of_togi_says_what_it_was_trained_from(tmp_path: Path) -> None:
    write_json(tmp_path / "togi.json", {"sources": [asdict(SAFE)]})
    assert model_sources(ModelSource(kind="path", name=str(tmp_path))) == (SAFE,)
    write_json(tmp_path / "togi.json", {"sources": [{"dataset": "safe"}]})
    with pytest.raises(InputError, match="its `sources` cannot be read"):
        model_sources(ModelSource(kind="path", name=str(tmp_path)))


def test_validation_is_no_ingredient() -> None:
    settings = TrainSft.model_validate({"init": "$base", "chats": "$some", "validation": "$bench"})
    assert ingredients(settings) == ["$base", "$some"]


def test_a_source_without_a_licence_is_in_the_summary(tmp_path: Path) -> None:
    plain = Provenance(dataset="plain")
    here = context(tmp_path, [prompt("a", FREE), prompt("b", plain)])
    here.write("prompts", here.records(REF))
    here.finish()
    shown = read_json(here.folder / "summary.json")["sources"]
    assert [(row["dataset"], row["licence"]) for row in shown] == [("free", "CC0"), ("plain", "")]
