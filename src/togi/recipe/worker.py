"""The worker process, one rank of a stage or the only one: does stages in the environment that training needs.

It reads commands as JSON lines from standard input and answers with JSON lines on the descriptor that standard output
had at its start. Output that a library prints goes to standard error instead, and foreign code that reads or closes
standard input does not affect the commands. When the parent dies, that input closes, and the worker ends at once:
finished work is on disk. Of several ranks, only rank 0 reports progress and writes files; the others report only how
they ended.
"""

import faulthandler
import importlib
import json
import logging
import os
import platform
import queue
import re
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from togi import __version__
from togi.client.endpoint import Budget, Endpoint, Price
from togi.core.errors import TogiError, kind_name
from togi.core.files import install_fault, read_cache, write_json
from togi.core.locks import take, wait
from togi.core.process import STOPPING
from togi.core.ranks import ALONE, Ranks
from togi.core.settings import ingredients, references
from togi.core.sources import ModelSource
from togi.core.strangers import describe
from togi.recipe.cluster import own_signals
from togi.recipe.executors import RowsAndModels
from togi.recipe.faults import TOLD, told
from togi.recipe.greeting import FOLLOW, LAST, greet, loss
from togi.recipe.guard import hold_sources, learn_known, source_change
from togi.recipe.pool import PoolShards
from togi.recipe.store import TRASH, begin, clear_leftovers, is_done, mark_done, remove, rename_away
from togi.stages.base import StageSettings, StageType
from togi.stages.context import Context, Control, Resolved, hold_numerics
from togi.stages.model_shards import any_may_spread
from togi.stages.shards import SerialShards
from togi.stages.table import STAGES, kinds_taken

SPENT = "spent.json"
LAST_WORDS = ("done", "failed", "crashed")
LONGEST = 20_000  # characters of a message
LIBRARIES = ("torch", "transformers", "numpy", "peft")
log = logging.getLogger("togi")
log.setLevel(logging.INFO)
logging.getLogger("bitsandbytes").addHandler(logging.StreamHandler())  # to worker.log


class StageLogHandler(logging.Handler):
    """Forwards log messages of library code, such as the conversion of weights, to the running stage."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context

    def emit(self, record: logging.LogRecord) -> None:
        self.context.log(record.getMessage())


def main() -> None:
    """Reads commands until standard input closes."""
    if "TOGI_CRASH_AT" in os.environ:
        install_fault(os.environ["TOGI_CRASH_AT"])
    faulthandler.enable()  # so that a crash inside a library leaves a traceback in the log
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    os.dup2(2, 1)
    orders = take_input()
    rank, size, meet_at, local = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    control = Control(send=partial(_send, answers, threading.Lock(), rank))
    for number in STOPPING:  # the parent has blocked them until here, so none is lost and none ends this process
        signal.signal(number, lambda *_: setattr(control, "stop", True))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    commands: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(orders, commands), daemon=True).start()
    meet = cache(partial(_meet, rank, size, meet_at, local))
    while True:
        command = commands.get()
        found = _obey(command, control, meet)
        if found is not None:
            control.send({"event": "done", "stage": command["name"], "found": found})


def _obey(command: dict[str, Any], control: Control, meet: Callable[[], Ranks]) -> bool | None:
    """Does a stage, or another order of the parent; returns whether another run had done it. Returns None if it failed,
    after reporting the failure."""
    sys.excepthook = crash = partial(_crash, control, command)
    control.give_up = lambda error: crash(type(error), error, None)
    try:
        ranks = meet()
        sys.excepthook = crash  # torch.distributed has replaced it
        order = command.get("order")
        if order is None:
            return do_stage(command, control, _taking_part(command, ranks))
        if order == LAST:
            ranks.tell(None)
        else:
            greet(ranks, command)
        while order == FOLLOW and (heard := ranks.hear(lambda: control.stop)) is not None:
            if _obey(heard, control, lambda: ranks) is None:
                return None
        return False
    except TOLD as error:
        failure = told(error, command) or loss(error, command)
        if failure is None:
            raise
        _fail(control, command, failure)
        return None


def _taking_part(command: dict[str, Any], ranks: Ranks) -> Ranks:
    """The ranks that do the stage: all of them, in which case rank 0 sends them the order, or only this process."""
    if command["ranks"] == 1:
        return ALONE
    if ranks.first:
        ranks.tell(command)
    return ranks


def take_input() -> TextIO:
    """Returns the stream of orders and makes standard input empty, because `exit()` in foreign code closes it."""
    orders = os.fdopen(os.dup(0), encoding="utf-8")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    return orders


def _listen(orders: TextIO, commands: "queue.Queue[dict[str, Any]]") -> None:
    """Queues the parent's commands; ends this process when the parent is gone, even in the middle of a line."""
    for line in orders:
        if not line.endswith("\n"):
            break
        commands.put(json.loads(line))
    os._exit(0)


def _send(answers: TextIO, one_at_a_time: threading.Lock, rank: int, event: dict[str, Any]) -> None:
    if rank != 0 and event["event"] not in LAST_WORDS:
        return
    try:
        with one_at_a_time:
            answers.write(json.dumps(event, ensure_ascii=False) + "\n")
    except BrokenPipeError:
        os._exit(0)  # the parent is gone


def _fail(control: Control, command: dict[str, Any], error: TogiError) -> None:
    """Reports the error that ended the stage, with the stage's name; its traceback goes to the log."""
    message = str(error)
    if not re.search(rf"\bstages?[ .]{re.escape(command['name'])}\b", message):
        message = f"stage {command['name']}: {message}"
    if len(message) > LONGEST:
        message = f"{message[:LONGEST]} ... ({len(message) - LONGEST} more characters are in the worker's log)"
    failed = {"event": "failed", "stage": command["name"], "kind": kind_name(error), "message": message}
    control.send({**failed, "when": time.time()})
    with suppress(OSError):  # the disk may be full
        traceback.print_exception(error)


def _crash(
    control: Control, command: dict[str, Any], kind: type[BaseException], error: BaseException, trace: Any
) -> None:
    """Reports that this rank ends, before others can report it missing; the traceback goes to the log."""
    try:
        if (failure := told(error, command)) is not None:  # such as a full disk, reported by a library
            _fail(control, command, failure)
        else:
            control.send({"event": "crashed", "error": describe(error), "when": time.time()})
            sys.__excepthook__(kind, error, trace)
        sys.stderr.flush()
    finally:
        os._exit(1)  # an orderly end may wait for ranks that wait for this one


def _meet(rank: int, size: int, meet_at: str, local: int) -> Ranks:
    """The ranks of a stage, after all of them have met."""
    return ALONE if size == 1 else importlib.import_module("togi.train.ranks").join(rank, size, meet_at, local)


def do_stage(command: dict[str, Any], control: Control, ranks: Ranks) -> bool:
    """Does a stage; returns whether another run had done it meanwhile."""
    folder = Path(command["folder"])
    stage = STAGES[command["settings"]["type"]]
    settings = stage.settings.model_validate(command["settings"])
    context = Context(
        name=command["name"],
        folder=folder,
        cache=Path(command["cache"]),
        seed=command["seed"],
        inputs={ref: resolved_from_json(value) for ref, value in command["inputs"].items()},
        control=control,
        compute=command["compute"],
        threads=command["threads"],
        ranks=ranks,
        recipe=command["recipe"],
        fingerprint=command["fingerprint"],
        track=tuple(command["track"]),
        takers=kinds_taken(),
        reasons=stage.reasons,
        services=command["services"],
        apart=apart(settings),
        adds_up=stage.adds_up,
        run=command["run"],
    )
    log.handlers = [StageLogHandler(context)]
    context.check_stop()
    with context.leaving, _turn(context, command):
        if ranks.on_first_rank(lambda: is_done(folder)):
            return True
        start = time.perf_counter()
        work = importlib.import_module(stage.work)
        job = None if stage.job is None else stage.job(settings)
        learn_known(command["reads"])
        size = ranks.size if stage.computes(settings) else None
        before = ranks.on_first_rank(lambda: _prepare(folder, command, size, job is not None))
        try:
            if job is not None:
                fitting = importlib.import_module("togi.stages.training.memory_work")
                fit = fitting.MemoryBudget(job, context)
                with _shards(settings, context):
                    work.run(fit.settings, context)
                fit.finish()
            else:
                with _shards(settings, context, command["on"], stage):
                    work.run(settings, context)
            ranks.on_first_rank(lambda: _finish(context, command, before + time.perf_counter() - start))
        finally:
            if ranks.first:
                _leave(context, command, before + time.perf_counter() - start)
    return False


def apart(settings: StageSettings) -> tuple[str, ...]:
    """The references to records that do not become part of the stage's output."""
    used = ingredients(settings)
    return tuple(ref for _, ref in references(settings) if ref not in used)


@contextmanager
def _shards(
    settings: StageSettings, context: Context, cluster: str = "", stage: StageType | None = None
) -> Iterator[None]:
    """Lets several processes do the shards of the stage: those of a cluster, or the number in its settings."""
    rows: Any = None
    models: Any = None
    if cluster and stage is not None:
        rows, models = _on_cluster(cluster, context, stage)
    if rows is None and settings.pool > 1:
        rows = PoolShards(settings.pool)
    if rows is not None or models is not None:
        context.shards = RowsAndModels(rows or SerialShards(), models or SerialShards())
    with ExitStack() as ends:
        for made in filter(None, (rows, models)):
            ends.enter_context(closing(made))
        yield


def _on_cluster(cluster: str, context: Context, stage: StageType) -> tuple[Any, Any]:
    """The executors on a cluster of the stage's shards without a model, and of those that one computes; None where the
    stage has no shards that a cluster can do."""
    found: list[Any] = [None, None]
    with own_signals():
        if stage.rows:
            work = importlib.import_module("togi.recipe.cluster_shards_work")
            found[0] = work.RayShards(cluster, context.cache, context)
        if stage.model_rows and any_may_spread(context):
            work = importlib.import_module("togi.recipe.cluster_models_work")
            found[1] = work.RayModels(cluster, context.cache, context)
    return found[0], found[1]


@contextmanager
def _turn(context: Context, command: dict[str, Any]) -> Iterator[None]:
    """Locks the stage's folder, waiting with messages while another run holds it. All ranks wait together, so that a
    request to stop ends the wait."""
    held: list[TextIO] = []

    def free() -> bool:
        held.extend(filter(None, [take(context.folder, command["pid"])]))
        return bool(held)

    if not context.ranks.on_first_rank(free):
        for _ in wait(context.folder, f"stage {context.name}", context.log):
            context.check_stop()
            if context.ranks.on_first_rank(free):
                break
    try:
        yield
    finally:
        for handle in held:
            handle.close()


def _prepare(folder: Path, command: dict[str, Any], size: int | None, trains: bool) -> float:
    """Prepares the folder to begin or continue; returns the seconds that earlier, interrupted runs of the stage
    took. `size` is the number of ranks; None for a stage that does not compute."""
    hold_sources(command["name"], command["reads"])
    if size is not None:
        _check_numerics(folder, command, size)
    clear_leftovers(folder)
    if not trains:  # its alarms will be raised again; a training stage cuts them back to its checkpoint
        (folder / "alarms.jsonl").unlink(missing_ok=True)
    begin(folder, command["made_from"])
    if read_cache(folder / "settings.json") is None:
        write_json(folder / "settings.json", command["settings"])
    return _spent(folder)


def _finish(context: Context, command: dict[str, Any], seconds: float) -> None:
    context.finish()
    hold_sources(command["name"], command["reads"])
    mark_done(context.folder, command["fingerprint"], seconds, command["made_from"])
    shutil.rmtree(context.folder / "checkpoints", ignore_errors=True)


def _leave(context: Context, command: dict[str, Any], seconds: float) -> None:
    """Records the time that the work took. Discards unfinished work if a file that it reads has changed: it would
    continue from that work if the file were restored."""
    if not is_done(context.folder) and source_change(command["reads"]) is not None:
        context.log("a file that this stage reads was changed during the run: its unfinished work is discarded")
        remove(rename_away(context.folder, TRASH))
    else:
        with suppress(OSError):  # the error that ended the stage matters more
            write_json(context.folder / SPENT, {"seconds": seconds})


def _spent(folder: Path) -> float:
    """Seconds that earlier, interrupted runs of this stage took."""
    found = read_cache(folder / SPENT, {"seconds": int | float})
    return float(found["seconds"]) if found else 0.0


def resolved_from_json(value: dict[str, Any]) -> Resolved:
    source = value["source"] and ModelSource.from_json(value["source"])
    folder = Path(value["folder"]) if value["folder"] else None
    return Resolved(value["kind"], source, folder, value["device"], value["endpoint"] and _endpoint(value["endpoint"]))


def _endpoint(value: dict[str, Any]) -> Endpoint:
    parts = {"urls": tuple(value["urls"]), "budget": Budget(**value["budget"]), "price": Price(**value["price"])}
    return Endpoint(**value | parts)


def resolved_to_json(value: Resolved) -> dict[str, Any]:
    """The input of `resolved_from_json`."""
    source = asdict(value.source) if value.source else None
    folder = str(value.folder) if value.folder else None
    endpoint = asdict(value.endpoint) if value.endpoint else None
    return {"kind": value.kind, "source": source, "folder": folder, "device": value.device, "endpoint": endpoint}


def _check_numerics(folder: Path, command: dict[str, Any], size: int) -> None:
    """Raises StageError unless an unfinished stage continues with the numerics that it began with: other libraries give
    other bits."""
    micro_batch = command["settings"].get("micro_batch_tokens")
    now = {**numerics(command["threads"]), "micro_batch_tokens": micro_batch, "compute": command["compute"]}
    now["processes"] = size
    hold_numerics(folder, now, anew=command["accept_numerics"])


def numerics(threads: int) -> dict[str, Any]:
    """The facts that bits depend on in addition to settings and data."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {"togi": __version__, **versions, "machine": platform.machine(), "cpu": _cpu(), "threads": threads}


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{model} ({' '.join(known)})"


if __name__ == "__main__":
    main()
