"""Evaluations know, across several stages, which prompts a model has learnt from."""

from pathlib import Path

from togi.core.records import Message
from togi.core.settings import ModelRef
from togi.core.sources import ModelSource
from togi.stages.context import Context, Control, Resolved
from togi.stages.seen_prompts import keep_learnt, learnt, mark


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
    assert learnt(first, ModelRef("$init")) == []


def test_a_prompt_is_known_again_under_another_system_turn_and_in_other_letters():
    assert mark(asked("Why is  the sky blue?", "Be brief.")) == mark(asked("why is the sky blue"))
    assert mark(asked("Why is the sky blue?")) != mark(asked("Why is the sea blue?"))
