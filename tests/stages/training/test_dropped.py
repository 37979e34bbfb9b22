"""Training that leaves out many records says so, with the reasons and the settings to change; all of it is counted."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tiny_pairs import pairs
from tiny_texts import bare_context, chat, documents

from togi.core.errors import InputError
from togi.core.records import Chat, Document, Message, Pair
from togi.core.settings import ChatsRef, DocumentsRef, ModelRef, PairsRef
from togi.stages.context import Context
from togi.stages.training import dpo_work, pretrain_work, reward_work, sft_work, smpo_work
from togi.stages.training.dpo import TrainDpo
from togi.stages.training.pretrain import STAGE as PRETRAIN
from togi.stages.training.pretrain import MixedSource, TrainPretrain
from togi.stages.training.reward import TrainReward
from togi.stages.training.sft import TrainSft
from togi.stages.training.smpo import TrainSmpo

STEP: dict[str, Any] = {"init": ModelRef("$base"), "steps": 1, "micro_batch_tokens": 512}
LONG = "word " * 60


def chats(count: int, long: int) -> list[Any]:
    """`count` chats, the last `long` of which are longer than 128 tokens."""
    return [
        chat(("user", f"Why {n}?"), ("assistant", LONG if n >= count - long else "So."), name=f"c{n}")
        for n in range(count)
    ]


def some_pairs() -> list[Pair]:
    """8 pairs: one with a long answer, two with equal ones."""
    long, *others = pairs()
    long = replace(long, rejected=(Message("assistant", LONG),))
    return [long, *(replace(each, rejected=each.chosen) for each in others[:2]), *others[2:]]


def trained(work: Any, settings: Any, context: Context) -> tuple[list[str], list[str]]:
    """Runs a training; returns its alarms about dropped records, and its last line about them."""
    told: list[str] = []
    alarms: list[str] = []

    def send(event: dict[str, Any]) -> None:
        if event["event"] == "alarm" and event["name"] == "dropped_records":
            alarms.append(event["message"])
        if event["event"] == "log":
            told.append(event["message"])

    context.control.send = send
    work.run(settings, context)
    return alarms, [line for line in told if "records were dropped" in line]


Case = tuple[Any, Callable[[], dict[str, Any]], Any, str, str]
ON_PAIRS = {"pairs": PairsRef("$pairs"), "max_length": 128, **STEP}
CASES: dict[str, Case] = {
    "sft": (
        sft_work,
        lambda: {"chats": chats(10, long=2)},
        TrainSft(chats=ChatsRef("$chats"), max_length=128, **STEP),
        "2 of 10 records (20%) are dropped, so that training does not see them: too_long 2; raise max_length "
        "(now 128), or set overflow: truncate or truncate_to_answer",
        "2 of 10 records were dropped: too_long 2",
    ),
    "dpo": (
        dpo_work,
        lambda: {"pairs": some_pairs()},
        TrainDpo(**ON_PAIRS),
        "too_long 1, equal_answers 2; raise max_length (now 128), or set overflow: truncate; correct the data "
        "(equal_answers)",
        "3 of 8 records were dropped: too_long 1, equal_answers 2",
    ),
    "smpo": (
        smpo_work,
        lambda: {"pairs": some_pairs()},
        TrainSmpo(**ON_PAIRS),
        "3 of 8 records (38%) are dropped",
        "3 of 8 records were dropped: too_long 1, equal_answers 2",
    ),
    "reward": (
        reward_work,
        lambda: {"pairs": some_pairs()},
        TrainReward(**ON_PAIRS, validation=None),
        "raise max_length (now 128); correct the data (equal_answers)",
        "3 of 8 records were dropped: too_long 1, equal_answers 2",
    ),
    "pretrain": (
        pretrain_work,
        lambda: {"documents": [*documents()[:6], Document(id="e", text=" \n")]},
        TrainPretrain(sources=(MixedSource(documents=DocumentsRef("$documents")),), batch_tokens=256, **STEP),
        "1 of 7 records (14%) are dropped, so that training does not see them: empty 1; correct the data (empty)",
        "records were dropped: empty 1",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_training_on_records_tells_when_it_drops_more_than_a_tenth(tmp_path, case):
    work, records, settings, alarm, line = CASES[case]
    alarms, last = trained(work, settings, bare_context(tmp_path, **records()))
    assert len(alarms) == 1 and alarm in alarms[0]
    assert len(last) == 1 and last[0].endswith(line)


def test_a_tenth_is_counted_at_the_end_without_an_alarm(tmp_path):
    settings = CASES["sft"][2]
    found = trained(sft_work, settings, bare_context(tmp_path, chats=chats(10, long=1)))
    assert found == ([], ["1 of 10 records were dropped: too_long 1"])
    assert trained(sft_work, settings, bare_context(tmp_path / "none", chats=chats(4, long=0))) == ([], [])


def test_a_chat_to_validate_on_that_does_not_fit_a_block_counts_too(tmp_path):
    context = bare_context(tmp_path, chats=chats(6, long=0), more_chats=chats(4, long=2))
    settings = TrainSft(
        chats=ChatsRef("$chats"), validation=ChatsRef("$more_chats"), packing="blocks", max_length=64, **STEP
    )
    alarms, _ = trained(sft_work, settings, context)
    assert alarms[0].endswith("too_long 2; raise max_length (now 64)")


def test_a_chat_that_the_template_cannot_render_is_dropped_from_pretraining_too(tmp_path):
    called = Message("assistant", "Let me look.", extra={"tool_calls": [{"function": {"name": "f"}}]})
    bad = Chat(id="bad", messages=(Message("user", "Weather?"), called))
    context = bare_context(tmp_path, chats=[*chats(9, long=0), bad])
    context.reasons = PRETRAIN.reasons
    settings = TrainPretrain(sources=(MixedSource(chats=ChatsRef("$chats")),), batch_tokens=256, **STEP)
    assert trained(pretrain_work, settings, context) == ([], ["1 of 10 records were dropped: not_rendered 1"])


def test_where_the_context_is_the_limit_no_setting_is_named(tmp_path):
    long = chat(("user", "Why?"), ("assistant", LONG * 8), name="long")
    settings = TrainSft(chats=ChatsRef("$chats"), **STEP)
    alarms, _ = trained(sft_work, settings, bare_context(tmp_path, chats=[*chats(4, long=0), long]))
    assert "too_long 1; shorten them (the model's context is the limit), or set overflow: truncate" in alarms[0]


def test_where_nothing_is_left_the_same_advice_is_given(tmp_path):
    settings = CASES["sft"][2].model_copy(update={"max_length": 16})
    with pytest.raises(InputError, match=r"every record was dropped: too_long 3; raise max_length \(now 16\), or set"):
        sft_work.run(settings, bare_context(tmp_path, chats=chats(3, long=0)))


def test_the_rehearsal_of_a_check_raises_the_same_alarm(tmp_path):
    for case, (work, records, settings, alarm, _) in CASES.items():
        context = bare_context(tmp_path / case, **records())
        list(work.rehearse(settings, context))
        told = [json.loads(line) for line in (context.folder / "alarms.jsonl").read_text().splitlines()]
        assert [alarm in each["message"] for each in told if each["name"] == "dropped_records"] == [True], case
