"""Reading tokens takes only a few numbers per pair in memory, however many tokens the pair has."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from memory_of_tokens import write, write_corpus

SCRIPT = Path(__file__).parents[2] / "memory_of_tokens.py"


@pytest.mark.parametrize(
    ("few", "many"), [(4_000, 24_000), pytest.param(10_000, 600_000, marks=pytest.mark.slow)], ids=["suite", "600000"]
)
def test_memory_grows_by_a_few_numbers_a_pair(tmp_path, few, many):
    found = [read(tmp_path / str(pairs) / "tokens", pairs) for pairs in (few, many)]
    growth = {name: (found[1][name] - found[0][name]) / (many - few) for name in ("held", "peak")}
    assert growth["held"] < 40 and growth["peak"] < 100, growth  # bytes a pair; its tokens as objects take over 1,600


@pytest.mark.slow
def test_a_corpus_of_a_billion_tokens_takes_a_few_numbers_a_text(tmp_path):
    few, many = 10_000, 1_000_000
    found = [read(tmp_path / str(texts) / "tokens", texts, write_corpus) for texts in (few, many)]
    growth = {name: (found[1][name] - found[0][name]) / (many - few) for name in ("held", "peak")}
    assert growth["held"] < 40 and growth["peak"] < 100, growth  # bytes a text of 1,000 tokens


def read(folder: Path, count: int, writer: Callable[[Path, int], None] = write) -> dict[str, int]:
    writer(folder, count)
    command = [sys.executable, str(SCRIPT), "read", str(folder)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
