"""`togi run`: one worker, the stages in order, a report after each; nothing finished is ever done twice.

The parent never imports torch. It forwards Ctrl-C and SIGTERM, turns a dead worker into a clear error, and keeps the
run's state on disk, so that `status` and `report` need nothing but files.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from togi import __version__
from togi.core.errors import ERRORS, InputError, Interrupted, RecipeError, StageError, TogiError, WorkerDied
from togi.core.files import write_json, write_text
from togi.recipe.display import Display
from togi.recipe.graph import Graph, Node
from togi.recipe.lock import lock_text
from togi.recipe.report import render
from togi.recipe.store import is_done, manifest, run_folder, store_folder
from togi.recipe.worker import resolved_to_json

# What a training process needs on glibc: freed memory stays with the process, so that it is not faulted in again
# (1.04 to 1.18 times the speed, measured). A variable that the user has set wins.
ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line of `run` says."""

    until: str | None = None
    redo: tuple[str, ...] = ()
    accept_numerics: bool = False
    compute: str = "auto"
    threads: int = 0  # 0: all that this process may use

    @property
    def worker_threads(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))


class Worker:
    """The process that does the work."""

    def __init__(self, log: Path, threads: int) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**ENVIRONMENT, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **os.environ}
        self.log = log
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "togi.recipe.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,
                text=True,
                encoding="utf-8",
            )

    def do(self, command: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Sends one stage and yields its events; the last one is `done` or `failed`. Raises WorkerDied."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._died(command["name"])
        for line in self.process.stdout:
            event = json.loads(line)
            yield event
            if event["event"] in ("done", "failed"):
                return
        self._died(command["name"])

    def _died(self, stage: str) -> None:
        code = self.process.wait()
        if code == -signal.SIGKILL:
            why = "was killed (SIGKILL); when nobody did that, the machine ran out of memory: lower batch sizes"
        elif code < 0:
            why = f"was ended by signal {signal.Signals(-code).name}"
        else:
            last = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            what = last[0] if last else "no message"
            why = f"stopped with a fault of togi's own ({what}); the traceback is in {self.log}"
        raise WorkerDied(f"stage {stage}: the worker {why}. Everything finished is saved: run the same command again")

    def stop(self) -> None:
        """Asks the worker to save and stop; a second call ends it at once."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Ends the worker: it leaves when its input closes."""
        assert self.process.stdin is not None and self.process.stdout is not None
        if self.process.poll() is None:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class Run:
    """One `togi run` of a graph."""

    def __init__(self, graph: Graph, options: Options, display: Display) -> None:
        self.graph = graph
        self.options = options
        self.display = display
        self.store = store_folder()
        self.folder = run_folder(graph.recipe.name)
        self.worker: Worker | None = None
        self.interrupted = False
        self.cached: dict[str, bool] = {}
        self.failed: dict[str, str] = {}
        self.started = time.time()

    def run(self) -> None:
        """Does everything that is not done. Raises the TogiError that ended it; state and report are written first."""
        names = self._wanted()
        self._redo()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "recipe.lock.yaml", lock_text(self.graph))
        previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            for name in names:
                self._stage(self.graph.nodes[name])
            self._state("done")
        except TogiError as error:
            self._state("interrupted" if isinstance(error, Interrupted) else "failed", str(error))
            raise
        finally:
            if self.worker is not None:
                self.worker.close()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _wanted(self) -> list[str]:
        nodes = self.graph.nodes
        for name in (*([self.options.until] if self.options.until else []), *self.options.redo):
            if name not in nodes:
                raise RecipeError(f"command line: there is no stage {name!r}; there are: {', '.join(nodes)}")
        return self.graph.needed_by(self.options.until) if self.options.until else list(nodes)

    def _redo(self) -> None:
        for name in self.options.redo:
            (self.store / self.graph.nodes[name].folder_name / "DONE").unlink(missing_ok=True)
            clear_stage(self.store / self.graph.nodes[name].folder_name)

    def _stage(self, node: Node) -> None:
        folder = self.store / node.folder_name
        self._link(node.name, folder)
        self.cached[node.name] = is_done(folder)
        if self.cached[node.name]:
            self.display.cached(node.name, node.settings.type)
            return
        if self.interrupted:
            raise Interrupted("stopped; everything finished is saved")
        self.display.start(node.name, node.settings.type)
        if self.worker is None:
            self.worker = Worker(self.folder / "worker.log", self.options.worker_threads)
        self._state("running", running=node.name)
        for event in self.worker.do(self._command(node, folder)):
            self.display.event(event)
            if event["event"] == "failed":
                self.failed[node.name] = event["message"]
                raise ERRORS.get(event["kind"], StageError)(event["message"])
        self.display.done(node.name, manifest(folder)["seconds"])
        self._state("running")

    def _command(self, node: Node, folder: Path) -> dict[str, Any]:
        inputs = self.graph.resolve(node, self.store)
        return {
            "name": node.name,
            "folder": str(folder),
            "cache": str(self.store),
            "seed": node.seed,
            "fingerprint": node.fingerprint,
            "settings": node.settings.model_dump(mode="json"),
            "inputs": {ref: resolved_to_json(value) for ref, value in inputs.items()},
            "threads": self.options.worker_threads,
            "accept_numerics": self.options.accept_numerics,
            "compute": self.options.compute,
        }

    def _link(self, name: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        link = self.folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(folder, self.folder))

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.interrupted and self.worker is not None:
            self.worker.process.kill()
        self.interrupted = True
        self.display.note("stopping: the work at hand is finished and saved first; once more to stop at once")
        if self.worker is not None:
            self.worker.stop()

    def _state(self, state: str, error: str | None = None, running: str | None = None) -> None:
        stages = [self._stage_state(node, running) for node in self.graph.nodes.values()]
        value = {
            "name": self.graph.recipe.name,
            "state": state,
            "started": self.started,
            "seconds": round(time.time() - self.started, 1),
            "stages": stages,
            "error": error,
            "versions": {"togi": __version__, "python": sys.version.split()[0]},
        }
        write_json(self.folder / "state.json", value)
        try:
            render(self.folder)
        except InputError as wrong:  # told, but never in the place of what the run itself ended with
            self.display.note(f"the report cannot be rendered: {wrong}")

    def _stage_state(self, node: Node, running: str | None) -> dict[str, Any]:
        folder = self.store / node.folder_name
        done = is_done(folder)
        state = "done" if done else "failed" if node.name in self.failed else "waiting"
        return {
            "name": node.name,
            "type": node.settings.type,
            "folder": str(folder),
            "fingerprint": node.fingerprint,
            "state": "running" if node.name == running else state,
            "seconds": manifest(folder)["seconds"] if done else None,
            "cached": self.cached.get(node.name, False),
            "inputs": node.parents,
            "error": self.failed.get(node.name),
        }


def clear_stage(folder: Path) -> None:
    """Forgets a stage's work, so that it is done again from its beginning; converted models and locks stay."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.name == "lock":
            continue
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        else:
            path.unlink()
