import bz2
import gzip
import json
import os
import random
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from places import ROOT

from togi.core.errors import InputError
from togi.core.records import Drop
from togi.data.importing import DataSpec, load_records

GOOD = {"question": "Hi"}
LINE = json.dumps(GOOD).encode() + b"\n"


def read(path: Path, kind: str = "prompts", **spec: Any) -> list[Any]:
    return load_records(DataSpec(path=path, **spec), kind).records


def texts(path: Path, kind: str = "prompts", **spec: Any) -> list[str]:
    return [record.text for record in read(path, kind, **spec)]


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


# --- formats ----------------------------------------------------------------------------------------------------------


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "\ufeffOne.\r\n\r\nStill one.\n")
    write(tmp_path / "b" / "dev-notes.txt", "Two.")
    write(tmp_path / "README.txt", "No data.")
    assert texts(tmp_path / "a.txt", "documents") == ["One.\n\nStill one.\n"]
    assert texts(tmp_path, "documents") == ["One.\n\nStill one.\n", "Two."]
    with pytest.raises(InputError, match=r"a.txt: the row has the columns text.* would fit documents"):
        read(tmp_path / "a.txt", "chats")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.json", LINE + b"\n" + LINE),
        ("a.json", LINE),
        ("a.json", b"[" + LINE + b"]"),
        ("a.json", b'\xef\xbb\xbf[\n{\n"question":\n"Hi"}]'),
        ("a.ndjson", LINE),
        ("a.tsv", b"question\tn\nHi\t1\n"),
        ("a.csv.gz", gzip.compress(b"question,n\nHi,1\n", mtime=0)),
        ("a.json.gz", gzip.compress(b"[" + LINE + b"]", mtime=0)),
    ],
)
def test_formats(tmp_path: Path, name: str, data: bytes) -> None:
    assert texts(write(tmp_path / name, data))[0] == "Hi"


@pytest.mark.parametrize("columns", ["question,n", "n,question"])
def test_long_cells_are_read(tmp_path: Path, columns: str) -> None:
    long = "x" * 400_000
    row = f'"{long}","{long}"'
    assert texts(write(tmp_path / "a.csv", f"{columns}\n{row}\n")) == [long]


def test_a_struct_of_parquet_has_no_keys_of_other_rows(tmp_path: Path) -> None:
    turns = [
        [{"role": "user", "content": "Hi", "weight": None}, {"role": "assistant", "content": "A", "weight": 0}],
        [{"role": "user", "content": "Ho", "weight": None}, {"role": "assistant", "content": "B", "weight": 1}],
    ]
    calls = [{"function": {"name": "f", "arguments": {"x": 1, "y": None}}}]
    tools = [{"name": "f", "default": None}]
    table = pa.Table.from_pylist([{"messages": t, "tools": tools, "calls": calls, "none": None} for t in turns])
    pq.write_table(table, tmp_path / "a.parquet")
    first, _ = read(tmp_path / "a.parquet", "chats")
    assert [m.train for m in first.messages] == [True, False] and first.messages[0].extra == {"tools": [{"name": "f"}]}
    assert first.extra == {"calls": [{"function": {"name": "f", "arguments": {"x": 1}}}], "none": None}


# --- bad rows ---------------------------------------------------------------------------------------------------------

DEEP = b'{"question": "x", "n": ' + b"[" * 100 + b"]" * 100 + b"}"
DEEPER = b'{"question": "x", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("bad", "reason", "message"),
    [
        (b'{"question": "x", "n": ' + b"9" * 5000 + b"}", "number_too_long", "over 4,300 digits"),
        (DEEP, "nested_too_deeply", "more than 64 levels"),
        (DEEPER, "nested_too_deeply", "more than 64 levels"),
        (b'{"question": "x", "question": "y"}', "duplicate_key", "has the key 'question' twice"),
        (b'{"question": "x", "e": [{"a": 1, "a": 1}]}', "duplicate_key", "has the key 'a' twice"),
        (b'{"question": "x", "e": {"\\udc00": 1}}', "invalid_utf8", "half a surrogate pair"),
        (b'{"question": "x", "e": ["\\ud83d\\ud83d"]}', "invalid_utf8", "half a surrogate pair"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_bad_rows_of_json(tmp_path: Path, name: str, bad: bytes, reason: str, message: str) -> None:
    data = LINE + bad + b"\n" + LINE if name == "a.jsonl" else b"[" + b",\n".join((LINE, bad, LINE)) + b"]"
    path = write(tmp_path / name, data)
    where = f"{path}:2" if name == "a.jsonl" else f"{path}, item 2"
    if name == "a.json" and bad is DEEPER:  # the end of such a value cannot be found, so the error is the file's
        with pytest.raises(InputError, match=message):
            read(path, on_bad_row="drop")
        return
    with pytest.raises(InputError, match=f"{where}: .*{message}.* set on_bad_row: drop"):
        read(path)
    imported = load_records(DataSpec(path=path, on_bad_row="drop"), "prompts")
    assert len(imported.records) == 2 and imported.drops == [Drop(id=where, stage="import", reason=reason)]


def test_json_lines_under_another_name_may_begin_with_a_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", b'{"question": "x", "question": "y"}\n' + LINE)
    assert texts(path, on_bad_row="drop") == ["Hi"]


def test_numbers_that_are_not_finite_are_carried_along(tmp_path: Path) -> None:
    (record,) = read(write(tmp_path / "a.jsonl", b'{"question": "x", "n": [NaN, Infinity]}'))
    assert str(record.extra) == "{'n': [nan, inf]}"


def test_pairs_of_surrogates_are_text(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.jsonl", b'{"question": "\\ud83d\\ude42 \\\\ud800"}')) == ["🙂 \\ud800"]


def test_values_of_parquet_that_python_cannot_hold(tmp_path: Path) -> None:
    times = pa.array([0, 2**60, 0], pa.timestamp("us"))
    pq.write_table(pa.table({"question": ["a", "b", "c"], "at": times}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a.parquet, row 2: holds a value that cannot be read"):
        read(tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet", on_bad_row="drop") == ["a", "c"]
    assert read(tmp_path / "a.parquet", on_bad_row="drop")[0].extra == {"at": datetime(1970, 1, 1).isoformat()}


# --- bad files --------------------------------------------------------------------------------------------------------

MANY = b"".join(json.dumps({"question": f"{random.Random(i).random()}"}).encode() + b"\n" for i in range(2000))
PACKED = gzip.compress(MANY, mtime=0)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl.gz", PACKED[: len(PACKED) // 2], r"a.jsonl.gz:\d+: the file ends early.*fetch it again"),
        ("a.jsonl.gz", PACKED[:-4], r"a.jsonl.gz:2001: the file ends early"),
        ("a.jsonl.gz", LINE, "a.jsonl.gz:1: not a gzip file"),
        ("a.csv.gz", LINE, "a.csv.gz:1: not a gzip file"),
        ("a.jsonl.gz", PACKED[:40] + b"\0" * 40 + PACKED[80:], r"a.jsonl.gz:\d+: not a gzip file, or a damaged one"),
        ("a.jsonl.gz", PACKED[:-8] + b"\1" * 8, "a.jsonl.gz:2001: not a gzip file, or a damaged one"),
        ("a.jsonl", LINE.decode().encode("utf-16"), "a.jsonl: looks like UTF-16: save the file as UTF-8"),
        ("a.csv", "question\nHi".encode("utf-16-le"), "a.csv: looks like UTF-16"),
        ("a.json", b"[{]", "a.json:1: not JSON: .* or one object on each line"),
        ("a.json", b'{"data": [{"question": "x"}]}', "found an object with the keys data, wanted a list"),
        ("a.json", b'{\n"version": 1\n}', "found an object with the keys version, wanted a list"),
        ("a.json", b"", "a.json:1: not JSON"),
        ("a.json", b"3", "found a number, wanted a list"),
        ("a.csv", b'question\n"Hi', r"a.csv:2: not CSV: unexpected end of data"),
        ("a.csv", b"q,q\n1,2\n", "wanted a header line with different column names"),
        ("a.parquet", b"", "a.parquet: not a Parquet file, or a damaged one"),
        ("a.jsonl.zst", b"x", "togi does not read this compression: unpack the file"),
        ("a.jsonl.bz2", bz2.compress(LINE), "togi does not read this compression"),
        ("a.zip", b"PK", "togi does not read this compression"),
        ("data-00000-of-00001.arrow", b"x", r"save_to_disk.*to_parquet\('data.parquet'\)"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = write(tmp_path / name, data)
    for on_bad_row in ("error", "drop"):  # applies to rows alone, not to files
        with pytest.raises(InputError, match=message) as caught:
            read(path, on_bad_row=on_bad_row)
        assert "on_bad_row" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv"])
def test_a_pointer_of_git_lfs(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n")
    with pytest.raises(InputError, match=f"{name}: it is a git-lfs pointer.*git lfs pull"):
        read(tmp_path / name)


@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip", "none"])
def test_damaged_parquet(tmp_path: Path, compression: Any) -> None:
    table = pa.table({"question": [f"question {i % 97}" for i in range(400)], "n": [{"x": [i]} for i in range(400)]})
    pq.write_table(table, tmp_path / "whole.parquet", compression=compression)
    whole, path, dice, refused = (
        (tmp_path / "whole.parquet").read_bytes(),
        tmp_path / "bad.parquet",
        random.Random(3),
        0,
    )
    for number in range(60):
        damaged = bytearray(whole[: dice.randrange(len(whole))] if number % 3 == 0 else whole)
        for _ in range(dice.choice((1, 8, 200))):
            damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        write(path, bytes(damaged))
        try:
            read(path, on_bad_row="drop")
        except InputError as error:
            refused += 1
            assert str(error).startswith(f"{path}")
    assert refused > 20


def test_parquet_with_two_columns_of_one_name(tmp_path: Path) -> None:
    pq.write_table(
        pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["question", "question"]), tmp_path / "a.parquet"
    )
    with pytest.raises(InputError, match="two columns have the same name"):
        read(tmp_path / "a.parquet")


# --- folders ----------------------------------------------------------------------------------------------------------


def test_papers_and_metadata_beside_the_data_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.jsonl", LINE)
    for name in ("dataset_infos.json", "dataset_info.json", "config.json", "README.md", "LICENSE.txt", "state.json"):
        write(tmp_path / name, b'{"citation": ""}')
    write(tmp_path / ".gitattributes", "*.parquet filter=lfs")
    write(tmp_path / ".cache" / "x.jsonl", "broken")
    assert texts(tmp_path) == ["Hi"]


def test_text_beside_rows_is_data_of_documents_alone(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", b'{"question": "Hi", "text": "One."}')
    write(tmp_path / "CC-BY-SA4.0.txt", "Terms.")
    assert texts(tmp_path) == ["Hi"]
    assert texts(tmp_path, "documents") == ["Terms.", "One."]


def test_columns_of_other_names_are_no_rows_to_drop(tmp_path: Path) -> None:
    bad = b'{"frage": "x"}\n'
    for data, advised in ((bad + LINE, False), (LINE + bad, True)):
        with pytest.raises(InputError, match="Map its columns with") as caught:
            read(write(tmp_path / "a.jsonl", data))
        assert ("on_bad_row" in str(caught.value)) is advised


@pytest.mark.parametrize("several", [False, True])
def test_a_folder_of_save_to_disk_names_to_parquet(tmp_path: Path, several: bool) -> None:
    folder = tmp_path / "train" if several else tmp_path
    folder.mkdir(exist_ok=True)
    table = pa.table({"question": ["Hi"]})
    with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table)
    write(folder / "state.json", "{}")
    write(folder / "dataset_info.json", "{}")
    if several:
        write(tmp_path / "dataset_dict.json", '{"splits": ["train"]}')
    with pytest.raises(InputError, match=r"save_to_disk.*to_parquet\('data.parquet'\)"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train.jsonl", "train.parquet"), r"train.jsonl and train.parquet look like the same rows in two formats"),
        (("a.jsonl", "b.jsonl.zst"), r"b.jsonl.zst: togi does not read this compression"),
        (("a.tar.gz",), r"a.tar.gz: togi does not read this compression"),
        (("a.docx",), "has no file with the ending"),
    ],
)
def test_folders_that_are_not_clear(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    for name in names:
        write(tmp_path / name, LINE)
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def parts(folder: Path, *names: str) -> None:
    """One row in each file, whose text is the file's name."""
    for name in names:
        write(folder / f"{name}.jsonl", json.dumps({"question": name}))


def test_a_split_has_its_whole_name(tmp_path: Path) -> None:
    splits = ("train_gen", "train_prefs", "test_prefs")
    parts(tmp_path, *(f"{split}-0000{part}-of-00002" for split in splits for part in range(2)))
    assert texts(tmp_path, split="train_prefs") == ["train_prefs-00000-of-00002", "train_prefs-00001-of-00002"]
    with pytest.raises(InputError, match="the split 'train' may be train_gen or train_prefs: set `split`"):
        read(tmp_path)
    parts(tmp_path, "train-00000-of-00001")
    assert texts(tmp_path) == ["train-00000-of-00001"]


@pytest.mark.parametrize(
    ("names", "split", "chosen"),
    [
        (("sft", "val"), "validation", "val"),
        (("training", "dev-1"), "train", "training"),
        (("my_train_2", "val"), "train", "my_train_2"),
        (("val", "validation"), "validation", "validation"),
        (("train_sft", "train_rl"), "train_rl", "train_rl"),
    ],
)
def test_words_for_a_split(tmp_path: Path, names: tuple[str, ...], split: str, chosen: str) -> None:
    parts(tmp_path, *names)
    assert texts(tmp_path, split=split) == [chosen]


def test_rows_held_out_under_another_word_are_not_trained_on(tmp_path: Path) -> None:
    parts(tmp_path, "sft", "val")
    with pytest.raises(InputError, match="no file of the split 'train' among sft, val; set `split`"):
        read(tmp_path)


@pytest.mark.parametrize(("first", "gone"), [(0, "train-00001-of-00003"), (1, "train-00002-of-00003")])
def test_a_missing_part_of_a_split(tmp_path: Path, first: int, gone: str) -> None:
    parts(tmp_path, *(f"train-{number:05d}-of-00003" for number in (first, first + 2)))
    with pytest.raises(InputError, match=rf"1 of 3 files of this split are missing, such as {gone}\.jsonl"):
        read(tmp_path)


def test_formats_may_be_mixed(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", LINE)
    write(tmp_path / "b.csv", "question\nHo\n")
    assert texts(tmp_path) == ["Hi", "Ho"]


def test_links_pipes_and_folders_that_are_none(tmp_path: Path) -> None:
    write(tmp_path / "set" / "a.jsonl", LINE)
    os.symlink(tmp_path / "set", tmp_path / "set" / "again")
    os.symlink(tmp_path / "set" / "loop", tmp_path / "set" / "loop")
    os.mkfifo(tmp_path / "set" / "pipe.jsonl")
    assert texts(tmp_path / "set") == ["Hi"]
    with pytest.raises(InputError, match="no such file or folder"):
        read(tmp_path / "set" / "loop")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        read(tmp_path / "set" / "pipe.jsonl")
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        read(tmp_path / ("x" * 300))
    write(tmp_path / "other" / "b.jsonl", LINE)
    os.symlink(tmp_path / "other", tmp_path / "set" / "other")
    with pytest.raises(InputError, match="set/other: togi does not follow a link to a folder"):
        read(tmp_path / "set")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("what", ["set/a.jsonl", "set"])
def test_files_that_may_not_be_read(tmp_path: Path, what: str) -> None:
    write(tmp_path / "set" / "a.jsonl", LINE)
    (tmp_path / what).chmod(0)
    try:
        with pytest.raises(InputError, match="cannot be read: Permission denied"):
            read(tmp_path / "set")
    finally:
        (tmp_path / what).chmod(0o700)


# --- real data --------------------------------------------------------------------------------------------------------

DATA = ROOT.parent / "shared" / "data"


@pytest.mark.skipif(not DATA.exists(), reason="no ../shared/data here")
@pytest.mark.parametrize(
    ("name", "kind", "spec", "kept"),
    [
        ("hh_rlhf", "pairs", {"on_bad_row": "drop", "split": "test"}, 2308),
        ("aozora_sample", "documents", {}, 303),
        ("debian_docs", "documents", {}, 51),
        ("self_instruct/seed_tasks.jsonl", "prompts", {}, 175),
        ("shaberi_judged/questions.jsonl", "prompts", {"columns": {"answer": "reference"}}, 342),
        ("ru_alpaca_seeds/ru_alpaca_seed_tasks.jsonl", "prompts", {}, 137),
    ],
)
def test_real_data(name: str, kind: str, spec: dict[str, Any], kept: int) -> None:
    assert len(read(DATA / name, kind, **spec)) == kept
