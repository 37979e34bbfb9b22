"""How much device memory is used by models that are only read."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import tiny_model
from tiny_texts import bare_context
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from togi.core.settings import ModelRef, ScorerRef
from togi.core.sources import ModelSource
from togi.model.headers import read_weights
from togi.model.load import inspect
from togi.stages import models
from togi.stages.context import Resolved
from togi.stages.device_room import make_room
from togi.stages.training.resources import USABLE, key_room
from togi.train import usage

BASE, REWARD = ModelRef("$base"), ScorerRef("$reward")


@pytest.mark.parametrize(("spare", "forgotten"), [(0, 1), (10, 0)])
def test_kept_models_go_where_one_more_has_no_room_beside_them(tmp_path, monkeypatch, spare: int, forgotten: int):
    tiny_model(tmp_path / "model")
    size = 4 * sum(weight.numel() for weight in load_file(tmp_path / "model" / "model.safetensors").values())
    source = ModelSource(kind="path", name=str(tmp_path / "model"), template="chatml", device="cpu")
    monkeypatch.setattr(usage, "available", lambda device: size / USABLE - 1 + spare)
    gone = []
    stored = inspect(source, tmp_path).weights
    make_room(source, stored, torch.float32, lambda: gone.append(1))
    assert len(gone) == forgotten
    make_room(source, stored, torch.bfloat16, lambda: gone.append(1))  # needs half the memory
    assert len(gone) == forgotten


def test_a_stage_keeps_what_fits_and_reads_on_where_nothing_does(tmp_path, monkeypatch):
    context = bare_context(tmp_path)
    models.forget_models()
    models.load_model(context, BASE)
    assert models.kept_model.cache_info().currsize == 1
    others = [
        ModelSource(kind="path", name=str(tmp_path / "model"), template=name) for name in ("llama3", "llama3-text")
    ]
    models.kept_model(others[0], context.cache, torch.float32)
    assert models.kept_model.cache_info().currsize == 2
    monkeypatch.setattr(usage, "available", lambda device: 0)
    models.kept_model(others[1], context.cache, torch.float32)
    assert models.kept_model.cache_info().currsize == 1
    models.forget_models()


@pytest.mark.parametrize("kind", ["model", "scorer", "trainable"])
def test_the_headers_of_a_model_are_read_once(tmp_path, monkeypatch, kind: str):
    context, read = bare_context(tmp_path), []
    monkeypatch.setattr("togi.model.inspect.read_weights", lambda folder: read.append(folder) or read_weights(folder))
    models.forget_models()
    if kind == "scorer":
        folder = tmp_path / "scorer"
        net = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=1)
        for made in (net, AutoTokenizer.from_pretrained(tmp_path / "model")):
            made.save_pretrained(folder)
        source = ModelSource(kind="path", name=str(folder), template="chatml")
        models.load_scorer(replace(context, inputs={REWARD: Resolved("scorer", source=source)}), REWARD)
    else:
        {"model": models.load_model, "trainable": models.load_trainable}[kind](context, BASE)
    models.forget_models()
    assert len(read) == 1


def test_the_keys_have_what_one_model_leaves_of_a_card_or_half_of_it():
    assert key_room(32e9, 27e9) == pytest.approx(0.9 * 32e9 - 27e9)
    assert key_room(32e9, 3e9) == pytest.approx(0.9 * 32e9 - 16e9)
    assert key_room(16e9, 27e9) == 0
