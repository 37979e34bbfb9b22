"""Whether a judge and the models that it judges are related, by what folders tell."""

from pathlib import Path

import pytest

from togi.core.errors import DamagedFile
from togi.core.files import write_json
from togi.core.settings import ModelRef, SamplesRef
from togi.core.sources import CARD, ModelSource, hash_folder
from togi.stages.base import MODEL_FOLDER
from togi.stages.context import Context, Control, Resolved
from togi.stages.kinship import Kin, keep_writers, kin, relation, same_model, writers


def outside(folder: Path, name: str) -> Resolved:
    """A model from outside with files of its own."""
    write_json(folder / name / "config.json", {"name": name})
    return Resolved("model", source=ModelSource(kind="path", name=str(folder / name)))


def trained(store: Path, name: str, init: Resolved, *read: str) -> Resolved:
    """A stage that trained a model from `init`, and read the stages `read`."""
    base = Path(init.source.name) if init.source else (init.folder or store) / MODEL_FOLDER
    named = base.name if init.source else base.parent.parent.name
    write_json(store / name / MODEL_FOLDER / "config.json", {"name": name})
    write_json(store / name / MODEL_FOLDER / CARD, {"base": {"name": named, "revision": hash_folder(base)}})
    return stage(store, name, *([] if init.source else [named]), *read)


def stage(store: Path, name: str, *read: str) -> Resolved:
    write_json(store / name / "made_from.json", {"made_from": {f"{each}/output": "" for each in read}})
    return Resolved("model", folder=store / name)


def context(store: Path, **models: Resolved) -> Context:
    inputs: dict[str, Resolved] = {ModelRef(f"${name}"): target for name, target in models.items()}
    return Context("x", store / "x", store, 1, inputs, Control(send=lambda event: None))


def told(store: Path, one: Resolved, judge: Resolved) -> tuple[bool, str]:
    """Whether both are the same model, and how they are related."""
    here = context(store, one=one, judge=judge)
    models = kin(here, ModelRef("$one")), kin(here, ModelRef("$judge"))
    return same_model(*models), relation("one", *models)


def test_models_of_one_base_are_a_family_and_others_are_not(tmp_path: Path):
    base, other = outside(tmp_path, "base"), outside(tmp_path, "other")
    first = trained(tmp_path, "sft-1", base)
    second, cousin = trained(tmp_path, "dpo-2", first), trained(tmp_path, "sft-3", base)
    assert told(tmp_path, first, base) == told(tmp_path, second, base) == (False, "one was trained from the judge")
    assert told(tmp_path, first, second) == (False, "the judge was trained from one")
    assert told(tmp_path, second, cousin) == (False, "one and the judge were both trained from base")
    assert told(tmp_path, first, other) == told(tmp_path, other, base) == (False, "")
    assert told(tmp_path, base, outside(tmp_path, "base"))[0] and told(tmp_path, second, second)[0]


def test_a_path_into_a_stage_is_that_stage(tmp_path: Path):
    first = trained(tmp_path, "sft-1", outside(tmp_path, "base"))
    named = Resolved("model", source=ModelSource(kind="path", name=str(tmp_path / "sft-1" / MODEL_FOLDER)))
    assert told(tmp_path, named, first)[0]


def test_a_judge_that_wrote_the_training_data_is_told(tmp_path: Path):
    judge = trained(tmp_path, "sft-1", outside(tmp_path, "base"))
    stage(tmp_path, "label-2", "sft-1")
    policy = trained(tmp_path, "dpo-3", outside(tmp_path, "other"), "label-2")
    assert told(tmp_path, policy, judge) == (False, "one was trained on what the judge wrote or judged")
    assert told(tmp_path, judge, policy) == (False, "the judge was trained on what one wrote or judged")


def test_models_of_a_hub_and_of_servers_are_known_by_their_names(tmp_path: Path):
    hub = Resolved("model", source=ModelSource(kind="hub", name="owner/name", revision="1"))
    server = Resolved("model", source=ModelSource(kind="endpoint", name="owner/name"))
    other = Resolved("model", source=ModelSource(kind="endpoint", name="name"))
    assert told(tmp_path, hub, server)[0] and told(tmp_path, hub, other) == (False, "")


def test_the_writers_of_samples_are_found_through_the_stages_that_chose_from_them(tmp_path: Path):
    first = trained(tmp_path, "sft-1", outside(tmp_path, "base"))
    answering = context(tmp_path, tuned=first)
    answering.folder.mkdir()
    keep_writers(answering, [ModelRef("$tuned")])
    chosen = stage(tmp_path, "select-1", "x")
    reading = Context("y", tmp_path / "y", tmp_path, 1, {SamplesRef("$s"): chosen}, Control(send=lambda event: None))
    found = writers(reading, SamplesRef("$s"))
    assert found == {"tuned": kin(answering, ModelRef("$tuned"))} and isinstance(found["tuned"], Kin)
    assert next(iter(found["tuned"].line)) == "sft-1", "the order is kept"
    write_json(tmp_path / "x" / "writers.json", {"tuned": 5})
    with pytest.raises(DamagedFile, match=r"writers\.json: damaged"):
        writers(reading, SamplesRef("$s"))
