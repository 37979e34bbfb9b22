"""Memory of stages per row: the slope over rows of a separate process's peak above its initial use."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from memory_of_stages import LETTERS, SMALL_GROUP, write_answers, write_rows
from places import TESTS

from togi.core import record_streams

FLAT = 250
"""Bytes a row that count as flat: one row group of the large file exceeds the whole small file by some 14 MB."""
KIB = 1024
EMBEDDING = 2 * 1024
"""Bytes of an embedding of hashed n-grams in float16."""
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Arrays of a few hundred kB are returned to the system when they are freed, as larger real ones are."""
ONE_HEAP = {"MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
"""Threads share one heap: separate heaps vary by some MB from run to run, as much as these rows take."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read as Linux tells it")


@pytest.fixture(scope="module")
def measures() -> Iterator[subprocess.Popen[str]]:
    """The process that measures memory."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **GIVEN_BACK, **ONE_HEAP}
    command = [sys.executable, str(TESTS / "memory_of_stages.py")]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@dataclass(frozen=True, slots=True)
class Slopes:
    """Files of rows, which are made once, and the process that measures with them."""

    measures: subprocess.Popen[str]
    folder: Path

    def peak(self, stage: str, rows: Path, small: bool) -> int:
        assert self.measures.stdin is not None and self.measures.stdout is not None
        self.measures.stdin.write(json.dumps([stage, str(rows), small]) + "\n")
        self.measures.stdin.flush()
        found = json.loads(self.measures.stdout.readline())
        assert found is not None, "the stage failed; its traceback is above"
        return int(found)

    def of(self, stage: str, few: int, many: int, *, small: bool = False) -> float:
        """Returns the bytes that each further row takes."""
        first, last = (self.peak(stage, self.made(rows, small), small) for rows in (few, many))
        return (last - first) / (many - few)

    def made(self, rows: int, small: bool) -> Path:
        made = self.folder / f"{rows}-{small}"
        if not made.exists():
            with pytest.MonkeyPatch.context() as kept:
                kept.setattr(record_streams, "ROWS_PER_GROUP", SMALL_GROUP if small else record_streams.ROWS_PER_GROUP)
                write_rows(made, rows)
                if small:
                    write_answers(made, rows)
        return made


@pytest.fixture(scope="module")
def slopes(measures: subprocess.Popen[str], tmp_path_factory: pytest.TempPathFactory) -> Slopes:
    return Slopes(measures, tmp_path_factory.mktemp("rows"))


@pytest.mark.parametrize("stage", ["curate", pytest.param("decontaminate", marks=pytest.mark.slow)])
def test_from_ten_thousand_to_a_hundred_thousand_rows_memory_is_flat(slopes: Slopes, stage: str) -> None:
    assert slopes.of(stage, 10_000, 100_000) < FLAT


def test_import_holds_a_hash_of_each_row_and_not_the_row(slopes: Slopes) -> None:
    assert slopes.of("import", 3_000, 12_000, small=True) < 400


@pytest.mark.parametrize(
    ("stage", "most"),
    [
        ("mix", 150),
        ("label", 450),
        ("curate-logprob", 200),
        pytest.param("curate-json", 150, marks=pytest.mark.slow),
        pytest.param("pairs", 450, marks=pytest.mark.slow),
        pytest.param("synthesize-qa", 300, marks=pytest.mark.slow),
        pytest.param("label-graded", 250, marks=pytest.mark.slow),
        pytest.param("synthesize-rewrite", 300, marks=pytest.mark.slow),
    ],
)
def test_what_a_stage_holds_of_a_row_is_as_docs_memory_says(slopes: Slopes, stage: str, most: int) -> None:
    assert slopes.of(stage, 3_000, 12_000, small=True) < most


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", ["curate", "decontaminate", "import", "mix"])
def test_a_million_rows_are_as_flat(slopes: Slopes, stage: str) -> None:
    assert slopes.of(stage, 100_000, 1_000_000) < FLAT


@pytest.mark.parametrize(
    ("stage", "beside"),
    [
        ("dedup-exact", 0),
        ("dedup-minhash", LETTERS),
        pytest.param("dedup-embeddings", EMBEDDING, marks=pytest.mark.slow),
        ("diversify-k_centre", EMBEDDING),
    ],
)
def test_global_stages_hold_at_most_a_kibibyte_beside_text_or_embedding(
    slopes: Slopes, stage: str, beside: int
) -> None:
    assert slopes.of(stage, 3_000, 9_000, small=True) < KIB + beside
