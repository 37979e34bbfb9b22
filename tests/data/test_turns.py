import json
from pathlib import Path
from typing import Any

import pytest

from togi.core.errors import InputError
from togi.core.records import Chat, Message, Pair, Prompt
from togi.data.importing import DataSpec, load_records

ASK, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
USER, BOT = Message("user", "Hi"), Message("assistant", "Hello")
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo", "at": 3}}}
TOOLS = [{"type": "function", "function": {"name": "weather"}}]


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def load(tmp_path: Path, kind: str, *rows: Any, **spec: Any) -> list[Any]:
    return load_records(DataSpec(path=jsonl(tmp_path / "rows.jsonl", *rows), **spec), kind).records


def chat_of(tmp_path: Path, *turns: Any, **columns: Any) -> tuple[Message, ...]:
    (chat,) = load(tmp_path, "chats", {"messages": list(turns), **columns})
    assert isinstance(chat, Chat)
    return chat.messages


def refused(tmp_path: Path, kind: str, row: Any, message: str, reason: str, **spec: Any) -> None:
    with pytest.raises(InputError, match=rf"(?s)rows.jsonl:2: .*{message}"):
        load(
            tmp_path,
            kind,
            {"messages": [ASK, REPLY], "text": "x", "chosen": [ASK, REPLY], "rejected": [ASK, REPLY]},
            row,
        )
    path = jsonl(
        tmp_path / "rows.jsonl",
        row,
        {"messages": [ASK, REPLY], "text": "x", "prompt": "Hi", "chosen": "a", "rejected": "b"},
    )
    drops = load_records(DataSpec(path=path, on_bad_row="drop", **spec), kind).drops
    assert [(drop.id, drop.reason) for drop in drops] == [(f"{path}:1", reason)]


def test_turns_as_python_prints_them_are_no_text(tmp_path: Path) -> None:
    printed = str([{"role": "assistant", "content": "A"}])
    row = {"prompt": "Hi", "chosen": printed, "rejected": "b"}
    refused(tmp_path, "pairs", row, "'chosen': found turns as Python prints them, wanted JSON", "wrong_type")


def test_a_turn_of_null_and_what_pandas_writes_for_it(tmp_path: Path) -> None:
    row = {"messages": [ASK, {"role": "assistant", "content": None}]}
    message = r"'messages\[1\].content' is null, and the turn makes no tool call"
    refused(tmp_path, "chats", row, message, "empty_text")
    refused(tmp_path, "chats", {"prompt": float("nan"), "completion": "A"}, "column 'prompt' is empty", "empty_text")
    (pair,) = load(tmp_path, "pairs", {"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": float("nan")})
    assert pair.margin is None


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "trained"),
    [
        ({"weight": 0}, False),
        ({"weight": 0.0}, False),
        ({"weight": 1}, True),
        ({"weight": None}, True),
        ({"train": False}, False),
        ({"trainable": "false"}, False),
        ({"loss": False}, False),
        ({"loss": 1}, True),
        ({"loss_mask": 0}, False),
        ({"masked": True}, False),
        ({"train": False, "weight": 0}, False),
    ],
)
def test_flags_by_any_name_keep_a_turn_out_of_the_loss(tmp_path: Path, flag: dict[str, Any], trained: bool) -> None:
    messages = chat_of(tmp_path, ASK, REPLY | flag, ASK, REPLY)
    assert [m.train for m in messages] == [True, trained, True, True]
    assert all(not m.extra for m in messages)


@pytest.mark.parametrize(
    ("flag", "message", "reason"),
    [
        ({"weight": 0.5}, r"'messages\[1\].weight': found 0.5, wanted true or false", "wrong_type"),
        ({"loss": "some"}, r"'messages\[1\].loss': found 'some'", "wrong_type"),
        ({"train": True, "weight": 0}, "train and weight disagree", "unclear_flag"),
        ({"mask": 1}, "may mean either: write train", "unclear_flag"),
    ],
)
def test_flags_that_are_not_clear(tmp_path: Path, flag: dict[str, Any], message: str, reason: str) -> None:
    refused(tmp_path, "chats", {"messages": [ASK, REPLY | flag]}, message, reason)


def test_a_column_mask_names_the_role_without_loss(tmp_path: Path) -> None:
    turns = [{"from": "User", "value": "Hi"}, {"from": "Assistant", "value": "Hello"}]
    (chat,) = load(tmp_path, "chats", {"system": "", "mask": "User", "conversations": turns})
    assert [(m.role, m.train) for m in chat.messages] == [("user", False), ("assistant", True)]
    (chat,) = load(tmp_path, "chats", {"mask": "Assistant", "conversations": turns})
    assert [m.train for m in chat.messages] == [True, False]
    refused(tmp_path, "chats", {"mask": [0, 1], "messages": [ASK, REPLY]}, "column 'mask': found a list", "wrong_type")


# --- what a turn contains besides its text ----------------------------------------------------------------------------


def test_keys_that_templates_read_are_kept(tmp_path: Path) -> None:
    kept = {"reasoning_content": "three and three", "thinking": "hm", "name": "Ann", "tool_call_id": "c1"}
    assert dict(chat_of(tmp_path, ASK, REPLY | kept)[1].extra) == kept
    assert chat_of(tmp_path, ASK, REPLY | {"thinking": None, "tool_calls": []}) == (USER, BOT)


def test_a_call_of_a_tool_needs_no_text(tmp_path: Path) -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    messages = chat_of(tmp_path, ASK, called, {"role": "tool", "content": {"rain": True}}, REPLY, tools=TOOLS)
    assert messages[0].extra == {"tools": TOOLS} and messages[1].extra == {"tool_calls": [CALL]}
    assert [m.content for m in messages] == ["Hi", "", '{"rain": true}', "Hello"] and not messages[1].silent


@pytest.mark.parametrize("tools", [json.dumps(TOOLS), TOOLS])
def test_arguments_and_tools_may_be_json_text(tmp_path: Path, tools: Any) -> None:
    text = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo", "at": 3}'}}
    messages = chat_of(tmp_path, ASK, {"role": "assistant", "tool_calls": [text]}, REPLY, tools=tools, system="S")
    assert messages[0] == Message("system", "S", extra={"tools": TOOLS})
    assert json.dumps(messages[2].extra["tool_calls"]) == json.dumps([CALL])


def test_roles_of_sharegpt_tools(tmp_path: Path) -> None:
    turns = [
        {"from": "HUMAN", "value": "Weather?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo", "at": 3}}'},
        {"from": "observation", "value": "rain"},
        {"from": "GPT", "value": "It rains."},
    ]
    (chat,) = load(tmp_path, "chats", {"conversations": turns})
    assert [m.role for m in chat.messages] == ["user", "assistant", "tool", "assistant"]
    assert chat.messages[1].extra == {"tool_calls": [CALL]}
    turns[1]["value"] = "weather(Oslo)"
    refused(tmp_path, "chats", {"conversations": turns}, "found no tool call", "wrong_type")


@pytest.mark.parametrize(
    ("turn", "message", "reason"),
    [
        (REPLY | {"tool_calls": "weather"}, r"'messages\[1\].tool_calls': found text, wanted a list", "wrong_type"),
        (REPLY | {"tool_calls": "[{"}, r"'messages\[1\].tool_calls': not JSON", "invalid_json"),
        ({"role": "assistant", "content": "", "tool_calls": []}, "is empty", "empty_text"),
        (
            {"role": "assistant", "content": [{"type": "image_url", "image_url": "x"}]},
            "part of type 'image",
            "not_text",
        ),
        ({"role": "assistant", "content": [{"type": "text", "text": 3}]}, r"content\[0\]'", "not_text"),
        ({"role": "assistant"}, r"'messages\[1\]' has no 'content'; it has role", "missing_column"),
        ({"content": "x"}, r"'messages\[1\]' has no 'role'", "missing_column"),
    ],
)
def test_turns_that_cannot_be_read(tmp_path: Path, turn: Any, message: str, reason: str) -> None:
    refused(tmp_path, "chats", {"messages": [ASK, turn]}, message, reason)


def test_content_in_parts_and_roles_in_capitals(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Hel", "image_url": None}, {"type": "text", "text": "lo"}]
    assert chat_of(tmp_path, {"role": "USER", "content": ["Hi"]}, {"role": "Assistant", "content": parts}) == (
        USER,
        Message("assistant", "Hel\nlo"),
    )
    assert chat_of(tmp_path, {"from": None, "value": None, **ASK}, REPLY) == (USER, BOT)
    assert chat_of(tmp_path, {"role": "Oracle", "content": ""}, ASK, REPLY)[0] == Message("Oracle", "")


def test_equal_rows_keep_one_form_and_what_changes_meaning_changes_the_name(tmp_path: Path) -> None:
    plain = {"messages": [ASK, REPLY]}
    thought = {"messages": [ASK, REPLY | {"thinking": "hm"}]}
    first, second, third = load(tmp_path, "chats", plain, {"messages": [ASK, REPLY | {"thinking": None}]}, thought)
    (alone,) = load(tmp_path, "chats", plain)
    (other,) = load(tmp_path, "chats", thought)
    assert first.id == alone.id and first.messages == second.messages
    assert third.id == other.id != alone.id


def test_nobody_but_the_assistant(tmp_path: Path) -> None:
    refused(tmp_path, "chats", {"messages": [REPLY]}, "there is no question", "no_prompt")
    assert chat_of(tmp_path, REPLY, ASK, REPLY) == (BOT, USER, BOT)


# --- text that looks like JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '[{"town": "Oslo"}, {"town": "Bergen"}]',
        "[{x: x + 1} for x in range(3)]",
        "[]",
        "[1]",
        "[" * 5000,
        '[{"role": "x"}]',
    ],
)
def test_text_stays_text(tmp_path: Path, text: str) -> None:
    (chat,) = load(tmp_path, "chats", {"instruction": "Hi", "input": "", "output": text})
    assert chat.messages[1] == Message("assistant", text)
    (prompt,) = load(tmp_path, "prompts", {"prompt": text})
    assert prompt.messages == (Message("user", text),)


def test_text_that_is_a_list_of_turns(tmp_path: Path) -> None:
    sharegpt = json.dumps([{"from": "human", "value": "Hi"}])
    (chat,) = load(tmp_path, "chats", {"prompt": sharegpt, "completion": json.dumps([REPLY])})
    assert chat.messages == (USER, BOT)


# --- several shapes in one row ----------------------------------------------------------------------------------------

BINARIZED = {"prompt": "Hi", "prompt_id": "1", "chosen": [ASK, REPLY], "rejected": [ASK, REPLY | {"content": "Go"}]}


def test_the_kind_decides_which_columns_are_read(tmp_path: Path) -> None:
    row = {**BINARIZED, "messages": [ASK, REPLY], "text": "A page."}
    (chat,) = load(tmp_path, "chats", row)
    (pair,) = load(tmp_path, "pairs", row)
    (prompt,) = load(tmp_path, "prompts", row)
    (document,) = load(tmp_path, "documents", row)
    assert chat.messages == (USER, BOT) and pair.rejected == (Message("assistant", "Go"),)
    assert (prompt.messages, prompt.answer, document.text) == ((USER,), "Hello", "A page.")
    alpaca = {"instruction": "Who?", "input": "", "output": "Ann.", "text": "A page about Ann."}
    assert load(tmp_path, "documents", alpaca)[0].text == "A page about Ann."
    assert load(tmp_path, "chats", alpaca)[0].messages[1].content == "Ann."


def test_columns_left_aside_are_told(tmp_path: Path) -> None:
    row = {"messages": [ASK, REPLY], "source": "web", "n": 0, "empty": "", "none": None}
    imported = load_records(DataSpec(path=jsonl(tmp_path / "rows.jsonl", row)), "chats")
    assert imported.aside == ["source", "n"]
    assert imported.notes == ["columns not read: source, n (kept in extra)"]


@pytest.mark.parametrize(
    ("kind", "row", "columns", "text"),
    [
        ("prompts", {"prompt": "A", "question": "B"}, {"question": "question"}, "B"),
        ("chats", {"prompt": "A", "output": "C", "response": "D"}, {"output": "output"}, "C"),
        ("chats", {"messages": [ASK, REPLY], "prompt": "A", "completion": "C"}, {"completion": "completion"}, "C"),
        ("chats", {"messages": [ASK, REPLY], "prompt": "A", "completion": "C"}, {"messages": "messages"}, "Hello"),
        ("chats", {"messages": [ASK, REPLY], "conversations": [ASK, ASK, REPLY]}, {"messages": "messages"}, "Hello"),
        ("prompts", {"messages": [ASK], "prompt": "A"}, {"prompt": "prompt"}, "A"),
        ("prompts", {"messages": [ASK, REPLY], "answer": "42"}, {"answer": "answer"}, "42"),
    ],
)
def test_two_columns_that_disagree(
    tmp_path: Path, kind: str, row: dict[str, Any], columns: dict[str, str], text: str
) -> None:
    with pytest.raises(InputError, match=r"rows.jsonl:1: columns '\w+' and '\w+' could both be .* `columns: "):
        load(tmp_path, kind, row)
    (record,) = load(tmp_path, kind, row, columns=columns)
    last = (record.answer or record.text) if kind == "prompts" else record.messages[-1].content
    assert last == text


def test_two_columns_that_agree(tmp_path: Path) -> None:
    row = {
        "messages": [ASK, REPLY],
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
    }
    (chat,) = load(tmp_path, "chats", {**row, "prompt": "Hi\n", "completion": "Hello", "question": "Hi"})
    assert chat.messages == (USER, BOT)
    (chat,) = load(tmp_path, "chats", {"messages": [ASK], "prompt": "Hi", "response": "Hello"})
    assert chat.messages == (USER, BOT)


# --- references -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "text"),
    [(42, "42"), ([1, "a"], '[1, "a"]'), ({"x": 1}, '{"x": 1}'), ("4", "4"), (False, "false"), ("", None)],
)
def test_a_reference_answer_may_be_of_any_type(tmp_path: Path, answer: Any, text: str | None) -> None:
    for row in ({"prompt": "Hi", "answer": answer}, {"messages": [ASK], "answer": answer}):
        (prompt,) = load(tmp_path, "prompts", row)
        assert isinstance(prompt, Prompt) and (prompt.messages, prompt.answer) == ((USER,), text)


def test_a_prompt_that_ends_with_an_answer_has_it_as_reference(tmp_path: Path) -> None:
    for value in ([ASK, REPLY], "\n\nHuman: Hi\n\nAssistant: Hello"):
        (prompt,) = load(tmp_path, "prompts", {"prompt": value})
        assert (prompt.messages, prompt.answer) == ((USER,), "Hello")


# --- pairs ------------------------------------------------------------------------------------------------------------

SYSTEM = {"role": "system", "content": "Be brief."}
HISTORY = [{"role": "user", "content": "A number?"}, {"role": "assistant", "content": "Five."}]
YES, NO = {"role": "assistant", "content": "Yes"}, {"role": "assistant", "content": "No"}
TRANSCRIPT = "\n\nHuman: A number?\n\nAssistant: Five.\n\nHuman: Hi\n\nAssistant:"


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Hi", "chosen": [SYSTEM, ASK, YES], "rejected": [SYSTEM, ASK, NO]}, "su"),
        ({"prompt": "Hi", "chosen": [*HISTORY, ASK, YES], "rejected": [*HISTORY, ASK, NO]}, "uau"),
        ({"prompt": "A number?", "chosen": [*HISTORY, ASK, YES], "rejected": [*HISTORY, ASK, NO]}, "uau"),
        ({"prompt": "Hi\n", "chosen": [ASK, YES], "rejected": [ASK, NO]}, "u"),
        ({"prompt": [SYSTEM, ASK], "chosen": [ASK, YES], "rejected": [ASK, NO]}, "su"),
        ({"prompt": [*HISTORY, ASK], "chosen": [ASK, YES], "rejected": [ASK, NO]}, "uau"),
        ({"prompt": [*HISTORY, ASK], "chosen": [*HISTORY, ASK, YES], "rejected": "No"}, "uau"),
        ({"prompt": "Hi", "chosen": [SYSTEM, ASK, YES], "rejected": "No"}, "su"),
        ({"prompt": "Hi", "system": "Be brief.", "chosen": [SYSTEM, ASK, YES], "rejected": [SYSTEM, ASK, NO]}, "su"),
        ({"system": "Be brief.", "chosen": [ASK, YES], "rejected": [ASK, NO]}, "su"),
        ({"prompt": TRANSCRIPT, "chosen": " Yes", "rejected": " No"}, "uau"),
        ({"prompt": TRANSCRIPT, "chosen": f"{TRANSCRIPT} Yes", "rejected": f"{TRANSCRIPT} No"}, "uau"),
        ({"prompt": "Hi", "chosen": f"{TRANSCRIPT} Yes", "rejected": f"{TRANSCRIPT} No"}, "uau"),
        ({"prompt": TRANSCRIPT.strip(), "chosen": [YES], "rejected": [NO]}, "uau"),
    ],
)
def test_a_prompt_that_the_sides_repeat_is_written_once(tmp_path: Path, row: dict[str, Any], prompt: str) -> None:
    (pair,) = load(tmp_path, "pairs", row)
    assert isinstance(pair, Pair)
    assert "".join(m.role[0] for m in pair.prompt) == prompt
    assert [[m.content.strip() for m in side] for side in (pair.chosen, pair.rejected)] == [["Yes"], ["No"]]
    assert pair.prompt[-1] == USER


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "Ho", "chosen": [ASK, YES], "rejected": [ASK, NO]},
            "'chosen' holds a conversation that does not contain",
        ),
        ({"prompt": "Hi", "chosen": [*HISTORY, ASK, YES], "rejected": [ASK, NO]}, "answer different conversations"),
        ({"prompt": "Hi", "chosen": [SYSTEM, ASK, YES], "rejected": [ASK, NO]}, "answer different conversations"),
        ({"chosen": [*HISTORY, ASK, YES], "rejected": [*HISTORY, *HISTORY[:1], NO]}, "different user turns after 2"),
        (
            {"prompt": [SYSTEM | {"content": "x"}, ASK], "chosen": [SYSTEM, ASK, YES], "rejected": [SYSTEM, ASK, NO]},
            "different system turns",
        ),
    ],
)
def test_sides_that_disagree_about_the_prompt(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    refused(tmp_path, "pairs", row, message, "prompts_disagree")


def test_a_completion_that_repeats_the_prompt(tmp_path: Path) -> None:
    (chat,) = load(tmp_path, "chats", {"prompt": "Hi", "completion": [SYSTEM, ASK, REPLY]})
    assert chat.messages == (Message("system", "Be brief."), USER, BOT)


# --- labelled sets ----------------------------------------------------------------------------------------------------


def labelled(prompt: str, answer: str, label: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer, "label": label}


def test_labelled_rows_become_pairs(tmp_path: Path) -> None:
    rows = [labelled("A", "a1", True), labelled("B", "b1", "false"), labelled("A", "a2", 0), labelled("C", "c1", 1)]
    rows += [labelled("B", "b2", True), labelled("B", "b3", True), {"messages": [ASK, REPLY], "kto_tag": True}]
    imported = load_records(DataSpec(path=jsonl(tmp_path / "rows.jsonl", *rows)), "pairs")
    said = [(p.prompt[0].content, p.chosen[0].content, p.rejected[0].content) for p in imported.records]  # type: ignore[attr-defined]
    assert said == [("A", "a1", "a2"), ("B", "b2", "b1"), ("B", "b3", "b1")]
    assert [(d.id.rpartition(":")[2], d.reason) for d in imported.drops] == [("4", "no_partner"), ("7", "no_partner")]
    assert imported.notes == [
        "7 labelled rows made 3 pairs; for 2 rows no answer to the same prompt has the other label"
    ]


def test_labelled_rows_that_all_have_a_partner_say_nothing_of_others(tmp_path: Path) -> None:
    rows = [labelled("A", "a1", True), labelled("A", "a2", False)]
    imported = load_records(DataSpec(path=jsonl(tmp_path / "rows.jsonl", *rows)), "pairs")
    assert imported.notes == ["2 labelled rows made 1 pairs"]


def test_a_bad_answer_is_never_one_to_learn(tmp_path: Path) -> None:
    refused(tmp_path, "chats", labelled("Be rude.", "Go away.", False), "its label is false", "labelled_bad")
    (chat,) = load(tmp_path, "chats", labelled("Hi", "Hello", True))
    assert chat.messages == (USER, BOT) and chat.extra == {}
    (prompt,) = load(tmp_path, "prompts", labelled("Hi", "Hello", False))
    assert prompt.answer is None and prompt.extra == {"completion": "Hello"}
    (chat,) = load(tmp_path, "chats", labelled("Hi", "Hello", "greeting"))
    assert chat.extra == {"label": "greeting"}
    (chat,) = load(tmp_path, "chats", labelled("Hi", "Hello", 0), columns={"topic": "label"})
    assert chat.extra == {"topic": 0}
