"""Ranks for tests: processes forked from the test's own, so that nothing is imported twice; gloo on the CPU."""

import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from togi.train.ranks import join


def together(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """The results of `work(ranks, *arguments)` on each of `size` ranks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        children = [_start(rank, size, folder, work, arguments) for rank in range(size)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        found = [pickle.loads(path.read_bytes()) for path in sorted(folder.glob("rank-*"))]
    assert codes == [0] * size, "\n".join(text for text in found if isinstance(text, str))
    return found


def _start(rank: int, size: int, folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        value: Any = work(join(rank, size, f"file://{folder}/meeting", rank), *arguments)
        code = 0
    except BaseException:  # noqa: BLE001 (whatever it is, the parent tells it)
        value = f"rank {rank}: {traceback.format_exc()}"
    finally:
        (folder / f"rank-{rank}").write_bytes(pickle.dumps(value))
        os._exit(code)
