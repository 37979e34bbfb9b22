"""`train.pretrain`: windows, ends of documents, the mixture and its ledger, resuming."""

import json
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from tiny import tiny_model as library_model
from tiny_texts import bare_context, chat, chats, documents

from togi.core.errors import InputError, Interrupted
from togi.core.records import Document
from togi.core.settings import ChatsRef, DocumentsRef, ModelRef
from togi.model.forest import Sequence, move, plant
from togi.model.load import load
from togi.model.policy import Policy, plain_logprobs
from togi.stages.training import pretrain_work
from togi.stages.training.pretrain import MixedSource, TrainPretrain
from togi.stages.training.pretrain_work import Windows

SOURCES = (
    MixedSource(documents=DocumentsRef("$documents"), share=0.7),
    MixedSource(chats=ChatsRef("$chats"), share=0.3),
)


def settings(**given) -> TrainPretrain:
    known = {"steps": 6, "batch_tokens": 200, "max_length": 32, "sources": SOURCES, "learning_rate": 1e-3}
    return TrainPretrain(init=ModelRef("$base"), **{**known, **given})


def context_of(folder, **more):
    return bare_context(folder, documents=documents(), chats=chats(), **more)


@pytest.fixture
def windows(tmp_path):
    def make(**given) -> Windows:
        context, made = context_of(tmp_path), settings(**{"batch_tokens": 512, **given})
        return Windows.of(made, context, load(context.model(ModelRef("$base")), context.cache))

    return make


def test_every_token_is_predicted_once_whatever_the_window(windows):
    text = Document(id="d", text="The sky is blue because of light. " * 5)
    whole = windows(max_length=256)
    ids = whole.ids(text)
    assert next(whole.pieces([whole.whole(text)])).group[0] == Sequence(ids, (False,) + (True,) * (len(ids) - 1))
    for length in (8, 9, 31, len(ids) - 1, len(ids), len(ids) + 1):
        made = windows(max_length=length)
        parts = [example.group[0] for example in made.pieces([made.whole(text)])]
        assert max(len(part.ids) for part in parts) <= length
        scored = [i for part in parts for i, s in zip(part.ids, part.scored, strict=True) if s]
        assert scored == list(ids[1:])


def test_a_text_ends_with_one_end_of_text_token(windows):
    made = windows()
    eos = made.model.tokenizer.eos_token_id
    assert made.ids(Document(id="d", text="Hi"))[-2:].count(eos) == 1
    assert made.ids(Document(id="d", text="Hi</s>"))[-2:].count(eos) == 1
    assert made.ids(chat(("user", "Hi"), ("assistant", "Yes.")))[-1] == eos


def test_a_document_that_brings_its_own_bos_would_have_two_and_is_dropped(windows):
    made = replace(windows(), opening="<s>", bos=(1,))
    assert made.unusable(Document(id="d", text="<s>Rivers begin as springs.")) == "two_bos"
    assert made.unusable(Document(id="d", text="Rivers begin as springs. <s>")) is None
    assert replace(made, opening="", bos=()).unusable(Document(id="d", text="<s>Rivers.")) is None  # bos: false
    assert made.unusable(chats()[0]) is None


def test_documents_do_not_see_each_other():
    net = library_model("llama")
    parts = [Sequence(tuple(range(5 + i, 25 + 3 * i)), (False,) + (True,) * (19 + 2 * i)) for i in range(4)]
    found = Policy(net)(move(plant([[part] for part in parts]), "cpu")).logp_N
    torch.testing.assert_close(found, plain_logprobs(net, parts), rtol=0, atol=1e-10)


def test_the_ledger_holds_what_was_trained_on(tmp_path):
    context = context_of(tmp_path)
    pretrain_work.run(settings(), context)
    ledger = context.summary["ledger"]
    assert ledger["documents"]["share"] == pytest.approx(0.7, abs=32 / 1200)
    lines = [json.loads(line) for line in (context.folder / "metrics.jsonl").read_text().splitlines()]
    seen = [line["tokens/documents"] + line["tokens/chats"] for line in lines]
    assert all(200 * (i + 1) <= tokens < 200 * (i + 1) + 32 for i, tokens in enumerate(seen))
    assert sum(line["num_tokens"] for line in lines) == seen[-1]
    assert ledger["chats"]["epochs"] == lines[-1]["epochs/chats"] > 0


@pytest.mark.parametrize(("tokens", "steps"), [(500, 3), (401, 3)])  # 1 token in step 3 makes a window
def test_the_tokens_of_the_recipe_are_trained_on_and_no_step_more(tmp_path, tokens, steps):
    context = context_of(tmp_path)
    pretrain_work.run(settings(steps=None, tokens=tokens), context)
    lines = [json.loads(line) for line in (context.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == steps and all(line["num_tokens"] > 0 for line in lines)
    assert tokens <= sum(line["num_tokens"] for line in lines) < tokens + 2 * 32


def test_a_window_that_is_longer_than_a_step_is_refused(windows):
    with pytest.raises(ValidationError, match="a window of 201 tokens is larger than a step"):
        settings(max_length=201)
    with pytest.raises(InputError, match="context, 256 tokens, which is larger than a step"):
        windows(max_length=None, batch_tokens=255)
    assert windows(max_length=None, batch_tokens=256).length == 256


def test_stopped_and_gone_on_it_draws_the_same(tmp_path):
    whole = context_of(tmp_path / "whole")
    pretrain_work.run(settings(lora={"rank": 2}), whole)
    broken = context_of(tmp_path / "broken")

    def stop(event: dict) -> None:
        broken.control.stop = event["event"] == "progress" and event["done"] == 3

    broken.control.send = stop
    with pytest.raises(Interrupted):
        pretrain_work.run(settings(lora={"rank": 2}), broken)
    again = context_of(tmp_path / "broken")
    pretrain_work.run(settings(lora={"rank": 2}), again)
    assert again.summary == whole.summary
    weights = "output/model/model.safetensors"
    assert (again.folder / weights).read_bytes() == (whole.folder / weights).read_bytes()


def test_validation_texts_are_never_trained_on(tmp_path):
    context = context_of(tmp_path, more_documents=[Document(id="v", text="Rivers begin in hills.")])
    held = settings(validation=DocumentsRef("$more_documents"))
    pretrain_work.run(held, context)
    assert context.counts["validation"] == 1
    shared = context_of(tmp_path / "share")
    pretrain_work.run(settings(validation=0.25), shared)
    assert shared.summary["validation"]["validation/loss"] > 0
    assert shared.counts["validation"] > 4  # windows of two documents and two chats


@pytest.mark.parametrize(("template", "count"), [("llm-jp", 2), ("llm-jp-system", 0)])
def test_chats_whose_system_turn_the_template_replaces_are_counted_and_told(tmp_path, template, count):
    talk = (("user", "Hi"), ("assistant", "Yes."))
    systems = ("Be a pirate.", "Be brief.", "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。")
    given = [*chats(), *(chat(("system", text), *talk, name=f"s{i}") for i, text in enumerate(systems))]
    checked = bare_context(tmp_path / "checked", template, documents=documents(), chats=given)
    list(pretrain_work.rehearse(settings(), checked))
    context = bare_context(tmp_path / "run", template, documents=documents(), chats=given)
    pretrain_work.run(settings(steps=1), context)
    assert context.counts.get("system_replaced", 0) == checked.counts.get("system_replaced", 0) == count
    assert alarms(context) == alarms(checked) and len(alarms(context)) == bool(count)
    for told in alarms(context):
        assert f"the system turn of {count} records" in told and "choose template: llm-jp-system" in told


def alarms(context) -> list[str]:
    file = context.folder / "alarms.jsonl"
    return [json.loads(line)["message"] for line in file.read_text().splitlines()] if file.exists() else []


def test_an_empty_document_is_dropped_and_a_source_that_is_too_small_refused(tmp_path):
    context = bare_context(tmp_path, documents=[*documents(), Document(id="e", text=" \n")], chats=chats())
    pretrain_work.run(settings(steps=1), context)
    assert [(drop.id, drop.reason) for drop in context.drops] == [("e", "empty")]
    few = bare_context(tmp_path / "few", documents=documents()[:1], chats=chats())
    with pytest.raises(InputError, match=r"\$documents has 1 texts"):
        pretrain_work.run(settings(validation=0.2), few)
