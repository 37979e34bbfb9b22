"""Evaluations know, across several stages, which prompts a model has learnt from."""

import shutil
from pathlib import Path

from togi.core.records import Message
from togi.core.settings import ModelRef
from togi.core.sources import ModelSource
from togi.stages.base import MODEL_FOLDER
from togi.stages.context import Context, Control, Resolved
from togi.stages.seen_prompts import FILE, keep_learnt, learnt, mark


def asked(text: str, system: str = "") -> tuple[Message, ...]:
    return (*((Message("system", system),) if system else ()), Message("user", text))


def context(folder: Path, init: Resolved) -> Context:
    folder.mkdir()
    return Context("x", folder, folder, 1, {"$init": init}, Control(send=lambda event: None))


def test_a_stage_hands_on_what_its_initial_model_had_learnt_from(tmp_path):
    outside = Resolved("model", source=ModelSource(kind="path", name="/nowhere"))
    first = context(tmp_path / "first", outside)
    keep_learnt(first, ModelRef("$init"), [asked("Why?"), asked("How?"), asked("Why?")])
    second = context(tmp_path / "second", Resolved("model", folder=first.folder))
    keep_learnt(second, ModelRef("$init"), [asked("When?")])
    third = context(tmp_path / "third", Resolved("model", folder=second.folder))
    assert learnt(third, ModelRef("$init")) == [mark(asked(text)) for text in ("Why?", "How?", "When?")]
    assert learnt(first, ModelRef("$init")) is None, "nothing is known of a model from outside"


def test_a_path_into_a_stage_or_to_an_export_knows_what_its_model_learnt_from(tmp_path):
    first = context(tmp_path / "first", Resolved("model", source=ModelSource(kind="path", name="/nowhere")))
    keep_learnt(first, ModelRef("$init"), [asked("Why?")])
    (first.folder / "made_from.json").write_text("{}")
    (first.folder / MODEL_FOLDER).mkdir(parents=True)
    (tmp_path / "run").symlink_to(first.folder)
    (tmp_path / "export").mkdir()
    shutil.copyfile(first.folder / FILE, tmp_path / "export" / FILE)
    places = (first.folder / MODEL_FOLDER, tmp_path / "run" / MODEL_FOLDER, tmp_path / "export")
    for number, place in enumerate(places):
        reader = context(tmp_path / str(number), Resolved("model", source=ModelSource(kind="path", name=str(place))))
        assert learnt(reader, ModelRef("$init")) == [mark(asked("Why?"))]


def test_a_prompt_is_known_again_under_another_system_turn_and_in_other_letters():
    assert mark(asked("Why is  the sky blue?", "Be brief.")) == mark(asked("why is the sky blue"))
    assert mark(asked("Why is the sky blue?")) != mark(asked("Why is the sea blue?"))
