"""Record streams: the same bytes as a file written at once, parts that join into the whole, no half-written files."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from togi.core import codec, record_streams
from togi.core.codec import read_records, write_records
from togi.core.errors import InputError
from togi.core.record_streams import StoredRecords, count_records, read_batches, read_range, record_writer
from togi.core.records import Document, Message, Prompt


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=f"p{i}", messages=(Message("user", f"Question {i}?"),)) for i in range(count)]


@pytest.fixture
def small_groups(monkeypatch):
    """Row groups of 8 records, so that a few records make several groups."""
    monkeypatch.setattr(codec, "ROWS_PER_GROUP", 8)
    monkeypatch.setattr(record_streams, "ROWS_PER_GROUP", 8)


@pytest.mark.parametrize("portion", [3, 8])
@pytest.mark.parametrize("count", [0, 5, 8, 16, 21])
def test_a_stream_writes_the_bytes_of_a_whole_file(
    tmp_path: Path, small_groups, monkeypatch, count: int, portion: int
) -> None:
    monkeypatch.setattr(record_streams, "PORTION", portion)
    records = prompts(count)
    write_records(tmp_path / "whole.parquet", "prompts", records)
    with record_writer(tmp_path / "stream.parquet", "prompts") as writer:
        for start in range(0, count, 3):
            writer.write(records[start : start + 3])
    assert (tmp_path / "stream.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert writer.count == count


def test_portions_of_real_size_make_the_same_bytes(tmp_path: Path) -> None:
    """Texts of many lengths, some of them equal, different numbers of turns, columns with and without values."""
    records = [
        Prompt(
            id=f"p{i}",
            parents=tuple(f"q{j}" for j in range(i % 4)),
            messages=tuple(
                Message("user", f"{'long ' * (i % 97)}{j}", extra={"n": i} if i % 5 else {}) for j in range(1 + i % 3)
            ),
            answer=None if i % 7 else f"answer {i % 11}",
        )
        for i in range(5000)
    ]
    write_records(tmp_path / "whole.parquet", "prompts", records)
    with record_writer(tmp_path / "stream.parquet", "prompts") as writer:
        writer.write(records)
    assert (tmp_path / "stream.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_the_writer_holds_no_more_than_one_row_group(tmp_path: Path, small_groups) -> None:
    with record_writer(tmp_path / "stream.parquet", "prompts") as writer:
        for record in prompts(50):
            writer.write([record])
            assert writer.waiting < 8
    assert pq.ParquetFile(tmp_path / "stream.parquet").num_row_groups == 7


def test_batches_and_ranges_join_to_the_whole(tmp_path: Path, small_groups) -> None:
    path, records = tmp_path / "records.parquet", prompts(21)
    write_records(path, "prompts", records)
    batches = list(read_batches(path, 5))
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 1]
    assert [record for batch in batches for record in batch] == records == read_records(path)[1]
    assert [read_range(path, first, 5) for first in range(0, 21, 5)] == batches
    assert count_records(path) == 21 and read_range(path, 21, 5) == []


def test_stored_records_are_a_sequence_of_which_a_part_is_read(tmp_path: Path, small_groups, monkeypatch) -> None:
    monkeypatch.setattr(record_streams, "BLOCK", 5)
    path, records = tmp_path / "records.parquet", prompts(21)
    write_records(path, "prompts", records)
    stored = StoredRecords(path)
    assert len(stored) == 21 and list(stored) == records and stored[-1] == records[20]
    assert stored[::7][:2] == [records[0], records[7]] and stored[30:] == []
    with pytest.raises(IndexError):
        stored[21]
    with pytest.raises(InputError, match="no such file"):
        StoredRecords(tmp_path / "other.parquet")


def test_what_goes_wrong_inside_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    with pytest.raises(TypeError, match="Document among prompts"), record_writer(path, "prompts") as writer:
        writer.write([Document(id="d", text="no prompt")])
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_or_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    with pytest.raises(InputError, match="there is no such file"):
        count_records(path)
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(InputError, match=r"records\.parquet: not a file of records, or a damaged one"):
        list(read_batches(path, 4))
