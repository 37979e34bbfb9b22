"""What reading tokens takes of memory: a few numbers a pair, however many tokens it has."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from memory_of_tokens import write

SCRIPT = Path(__file__).parents[2] / "memory_of_tokens.py"


@pytest.mark.parametrize(
    ("few", "many"), [(4_000, 24_000), pytest.param(10_000, 600_000, marks=pytest.mark.slow)], ids=["suite", "600000"]
)
def test_memory_grows_by_a_few_numbers_a_pair(tmp_path, few, many):
    found = [read(tmp_path / str(pairs) / "tokens", pairs) for pairs in (few, many)]
    growth = {name: (found[1][name] - found[0][name]) / (many - few) for name in ("held", "peak")}
    assert growth["held"] < 40 and growth["peak"] < 100, growth  # bytes a pair; its tokens as objects are over 1,600


def read(folder: Path, pairs: int) -> dict[str, int]:
    write(folder, pairs)
    command = [sys.executable, str(SCRIPT), "read", str(folder)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
