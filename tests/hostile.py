"""Starts the hostile server (hostile_server.py) for tests."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).parent / "hostile_server.py"


@dataclass(frozen=True)
class Hostile:
    """A running hostile server."""

    port: int
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def answered(self) -> int:
        """The number of good answers so far."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/answered", timeout=30) as reply:
            return json.load(reply)

    def stats(self) -> dict[str, Any]:
        """Its counts: `seen` and `good` by request, `requests`, `most` at a time, `tokens`, and each fault."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats", timeout=30) as reply:
            return json.load(reply)


@contextmanager
def hostile(**settings: Any) -> Iterator[Hostile]:
    """A server in a separate process for the duration of the block; settings as for `Server`."""
    process = subprocess.Popen([sys.executable, str(PROGRAM), json.dumps(settings)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Hostile(int(process.stdout.readline()), process)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
