"""Runs the sides of a benchmark and reports medians, ratios and the conditions of the measurement.

Each side is a separate process in its own environment, alive for the whole benchmark. Repeats are interleaved: every
round asks each side once, in alternating order, so that a slowdown of the machine affects all sides.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
RESULTS = HERE / "results"
CACHE = Path(os.environ.get("BENCH_CACHE", HERE / ".cache"))
TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
}
"""Reduces page faults and holes; must be set before a process starts. Every tuned side gets it, togi's and the
peers'."""
PYTHONS = {
    "togi": Path(sys.executable),
    "trl": Path(os.environ.get("BENCH_TRL_PYTHON", HERE / ".venvs/trl/bin/python")),
    "vllm": Path(os.environ.get("BENCH_VLLM_PYTHON", HERE / ".venvs/vllm/bin/python")),
}
console = Console(width=None if sys.stdout.isatty() else 140)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side: `script` in sides/, run by the Python of `home`. `tuned=False`: the peer as it comes.

    `share` of the benchmark's repeats is asked of it (at least one): a slow side that only illustrates need not run
    five times. `alone`: measured after the others, for machines whose memory does not hold all sides at once.
    """

    name: str
    script: str
    home: str = "togi"
    config: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    tuned: bool = True
    share: float = 1.0
    alone: bool = False


@dataclass(slots=True)
class Outcome:
    """The output of a side: facts when ready, one row per repeat, or the reason of a failure."""

    side: Side
    ready: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    def median(self, key: str = "seconds") -> float:
        """Median over the repeats."""
        return statistics.median(row[key] for row in self.rows)

    def peak(self) -> int:
        """Largest resident set of the process, in bytes."""
        return max(row["peak_bytes"] for row in self.rows)


class Process:
    """A running side."""

    def __init__(self, side: Side, config: dict[str, Any], log: Path) -> None:
        env = {**os.environ, **side.env, "OMP_NUM_THREADS": str(config["threads"]), "HF_HUB_OFFLINE": "1"}
        if side.tuned:
            env |= TUNED
        else:
            config = {**config, "fp32_mode": "default"}
        cpus = sorted(os.sched_getaffinity(0))[: config["threads"]]
        self.log = log
        script, settings = HERE / "sides" / side.script, json.dumps({**config, **side.config})
        self._pipe = subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, cpus)), PYTHONS[side.home], script, settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            env=env,
            text=True,
        )

    def _read(self) -> dict[str, Any]:
        line = self._pipe.stdout.readline()
        if not line:
            tail = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"ended with code {self._pipe.wait()}: {' '.join(tail)} (see {self.log})")
        return json.loads(line)

    def ready(self) -> dict[str, Any]:
        """Waits until the side has loaded everything."""
        return self._read()

    def ask(self) -> dict[str, Any]:
        """One repeat."""
        self._pipe.stdin.write("go\n")
        self._pipe.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends the side; kills it if it does not react."""
        with suppress(BrokenPipeError):
            self._pipe.stdin.close()
        try:
            self._pipe.wait(60)
        except subprocess.TimeoutExpired:
            self._pipe.kill()
            self._pipe.wait()


def _start(outcome: Outcome, config: dict[str, Any], log: Path) -> Process | None:
    """Starts a side; a side that cannot start is an outcome with an error, and the others continue."""
    if not PYTHONS[outcome.side.home].exists():
        outcome.error = f"no Python at {PYTHONS[outcome.side.home]}: see benchmarks/README.md"
        return None
    process = Process(outcome.side, config, log)
    try:
        outcome.ready = process.ready()
    except RuntimeError as error:
        outcome.error = str(error)
        process.close()
        return None
    return process


def _ask(outcome: Outcome, process: Process, keep: bool) -> bool:
    try:
        row = process.ask()
    except (RuntimeError, BrokenPipeError) as error:
        outcome.error = str(error)
        return False
    if keep:
        outcome.rows.append(row)
    return True


def measure(name: str, sides: Sequence[Side], config: dict[str, Any], options: argparse.Namespace) -> list[Outcome]:
    """Asks every side for `options.repeats` repeats after a warm-up: interleaved, then those that run alone."""
    RESULTS.mkdir(exist_ok=True)
    outcomes = [Outcome(side) for side in sides if not options.only or side.name in options.only]
    beside = [outcome for outcome in outcomes if not outcome.side.alone]
    for together in (beside, *([outcome] for outcome in outcomes if outcome.side.alone)):
        _rounds(name, together, config, options)
    return outcomes


def _rounds(name: str, outcomes: list[Outcome], config: dict[str, Any], options: argparse.Namespace) -> None:
    """Starts these sides, asks them in turn and ends them."""
    running: dict[int, Process] = {}
    with console.status(name) as status:
        for i, outcome in enumerate(outcomes):
            status.update(f"{name}: starting {outcome.side.name}")
            process = _start(outcome, config, RESULTS / f"{name}-{outcome.side.name}.log".replace(" ", "_"))
            if process:
                running[i] = process
        for turn in range(-options.warmup, options.repeats):
            for i in list(running) if turn % 2 == 0 else list(reversed(running)):
                side = outcomes[i].side
                if turn > 0 and turn >= options.repeats * side.share:
                    continue
                status.update(f"{name}: {'warm-up' if turn < 0 else f'repeat {turn + 1}'}, {side.name}")
                if not _ask(outcomes[i], running[i], keep=turn >= 0):
                    running.pop(i).close()
    for process in running.values():
        process.close()


def cpu_facts() -> dict[str, Any]:
    """The processor: model, cores, and its support for bf16."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    flags = fields["flags"].split()
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
    return {
        "model": f"{fields['model name']} (family {fields['cpu family']}, model {fields['model']})",
        "cores": os.cpu_count(),
        "flags": [flag for flag in wanted if flag in flags],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "load_average": os.getloadavg()[0],
    }


def revision() -> str:
    """The measured commit, with a mark if the working tree differs from it, apart from results."""
    git, rest = ["git", "-C", HERE.parent], [".", ":(exclude)benchmarks/results"]
    commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *rest], check=False).returncode
    return commit.stdout.strip() + ("-dirty" if changed else "")


def summary(outcomes: Sequence[Outcome], key: str = "seconds") -> dict[str, Any]:
    """The entry of each side in the JSON file."""
    table: dict[str, Any] = {}
    for outcome in outcomes:
        entry: dict[str, Any] = {"tuned": outcome.side.tuned, "config": outcome.side.config, **outcome.ready}
        if outcome.error:
            entry["error"] = outcome.error
        if outcome.rows:
            entry |= {f"median_{key}": outcome.median(key), "peak_bytes": outcome.peak(), "rows": outcome.rows}
        table[outcome.side.name] = entry
    return table


def ratio(peer: Outcome, ours: Outcome, key: str = "seconds") -> float | None:
    """The peer's time over togi's; None if one of them has no result."""
    return peer.median(key) / ours.median(key) if peer.rows and ours.rows else None


def write(name: str, options: argparse.Namespace, cases: dict[str, Any], **facts: Any) -> Path:
    """Writes results/<name>.json with the conditions of the measurement."""
    RESULTS.mkdir(exist_ok=True)
    label = "".join(f"-{part}" for part in (options.label, "tiny" if options.tiny else "") if part)
    path = RESULTS / f"{name}{label}.json"
    record = {
        "name": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": revision(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "machine": cpu_facts(),
        "environment": {"threads": options.threads, "fp32_mode": options.fp32_mode, **TUNED},
        **facts,
        "cases": cases,
    }
    text = json.dumps(record, indent=1).replace(f"{CACHE}/", "")  # where models are kept says nothing
    path.write_text(text + "\n")
    console.print(f"written to {path.relative_to(HERE.parent)}")
    return path


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: the first column names the side, the others are numbers."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def failures(outcomes: Sequence[Outcome]) -> None:
    """Prints which sides have no result, and why."""
    for outcome in outcomes:
        if outcome.error:
            console.print(f"[red]{outcome.side.name}: {outcome.error}[/red]")


def spread(outcome: Outcome, key: str = "seconds") -> str:
    """Median with the smallest and largest repeat."""
    values = [row[key] for row in outcome.rows]
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def times(value: float | None) -> str:
    """A ratio as text."""
    return "-" if value is None else f"{value:.2f}x"


def mib(value: float) -> str:
    """A size as text."""
    return f"{value / 2**20:,.0f} MiB"


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--tiny", action="store_true", help="a tiny random model and tiny sizes, as a test")
    options.add_argument("--repeats", type=int, default=5, help="interleaved repeats per side")
    options.add_argument("--warmup", type=int, default=1, help="repeats that are not counted")
    options.add_argument("--threads", type=int, default=2, help="threads, and cores, of each side")
    options.add_argument("--seed", type=int, default=17, help="seed of the work")
    options.add_argument("--only", nargs="*", default=[], metavar="SIDE", help="run only these sides")
    options.add_argument("--fp32-mode", choices=("auto", "default", "onednn"), default="auto", help="see machine.py")
    options.add_argument("--label", default="", help="appended to the name of the result file")
    options.add_argument("--model", type=Path, help="a model folder instead of the default one")
    return options


def prepare_model(*, tiny: bool = False) -> Path:
    """The folder of the benchmarks' model, made if it is not there."""
    model = CACHE / ("tiny" if tiny else "smollm2")
    if not (model / "config.json").exists():
        subprocess.run([sys.executable, HERE / "prepare.py", *(["--tiny"] if tiny else [])], check=True)
    return model


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """Prepares the model and the fp32 mode; returns the settings that every side gets."""
    model = options.model or prepare_model(tiny=options.tiny)
    if options.fp32_mode == "auto":
        options.fp32_mode = "default" if options.tiny else _choose_fp32_mode(options.threads, model)
    shape = json.loads((model / "config.json").read_text())
    return {
        "model": str(model),
        "vocabulary": shape["vocab_size"],
        "threads": options.threads,
        "seed": options.seed,
        "fp32_mode": options.fp32_mode,
        "tiny": options.tiny,
    }


def _choose_fp32_mode(threads: int, model: Path) -> str:
    """Asks machine.py, in the environment of the sides, which fp32 matrix multiplications are exact and faster."""
    env = {**os.environ, **TUNED, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, HERE / "machine.py", "--probe", "--threads", str(threads), "--model", str(model)]
    answer = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    facts = json.loads(answer.strip().splitlines()[-1])
    console.print(f"fp32 products: {facts['chosen']} ({facts['reason']})")
    return facts["chosen"]
