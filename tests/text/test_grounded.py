"""Grounded dialogues: their format, byte for byte as on the card, and what is read from a model's ids."""

import json

import pytest

from togi.core.records import Message
from togi.text.grounded import (
    ANSWER,
    IDS,
    SYSTEM,
    Relevant,
    Shown,
    asked,
    asked_again,
    asked_at_once,
    dialogue,
    read_documents,
    read_relevant,
)
from togi.text.template import TEMPLATES

DOCUMENTS = [Shown("Ледники", "Объём уменьшился на 30%"), Shown(None, 'Он сказал "да"')]


def test_a_dialogue_is_that_of_the_card():
    messages = dialogue(DOCUMENTS, "Что с ледниками?", [0], "Они тают.")
    assert [message.role for message in messages] == ["system", "documents", "user", "assistant", "assistant"]
    assert messages[0].content == SYSTEM
    assert messages[1].content == (
        '[{"doc_id": 0, "title": "Ледники", "content": "Объём уменьшился на 30%"}, '
        '{"doc_id": 1, "title": null, "content": "Он сказал \\"да\\""}]'
    )
    assert messages[3] == Message("assistant", '{"relevant_doc_ids": [0]}')
    assert all(message.train for message in messages[3:])


def test_ids_are_sorted_and_where_nothing_helps_the_list_is_empty():
    assert json.loads(dialogue(DOCUMENTS, "q", [1, 0], "a")[3].content) == {"relevant_doc_ids": [0, 1]}
    assert dialogue(DOCUMENTS, "q", [], "a")[3].content == '{"relevant_doc_ids": []}'


def test_both_answers_carry_loss_under_the_cards_template():
    messages = dialogue(DOCUMENTS, "Что с ледниками?", [0], "Они тают.")
    parts = TEMPLATES["vikhr-nemo"].segments(messages)
    head = "<|start_header_id|>documents<|end_header_id|>\n\n[{"
    assert head in "".join(part.text for part in parts)
    assert [part.text for part in parts if part.train] == ['{"relevant_doc_ids": [0]}</s>', "Они тают.</s>"]


def test_the_two_steps_are_those_of_training_and_sampled_as_the_card_says():
    first = asked(DOCUMENTS, "Что с ледниками?")
    assert asked_again(first, '{"relevant_doc_ids": [0]}') == dialogue(DOCUMENTS, "Что с ледниками?", [0], "")[:-1]
    assert [(step.temperature, step.max_tokens) for step in (IDS, ANSWER)] == [(0.0, 2048), (0.3, 2048)]


def test_a_model_without_a_grounded_mode_finds_the_documents_in_the_users_turn():
    (turn,) = asked_at_once(DOCUMENTS, "Что с ледниками?")
    assert turn.role == "user"
    assert '[{"doc_id": 0, "title": "Ледники"' in turn.content and turn.content.endswith("Что с ледниками?")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"relevant_doc_ids": [0, 2]}', Relevant((0, 2))),
        ('{"relevant_doc_ids": []}', Relevant(())),
        ("{'relevant_doc_ids': [2, 0]}", Relevant((2, 0))),
        ('```json\n{"relevant_doc_ids": [1]}\n```', Relevant((1,))),
        ('Here you are:\n{\n "relevant_doc_ids" : [\n  1,\n  2,\n ]\n}\nDone [3].', Relevant((1, 2))),
        ('{"relevant_doc_ids": ["0", \'1\']}', Relevant((0, 1))),
        ('{"relevant_doc_ids": [1, 1, 0, 1]}', Relevant((1, 0), repeated=2)),
        ('{"relevant_doc_ids": [0, 3, -1, "title", 1.5]}', Relevant((0,), unknown=("3", "-1", "title", "1.5"))),
        ('{"relevant_doc_ids": [' + "9" * 6000 + "]}", Relevant((), unknown=("9" * 6000,))),
        ('{"relevant_doc_ids": [0]} {"relevant_doc_ids": [1]}', Relevant((0,))),
        ('{"answer": "x", "relevant_doc_ids": [1]}', Relevant((1,))),
    ],
)
def test_ids_are_read_whatever_stands_around_them(text, found):
    assert read_relevant(text, 3) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[0, 1]",
        '{"ids": [0]}',
        '{"relevant_doc_ids": null}',
        '{"relevant_doc_ids": 0}',
        '{"relevant_doc_ids": [0, 1',
        "relevant_doc_ids are 0 and 1",
        '{"irrelevant_doc_ids": [0]}',
    ],
)
def test_what_holds_no_list_of_ids_cannot_be_read(text):
    assert read_relevant(text, 3) is None


def test_the_documents_of_a_dialogue_are_read_back():
    assert read_documents(dialogue(DOCUMENTS, "q", [], "a")[1].content) == DOCUMENTS
    for text in ("", "{}", "[1]", '[{"doc_id": 1, "content": "x"}]', '[{"doc_id": 0, "content": null}]'):
        assert read_documents(text) is None
