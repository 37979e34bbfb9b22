"""The format of grounded dialogues, byte for byte as the card has it."""

import json

from togi.core.records import Message
from togi.data.grounded import SYSTEM, Shown, dialogue
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
