"""Stages that train nothing query models through `stages/endpoints` and get exactly what the model itself returns."""

import ast
from pathlib import Path

import pytest
from tiny_run import tiny_model

from togi import stages
from togi.core.errors import InputError
from togi.core.files import read_json
from togi.core.records import Message, Prompt, SamplingParams
from togi.core.settings import ModelRef
from togi.core.sources import ModelSource
from togi.rollout.generator import ModelGenerator
from togi.stages.context import Context, Control, Resolved
from togi.stages.endpoints import chooser, completer, generator, tokenizer
from togi.stages.models import load_model

BASE = ModelRef("$base")


@pytest.fixture
def context(tmp_path: Path) -> Context:
    tiny_model(tmp_path / "model")
    source = ModelSource(kind="path", name=str(tmp_path / "model"), template="chatml", device="cpu")
    inputs: dict[str, Resolved] = {BASE: Resolved("model", source=source)}
    return Context("ask", tmp_path, tmp_path, 1, inputs, Control(send=lambda event: None), compute="float32")


def test_answers_and_continuations_are_the_models_own(context: Context) -> None:
    prompts = [Prompt(id="p", messages=(Message("user", "Why?"),))]
    params = SamplingParams(max_tokens=6, seed=3)
    model = load_model(context, BASE)
    plain = ModelGenerator(model.net, model.tokenizer, model.template, batch_rows=2)
    asked = generator(context, BASE, batch_rows=2)
    assert asked.generate(prompts, params) == plain.generate(prompts, params)
    assert asked.terminator == "<|im_end|>" and asked.turn_starts
    (answers,) = completer(context, BASE, batch_rows=2).complete(["Once"], params, [[7]])
    assert answers == completer(context, BASE, batch_rows=2).complete(["Once"], params, [[7]])[0]
    assert len(tokenizer(context, BASE)("Once", add_special_tokens=False)["input_ids"]) > 0
    (margin,) = chooser(context, BASE).margins([(Message("user", "Is it so?"),)], "yes", "no")
    assert margin == pytest.approx(-chooser(context, BASE).margins([(Message("user", "Is it so?"),)], "no", "yes")[0])


def test_the_device_of_a_model_is_noted_since_bits_depend_on_it(context: Context) -> None:
    generator(context, BASE, batch_rows=2)
    assert read_json(context.folder / "numerics.json")["device of $base"] == "cpu"
    source = ModelSource(kind="path", name=str(context.folder / "model"), template="chatml", device="cuda:97")
    context.inputs[BASE] = Resolved("model", source=source)
    (context.folder / "numerics.json").unlink()
    with pytest.raises(InputError, match="its device is cuda:97"):
        generator(context, BASE, batch_rows=2)


def test_no_stage_that_trains_nothing_touches_a_network() -> None:
    root = Path(stages.__path__[0])
    found = [
        f"{path.name}:{node.lineno}"
        for folder in ("data", "evaluation")
        for path in sorted((root / folder).glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "net"
    ]
    assert found == []
