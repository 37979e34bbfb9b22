import gzip
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from togi.core.codec import read_records, write_records
from togi.core.errors import InputError, RecipeError
from togi.core.records import Chat, Document, Drop, Message, Pair, Prompt
from togi.data import hub, importing
from togi.data.importing import DataSpec, load_records

USER, BOT = Message("user", "Hi"), Message("assistant", "Hello")
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: More?\n\nAssistant:"


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def load(tmp_path: Path, kind: str, *rows: Any, **spec: Any) -> list[Any]:
    return load_records(DataSpec(path=jsonl(tmp_path / "rows.jsonl", *rows), **spec), kind).records


@pytest.mark.parametrize(
    "row",
    [
        {"messages": MESSAGES},
        {"conversations": SHAREGPT},
        {"conversation": MESSAGES},
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": [MESSAGES[0]], "completion": [MESSAGES[1]]},
        {"instruction": "Hi", "input": "", "output": "Hello"},
        {"question": "Hi", "answer": "Hello"},
        {"messages": json.dumps(MESSAGES)},
    ],
)
def test_chats(tmp_path: Path, row: dict[str, Any]) -> None:
    (chat,) = load(tmp_path, "chats", row)
    assert isinstance(chat, Chat) and chat.messages == (USER, BOT) and chat.extra == {}
    (prompt,) = load(tmp_path, "prompts", row)
    assert isinstance(prompt, Prompt) and (prompt.messages, prompt.answer, prompt.text) == ((USER,), "Hello", "Hi")


@pytest.mark.parametrize(
    "row", [{"question": "Hi"}, {"prompt": "Hi"}, {"messages": MESSAGES[:1]}, {"instruction": "Hi"}]
)
def test_prompts_alone(tmp_path: Path, row: dict[str, Any]) -> None:
    (prompt,) = load(tmp_path, "prompts", row)
    assert (prompt.messages, prompt.answer) == ((USER,), None)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
        {"chosen": MESSAGES, "rejected": [MESSAGES[0], {"role": "assistant", "content": "No"}]},
        {"prompt": "Hi", "chosen": MESSAGES, "rejected": [MESSAGES[0], {"role": "assistant", "content": "No"}]},
        {"prompt": [MESSAGES[0]], "chosen": [MESSAGES[1]], "rejected": "No"},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
    ],
)
def test_pairs(tmp_path: Path, row: dict[str, Any]) -> None:
    (pair,) = load(tmp_path, "pairs", row)
    assert isinstance(pair, Pair)
    assert (pair.prompt, pair.chosen, pair.rejected) == ((USER,), (BOT,), (Message("assistant", "No"),))


def test_pairs_whose_sides_are_several_turns(tmp_path: Path) -> None:
    (pair,) = load(
        tmp_path, "pairs", {"chosen": f"{HH} Yes", "rejected": f"{HH} No", "margin": 2, "system": "Be kind."}
    )
    assert [m.role for m in pair.prompt] == ["system", "user", "assistant", "user"]
    assert (pair.chosen[0].content, pair.rejected[0].content, pair.margin) == ("Yes", "No", 2.0)


def test_alpaca_input_system_and_train_flags(tmp_path: Path) -> None:
    row = {"system": "Be kind.", "instruction": "Add", "input": "1 2", "output": "3", "lang": "en"}
    (chat,) = load(tmp_path, "chats", row)
    assert [m.content for m in chat.messages] == ["Be kind.", "Add\n\n1 2", "3"]
    assert chat.extra == {"lang": "en"}
    (chat,) = load(tmp_path, "chats", {"messages": [MESSAGES[0], MESSAGES[1] | {"train": False}, MESSAGES[1]]})
    assert [m.train for m in chat.messages] == [True, False, True]


@pytest.mark.parametrize(
    ("said", "meant"), [("false", False), ("False", False), (0, False), ("true", True), (1, True), (None, True)]
)
def test_a_train_flag_may_be_text(tmp_path: Path, said: Any, meant: bool) -> None:
    (chat,) = load(tmp_path, "chats", {"messages": [MESSAGES[0], MESSAGES[1] | {"train": said}]})
    assert chat.messages[1].train is meant


def test_margins_are_read_from_csv(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected,margin\nHi,Yes,No,1.5\nHo,Yes,No,\nHe,Yes,No,-2\n")
    pairs = load_records(DataSpec(path=path), "pairs").records
    assert [(pair.margin, pair.extra) for pair in pairs] == [(1.5, {}), (None, {"margin": ""}), (-2.0, {})]


@pytest.mark.parametrize("margin", ["much", True, [1], "nan", "inf"])
def test_a_margin_that_is_no_number_is_a_bad_row(tmp_path: Path, margin: Any) -> None:
    with pytest.raises(InputError, match=r"rows.jsonl:1: column 'margin': found .*, wanted a number"):
        load(tmp_path, "pairs", {"prompt": "Hi", "chosen": "Yes", "rejected": "No", "margin": margin})


@pytest.mark.parametrize("system", [{}, {"system": "Be kind."}])
def test_a_transcript_without_a_word_is_a_bad_row(tmp_path: Path, system: dict[str, str]) -> None:
    row = {"prompt": "\n\nHuman: ", "chosen": "Yes", "rejected": "No", **system}
    with pytest.raises(InputError, match=r"rows.jsonl:1: column 'prompt' is a transcript without any text"):
        load(tmp_path, "pairs", row)


def test_documents_and_columns(tmp_path: Path) -> None:
    (document,) = load(
        tmp_path, "documents", {"body": "лес", "text": 3, "n": 1}, columns={"text": "body"}, licence="MIT"
    )
    assert isinstance(document, Document) and (document.text, document.extra) == ("лес", {"n": 1})
    assert document.source is not None and document.source.licence == "MIT" and document.source.dataset == "rows.jsonl"


def test_samples_keep_their_model_and_share_the_prompt_that_they_answer(tmp_path: Path) -> None:
    asked = {"prompt": "Why?", "reference": "It scatters."}
    rows = [
        {**asked, "completion": "So.", "model": "small", "scores": {"human": 3, "judge": 4.5}, "note": "x"},
        {**asked, "response": "Because.", "model": "large"},
        {"messages": [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": "Yes."}]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small, large, bare = load_records(DataSpec(path=tmp_path / "rows.jsonl"), "samples").records
    assert (small.text, small.model, small.scores, small.extra) == (
        "So.",
        "small",
        {"human": 3.0, "judge": 4.5},
        {"note": "x"},
    )
    assert small.prompt == large.prompt and small.prompt.answer == "It scatters." and small.id != large.id
    assert (bare.text, bare.model, bare.scores, bare.prompt.answer) == ("Yes.", None, {}, None)
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": "Hm?"}))
    (prompt,) = load_records(DataSpec(path=tmp_path / "asked.jsonl"), "prompts").records
    assert bare.prompt.id == prompt.id  # the same as for a file of prompts


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Why?", "completion": "So.", "scores": [1]}, "'scores': found a list"),
        ({"prompt": "Why?", "completion": "So.", "model": 3}, "'model': found a number"),
        ({"prompt": "Why?"}, "do not make samples"),
    ],
)
def test_bad_samples(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=message):
        load_records(DataSpec(path=tmp_path / "rows.jsonl"), "samples")


def test_ids_by_content_with_ordinals_for_equal_rows(tmp_path: Path) -> None:
    records = load(
        tmp_path, "prompts", {"question": "A"}, {"prompt": "A"}, {"question": "B"}, {"question": "A", "x": 1}
    )
    again = load(tmp_path, "prompts", {"question": "B"}, {"question": "A"})
    ids = [r.id for r in records]
    assert len(dict.fromkeys(ids)) == 4
    assert [again[0].id, again[1].id] == [ids[2], ids[0]]


def test_csv_and_parquet_and_gzip_and_json(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('\ufeffquestion,when\n"Hi, ""you""\nthere",1\nB,2\n', encoding="utf-8")
    records = load_records(DataSpec(path=tmp_path / "a.csv"), "prompts").records
    assert [r.text for r in records] == ['Hi, "you"\nthere', "B"] and records[0].extra == {"when": "1"}

    table = pa.table({"messages": [MESSAGES, MESSAGES], "day": [date(2024, 1, 2)] * 2, "raw": [b"\x00", None]})
    pq.write_table(table, tmp_path / "b.parquet")
    records = load_records(DataSpec(path=tmp_path / "b.parquet"), "chats").records
    assert records[0].messages == (USER, BOT) and records[0].extra == {"day": "2024-01-02", "raw": "AA=="}
    write_records(tmp_path / "out.parquet", "chats", records)
    assert read_records(tmp_path / "out.parquet")[1] == records

    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as handle:
        handle.write('{"question": "Z"}\n\n')
    assert load_records(DataSpec(path=tmp_path / "c.jsonl.gz"), "prompts").records[0].text == "Z"
    (tmp_path / "d.json").write_text('[{"question": "J"}]')
    assert load_records(DataSpec(path=tmp_path / "d.json"), "prompts").records[0].text == "J"


def test_folders_and_splits(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("# no data")
    for split in ("train", "test"):
        for part in range(2):
            table = pa.table({"question": [f"{split} {part}"]})
            pq.write_table(table, folder / "data" / f"{split}-0000{part}-of-00002.parquet")
    texts = [r.text for r in load_records(DataSpec(path=folder), "prompts").records]
    assert texts == ["train 0", "train 1"]
    texts = [r.text for r in load_records(DataSpec(path=folder, split="test"), "prompts").records]
    assert texts == ["test 0", "test 1"]
    with pytest.raises(InputError, match="no file of the split 'validation' among test, train; set `split`"):
        load_records(DataSpec(path=folder, split="validation"), "prompts")
    (folder / "other").mkdir()
    jsonl(folder / "other" / "train.jsonl", {"question": "x"})
    with pytest.raises(InputError, match=r"several folders \(data, other\)"):
        load_records(DataSpec(path=folder), "prompts")


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot(name: str, revision: str, *, what: str, allow: Sequence[str]) -> tuple[Path, str]:
        asked.append((name, what, revision, "ja/**/*.parquet" in allow))
        (tmp_path / "ja").mkdir(parents=True)
        jsonl(tmp_path / "ja" / "train.jsonl", {"question": "Hi"})
        return tmp_path, "0123abc"

    monkeypatch.setattr(hub, "snapshot", snapshot)
    (prompt,) = load_records(DataSpec(hub="o/n/ja", revision="v1", licence="CC0"), "prompts").records
    assert asked == [("o/n", "dataset", "v1", True)]
    source = prompt.source
    assert source is not None and (source.dataset, source.revision, source.licence) == ("o/n/ja", "0123abc", "CC0")
    with pytest.raises(RecipeError, match="use owner/name"):
        load_records(DataSpec(hub="gone"), "prompts")


GOOD = {"question": "Hi"}


@pytest.mark.parametrize(
    ("bad", "reason", "message"),
    [
        (b'{"question": "\xff"}', "invalid_utf8", "rows.jsonl:2: byte 15 is not UTF-8"),
        (b'{"question": "a", }', "invalid_json", r"rows.jsonl:2: not JSON at character \d+"),
        (b"[1]", "not_an_object", "rows.jsonl:2: found a list, wanted an object"),
        (b'{"question": 3}', "wrong_type", "rows.jsonl:2: column 'question': found a number, wanted text or a list"),
        (b'{"question": " "}', "empty_text", "rows.jsonl:2: column 'question' is empty"),
        (b'{"question": "\\ud800"}', "invalid_utf8", "half a surrogate pair"),
        (b'{"messages": {}}', "wrong_type", "column 'messages': found an object, wanted a list of turns"),
        (b'{"messages": "x"}', "wrong_type", "column 'messages': found text, wanted a list of turns"),
        (b'{"messages": []}', "empty_conversation", "column 'messages': the list of turns is empty"),
        (
            b'{"messages": [{"role": "user"}]}',
            "missing_column",
            r"column 'messages\[0\]' has no 'content'; it has role",
        ),
        (
            b'{"messages": [{"role": "user", "content": 1}]}',
            "wrong_type",
            r"column 'messages\[0\].content': found a number",
        ),
        (b'{"messages": [{"role": 1, "content": "x"}]}', "wrong_type", r"column 'messages\[0\].role': found a number"),
        (
            b'{"messages": [{"role": "user", "content": "x", "train": "no"}]}',
            "wrong_type",
            r"column 'messages\[0\].train': found 'no', wanted true or false",
        ),
        (b'{"messages": [3]}', "wrong_type", r"column 'messages\[0\]': found a number"),
        (b'{"chosen": "a", "rejected": "b"}', "no_prompt", "no column prompt: add one"),
        (
            b'{"prompt": "x", "chosen": [{"role": "user", "content": "y"}], "rejected": "b"}',
            "no_answer",
            "'chosen' ends with",
        ),
        (b'{"text": "a"}', "wrong_shape", "do not make prompts.*Such rows would fit documents"),
        (b'{"frage": "a"}', "wrong_shape", "has the columns frage.*`columns: {our name: the file's name}`"),
    ],
)
def test_bad_rows(tmp_path: Path, bad: bytes, reason: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + bad + b"\n")
    with pytest.raises(InputError, match=f"(?s){message}") as caught:
        load_records(DataSpec(path=path), "prompts")
    assert "on_bad_row: drop" in str(caught.value)
    imported = load_records(DataSpec(path=path, on_bad_row="drop"), "prompts")
    assert len(imported.records) == 1
    assert imported.drops == [Drop(id=f"{path}:2", stage="import", reason=reason)]


def test_bad_rows_of_csv_and_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('question,n\n"a\nb",1\nc\n')
    with pytest.raises(InputError, match=r"rows\.csv:4: found 1 cells under 2 column names"):
        load_records(DataSpec(path=path), "prompts")
    path.write_bytes(b"question\nok\nna\xefve\n")
    with pytest.raises(InputError, match=r"rows\.csv:3: byte 3 of the line is not UTF-8"):
        load_records(DataSpec(path=path, on_bad_row="drop"), "prompts")
    pq.write_table(pa.table({"question": ["a", None]}), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"rows\.parquet, row 2: column 'question' is empty"):
        load_records(DataSpec(path=tmp_path / "rows.parquet"), "prompts")


@pytest.mark.parametrize(
    ("roles", "kind", "message"),
    [
        (
            ["user", "asistant"],
            "chats",
            "the last turn of 'messages' has the role 'asistant' (did you mean 'assistant'?)",
        ),
        (
            ["user", "judge"],
            "chats",
            "the last turn of 'messages' has the role 'judge'; it needs messages that end with",
        ),
        (["user", "assistant", "user"], "chats", "the last turn of 'messages' has the role 'user'; it needs"),
        (["User:", "Assistant:"], "samples", "has the role 'Assistant:' (did you mean 'assistant'?)"),
        (
            ["usr", "assistant"],
            "prompts",
            "no turn of 'messages' has the role 'user', one has 'usr' (did you mean 'user'?)",
        ),
    ],
)
def test_a_role_that_keeps_a_row_from_fitting_is_named(
    tmp_path: Path, roles: list[str], kind: str, message: str
) -> None:
    rows = [{"messages": [{"role": role, "content": "Hi"} for role in roles]}]
    with pytest.raises(InputError) as error:
        load_records(DataSpec(path=jsonl(tmp_path / "rows.jsonl", *rows)), kind)
    assert message in str(error.value)


def test_roles_that_were_probably_misspelt_are_noted(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": role, "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}
        for role in ("usr", "user", "usr", "curate")
    ]
    found = load_records(DataSpec(path=jsonl(tmp_path / "rows.jsonl", *rows)), "chats")
    assert found.notes == ["turns with the unknown role 'usr': 2 (did you mean 'user'?)"]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_csv_of_excel_is_read_with_the_separator_of_its_header(
    tmp_path: Path, separator: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.csv"
    lines = [("question", "answer"), ("Why, then?", f'"so{separator} there"'), ("How?", "0,5")]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(separator.join(line) for line in lines).encode())
    found = load_records(DataSpec(path=path), "chats").records
    assert [record.messages[0].content for record in found if isinstance(record, Chat)] == ["Why, then?", "How?"]
    assert [record.messages[1].content for record in found if isinstance(record, Chat)] == [
        f"so{separator} there",
        "0,5",
    ]
    assert [each.getMessage().partition("read with ")[2] for each in caplog.records] == [
        f"{'semicolons' if separator == ';' else 'tabs'} between the cells, as in its header line"
    ]
    path.write_text(f"question{separator}answer\na{separator}b{separator}c\n")
    with pytest.raises(
        InputError, match=r"rows\.csv:2: found 3 cells under 2 column names: quote cells that contain (s|t)"
    ):
        load_records(DataSpec(path=path), "chats")


def test_a_csv_with_commas_or_one_column_stays_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rows.csv"
    for header, line in (("a;b,text", "x,One;two"), ("text", "One;two")):
        path.write_text(f"{header}\n{line}\n")
        assert [record.text for record in load_records(DataSpec(path=path), "documents").records] == ["One;two"]
    assert not caplog.records


def test_missing_mapped_column(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows.jsonl:1: no column 'q' \(columns: question: q\); the row has frage"):
        load(tmp_path, "prompts", {"frage": "a"}, columns={"question": "q"})


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="empty: it has no rows"):
        load(tmp_path, "prompts")
    with pytest.raises(InputError, match=r"none of the 2 rows fits \(empty_text 1, wrong_shape 1\)"):
        load(tmp_path, "prompts", {"question": ""}, {"x": 1}, on_bad_row="drop")
    with pytest.raises(InputError, match="no such file or folder"):
        load_records(DataSpec(path=tmp_path / "absent.jsonl"), "prompts")
    with pytest.raises(InputError, match="cannot read this kind of file"):
        (tmp_path / "x.docx").write_text("x")
        load_records(DataSpec(path=tmp_path / "x.docx"), "prompts")
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="has no file with the ending"):
        load_records(DataSpec(path=tmp_path / "bare"), "prompts")
    (tmp_path / "y.parquet").write_text("x")
    with pytest.raises(InputError, match="not a Parquet file"):
        load_records(DataSpec(path=tmp_path / "y.parquet"), "prompts")


def test_specs_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="either `path` or `hub`"):
        load_records(DataSpec(), "prompts")
    with pytest.raises(RecipeError, match="did you mean 'prompts'"):
        load_records(DataSpec(path=tmp_path), "prompt")


def test_plain_values() -> None:
    assert importing.plain({1: (b"a", date(2020, 1, 1)), "x": {"y": None}}) == {
        "1": ["YQ==", "2020-01-01"],
        "x": {"y": None},
    }
