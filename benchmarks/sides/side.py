"""Shared by all sides of a benchmark: settings, clock, peak memory, and one JSON line per repeat.

A side is a process that lives for a whole benchmark. It reads its settings from the first argument, prints a line when
it is ready, and then measures once for every line it reads.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "bf16-weights": torch.bfloat16}
"""Type of the weights by precision: "bf16" is fp32 weights with bf16 compute."""


def memory_bytes(field: str) -> int:
    """A size from /proc/self/status: VmRSS (now) or VmHWM (peak), in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/self/status has no {field}")


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of torch, transformers and other packages that a side uses."""
    return {name: metadata.version(name) for name in ("torch", "transformers", *packages)}


def keep_first_gradients(net: torch.nn.Module, path: str) -> None:
    """Saves the gradients of this process's first optimiser step, by name."""

    def keep(*_: Any) -> None:
        if not Path(path).exists():
            torch.save({name: p.grad.cpu() for name, p in net.named_parameters() if p.grad is not None}, path)

    register_optimizer_step_pre_hook(keep)


class Side:
    """The communication with the harness. All output of libraries goes to stderr."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = json.loads(sys.argv[1])
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        torch.set_num_threads(self.config["threads"])
        torch.manual_seed(self.config["seed"])
        if self.config["fp32_mode"] == "onednn":
            torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        self.device = torch.device(self.config.get("device", "cpu"))
        self._libraries = memory_bytes("VmRSS")

    def clock(self) -> float:
        """The time after the device has finished all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _peak(self) -> int:
        """Peak memory since `ready`: of the accelerator if there is one, otherwise of the process."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else memory_bytes("VmHWM")

    def _say(self, **facts: Any) -> None:
        self._out.write(json.dumps(facts) + "\n")

    def ready(self, **facts: Any) -> None:
        """Reports that the side is ready; peak memory counts from now on."""
        Path("/proc/self/clear_refs").write_text("5")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._say(libraries_bytes=self._libraries, rss_bytes=memory_bytes("VmRSS"), **facts)

    def wait(self) -> bool:
        """Waits for the harness; False when the benchmark is over."""
        return bool(sys.stdin.readline())

    def report(self, seconds: float, **facts: Any) -> None:
        """Reports one repeat, with the peak memory so far."""
        self._say(seconds=seconds, peak_bytes=self._peak(), **facts)

    def serve(self, measure: Callable[[], dict[str, Any]]) -> None:
        """Measures until the harness is done. `measure` returns at least `seconds`."""
        while self.wait():
            self.report(**measure())
