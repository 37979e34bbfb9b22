"""`togi run`: starts workers, does the stages in order and writes a report after each; never repeats finished work.

The parent never imports torch. It forwards Ctrl-C and SIGTERM, turns a dead worker into a clear error, and keeps the
run's state on disk, so that `status` and `report` need only files.
"""

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from togi import __version__
from togi.core.errors import ERRORS, InputError, Interrupted, RecipeError, StageError, TogiError, WorkerDied
from togi.core.files import write_json, write_text
from togi.core.locks import Busy, is_held, wait
from togi.core.process import STOPPING, was_interrupted
from togi.core.settings import MAIN
from togi.recipe.cluster import RankNeeds, cluster_ranks_work, cluster_services_work, opened
from togi.recipe.display import Display
from togi.recipe.executors import Executor
from togi.recipe.graph import Graph, Node, kinds_of, unpinned
from togi.recipe.guard import sources_to_json
from togi.recipe.joined import Joined, JoinedWorkers, follow, lead, refuse_other_ranks
from togi.recipe.lock import lock_text
from togi.recipe.mend import mend
from togi.recipe.model_services import services_of
from togi.recipe.options import Options
from togi.recipe.report import render
from togi.recipe.runs import keep_last, run_id
from togi.recipe.services import Services, ServiceSpec, Started, on_this_machine
from togi.recipe.state import STATE, running
from togi.recipe.store import (
    Read,
    clear_stage,
    is_done,
    made_from,
    manifest,
    outputs_digests,
    run_folder,
    store_folder,
    writing_home,
)
from togi.recipe.sweep import older_note, register, sweep
from togi.recipe.terms import notes, refuse_misuse
from togi.recipe.worker import resolved_to_json
from togi.recipe.workers import Workers, clear_meetings
from togi.stages.spent import spent_by
from togi.tracking.base import check_trackers

DEATH_SECONDS = 30.0  # time for a stage to save finished work after a service that it needs has died


class Run:
    """One `togi run` of a graph."""

    def __init__(
        self, graph: Graph, options: Options, display: Display, services: Sequence[ServiceSpec] | None = None
    ) -> None:
        self.graph = graph
        self.options = options
        self.display = display
        self.store = store_folder()
        self.folder = run_folder(graph.recipe.name)
        self.id = run_id(graph.recipe.name, [(node.name, node.fingerprint) for node in graph.nodes.values()])
        self.workers: Executor | None = None
        specs = services_of(graph, self.store, options) if services is None else services
        self.services = Services(specs, self.folder, self._service_died, self._start_service)
        self.at_work = ""  # the running stage
        self.cluster = ""  # the address of the cluster
        self.begun = False
        self.interrupted = False  # the run ends after the current work
        self.signalled = False
        self.killed = False
        self.cached: dict[str, bool] = {}
        self.ended: dict[str, tuple[str, str]] = {}  # stages that did not finish: their state and the reason
        self.started = time.time()

    def run(self) -> None:
        """Does all unfinished stages. Raises the TogiError that ended the run, after writing state and report.

        Raises Busy if a run of the same name is at work, before changing any of its files.
        """
        names = self._wanted()
        check_trackers(self.graph.recipe.track)
        refuse_misuse(self.graph)
        if (place := self.options.joined) is not None:
            refuse_other_ranks(self.graph, place)
            if place.rank:
                follow(self._joined_workers(place), self.id, self.store)
                return
        with ExitStack() as stack:
            with writing_home():
                stack.enter_context(running(self.folder, clear_meetings))
            self._begin(names)
            place = opened(self.options.on, self.folder, self.store, self.display.note, self._ranks(names))
            self.cluster = stack.enter_context(place)
            stack.enter_context(self._heeding())
            self._run(names)

    @contextmanager
    def _heeding(self) -> Iterator[None]:
        """Inside the block, a signal lets the current work finish first; before it, there was none to finish."""
        previous = {s: signal.signal(s, self._on_signal) for s in STOPPING}
        if was_interrupted():
            self._on_signal(signal.SIGINT, None)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _begin(self, names: list[str]) -> None:
        self.begun = True
        with writing_home():
            self._redo()
            keep_last(self.folder, self.id)
            write_text(self.folder / "recipe.lock.yaml", lock_text(self.graph))
        for note in (*unpinned(self.graph.recipe), *notes(self.graph)):
            self.display.note(note)
        register(self.folder, [node.folder_name for node in self.graph.nodes.values()])
        sweep()
        for note in older_note():
            self.display.note(note)
        mend(self.graph, names, self.store, self.display.note)

    def _run(self, names: list[str]) -> None:
        state, why = "failed", "a bug in togi; the traceback was printed"
        try:
            if self.options.joined:
                self.workers = workers = self._joined_workers(self.options.joined)
                lead(workers, self.id, self.store)
            for number, name in enumerate(names, 1):
                self._stage(self.graph.nodes[name])
                self.services.after(names[number:])
            state, why = "done", None
        except TogiError as error:
            state, why = _state_after(error), str(error)
            raise
        finally:
            if self.workers is not None:
                self.workers.close()
            self.services.close()
            self._state(state, why)

    def _wanted(self) -> list[str]:
        nodes = self.graph.nodes
        for name in (*([self.options.until] if self.options.until else []), *self.options.redo):
            if name not in nodes:
                raise RecipeError(f"command line: there is no stage {name!r}; there are: {', '.join(nodes)}")
        return self.graph.imports_first(self.graph.needed_by(self.options.until) if self.options.until else nodes)

    def _redo(self) -> None:
        for name in self.options.redo:
            clear_stage(self.store / self.graph.nodes[name].folder_name)

    def _stage(self, node: Node) -> None:
        folder = self.store / node.folder_name
        self._link(node.name, folder)
        self._forget_outdated(node, folder)
        self.cached[node.name] = is_done(folder)
        if self.cached[node.name]:
            self.display.cached(node.name, node.settings.type)
            return
        self._heed()
        self.display.start(node.name, node.settings.type)
        self._state("running", running=node.name)
        try:
            self._work(node, folder)
        except TogiError as error:
            if isinstance(error, WorkerDied) and self.killed:
                error = Interrupted(f"stage {node.name}: stopped at once; everything finished is saved")
            elif not self.interrupted and (death := self.services.death(node.name)):
                error = StageError(f"{death}. Everything finished is saved: run the same command again")
            self.ended[node.name] = _state_after(error), str(error)
            raise error from None
        if self._is_outdated(node, folder):  # another run did it, from other inputs
            self._stage(node)
        elif self.cached[node.name]:
            self.display.cached(node.name, node.settings.type)
        else:
            self.display.done(node.name, manifest(folder)["seconds"])
        self._state("running")

    def _heed(self) -> None:
        """Raises Interrupted if a signal asked to stop."""
        if self.interrupted:
            raise Interrupted("stopped; everything finished is saved")

    def _work(self, node: Node, folder: Path) -> None:
        workers = self._workers_for(node)
        self.at_work = node.name
        self.services.before(node.name, self.display.note, self._heed)
        if self.killed:  # signals came while the processes were starting
            workers.kill()
        else:
            self._heed()
        for event in workers.do(self.command_for(node, folder)):
            if event["event"] == "done":
                self.cached[node.name] = event["found"]  # another run did it while this one waited for it
                continue
            self.display.event(event)
            if event["event"] == "failed":
                raise ERRORS[event["kind"]](event["message"])

    def _start_service(self, spec: ServiceSpec, log: Path, check_stop: Callable[[], None]) -> Started:
        if self.cluster:
            return cluster_services_work().on_cluster(self.cluster, spec, log, check_stop)
        return on_this_machine(spec, log, check_stop)

    def _service_died(self, name: str) -> None:
        """Lets the running stage, if it needs the service, save its finished work, and kills it after a while."""
        workers = self.workers
        if workers is not None and self.at_work in self.services.specs[name].stages:
            workers.stop()
            end = threading.Timer(DEATH_SECONDS, workers.kill)
            end.daemon = True
            end.start()

    def _reads(self, node: Node) -> list[Read]:
        return self.graph.reads(node, self.store)

    def _forget_outdated(self, node: Node, folder: Path) -> None:
        """Discards, with a message, work that was done or begun from other inputs than the current ones: an input was
        done again with another result."""
        if not self._is_outdated(node, folder):
            return
        try:
            clear_stage(folder)
            self.display.note(f"{node.name}: its inputs have changed, so it is done again")
        except Busy:  # the other run may be using the current inputs
            for _ in wait(folder, f"stage {node.name}", self.display.note):
                self._heed()
                if not is_held(folder):
                    break
            self._forget_outdated(node, folder)

    def _is_outdated(self, node: Node, folder: Path) -> bool:
        before = made_from(folder)
        return before is not None and before != outputs_digests(self._reads(node))

    def _workers_for(self, node: Node) -> Executor:
        """The existing processes, or new ones if the stage needs another number of them."""
        size = node.settings.ranks
        if self.workers is not None and self.options.joined:
            return self.workers
        if self.workers is not None and self.workers.size != size:
            self.workers.close()
            self.workers = None
        if self.workers is None:
            self.workers = self._on_cluster(node) if self.cluster and size > 1 else self._on_this_machine(size)
        return self.workers

    def _on_this_machine(self, size: int) -> Executor:
        with writing_home():
            return Workers(self.folder / "worker.log", self.options.worker_threads, size)

    def _on_cluster(self, node: Node) -> Executor:
        """The ranks of a stage on the cluster, after checking that all have the same store, code and libraries."""
        log, display = self.folder / "worker.log", self.display
        made = cluster_ranks_work().ClusterWorkers(self.cluster, log, self._needs(node), display.note, self._heed)
        try:
            lead(made, self.id, self.store)
        except TogiError:
            made.close()
            raise
        return made

    def _needs(self, node: Node) -> RankNeeds:
        size, services = node.settings.ranks, self.services.with_device(node.name)
        return RankNeeds(node.name, size, self.options.rank_threads(size), services)

    def _ranks(self, names: list[str]) -> list[RankNeeds]:
        """The ranks of the unfinished stages."""
        nodes = [
            self.graph.nodes[name] for name in names if not is_done(self.store / self.graph.nodes[name].folder_name)
        ]
        return [self._needs(node) for node in nodes if node.settings.ranks > 1]

    def _joined_workers(self, place: Joined) -> JoinedWorkers:
        with writing_home():
            return JoinedWorkers(self.folder / "worker.log", self.options.worker_threads, place)

    def command_for(self, node: Node, folder: Path) -> dict[str, Any]:
        inputs = self.graph.resolve(node, self.store)
        return {
            "name": node.name,
            "pid": os.getpid(),
            "folder": str(folder),
            "cache": str(self.store),
            "seed": node.seed,
            "fingerprint": node.fingerprint,
            "made_from": outputs_digests(self._reads(node)),
            "reads": sources_to_json(node, [folder for folder, _ in self._reads(node)]),
            "settings": node.settings.model_dump(mode="json"),
            "inputs": {ref: resolved_to_json(value) for ref, value in inputs.items()},
            "threads": self.options.rank_threads(node.settings.ranks),
            "ranks": node.settings.ranks,
            "joined": self.options.joined is not None,
            "accept_numerics": self.options.accept_numerics,
            "compute": self.graph.recipe.compute_dtype(self.options.compute),
            "recipe": self.graph.recipe.name,
            "run": self.id,
            "track": self.graph.recipe.track,
            "services": self.services.urls(node.name),
            "on": self.cluster,
        }

    def _link(self, name: str, folder: Path) -> None:
        link = self.folder / name
        with writing_home():
            folder.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(folder, self.folder))

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.signalled:
            self.killed = True
            if self.workers is not None:
                self.workers.kill()
            self.display.note("stopping at once")
            return
        self.signalled = True
        self.stop()
        self.display.note("stopping: the current work is finished and saved first; repeat to stop at once")

    def spent(self) -> list[str]:
        """The run's spending on each model on a server, including killed processes, in words."""
        endpoints = [found for name in self.graph.recipe.models if (found := self.graph.endpoint(name)) is not None]
        try:
            return spent_by(self.id, endpoints, self.store)
        except (InputError, StageError) as wrong:  # if answers are needed, it ends the stage anyway
            self.display.note(f"spending on servers is unknown: {wrong}")
            return []

    def stop(self) -> None:
        """Ends the run after the current work is finished and saved."""
        self.interrupted = True
        if self.workers is not None:
            self.workers.stop()

    def _state(self, state: str, error: str | None = None, running: str | None = None) -> None:
        stages = [self._stage_state(node, running) for node in self.graph.nodes.values()]
        value = {
            "name": self.graph.recipe.name,
            "id": self.id,
            "overrides": list(self.options.overrides),
            "state": state,
            "pid": os.getpid(),
            "started": self.started,
            "seconds": round(time.time() - self.started, 1),
            "stages": stages,
            "error": error,
            "spent": self.spent(),
            "versions": {"togi": __version__, "python": sys.version.split()[0]},
        }
        try:  # errors here are reported, but never replace the error of the run itself
            write_json(self.folder / STATE, value)
            render(self.folder)
        except OSError as wrong:
            self.display.note(f"the state and the report of the run cannot be written: {wrong}")
        except InputError as wrong:
            self.display.note(f"the report cannot be rendered: {wrong}")

    def _stage_state(self, node: Node, running: str | None) -> dict[str, Any]:
        folder = self.store / node.folder_name
        done = is_done(folder)
        state, error = ("done", None) if done else self.ended.get(node.name, ("waiting", None))
        return {
            "name": node.name,
            "type": node.settings.type,
            "folder": os.path.relpath(folder, self.folder),
            "fingerprint": node.fingerprint,
            "state": "running" if node.name == running else state,
            "seconds": manifest(folder)["seconds"] if done else None,
            "cached": self.cached.get(node.name, False),
            "inputs": node.parents,
            "error": error,
            "chat": chat_command(self.options, node) if done else None,
        }


def _state_after(error: TogiError) -> str:
    return "interrupted" if isinstance(error, Interrupted) else "failed"


def chat_command(options: Options, node: Node) -> str | None:
    """The command to chat with a stage's model, under the same overrides; None if its output is not a chat model, and
    for a trial, which the recipe's name does not lead to."""
    if not options.recipe or options.limit is not None or kinds_of(node.settings).get(MAIN) != "model":
        return None
    return shlex.join(["togi", "chat", options.recipe, node.name, *options.overrides])
