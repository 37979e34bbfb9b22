"""The worker process, one rank of a stage or the only one: does stages in the environment that training needs.

It is told what to do by JSON lines on standard input and answers with JSON lines on the descriptor that standard output
had at its start; anything that a library prints goes to standard error instead, and what a stranger's code reads from
standard input, or closes, is nothing of ours. When the parent's end of that input closes, because it died, the worker
ends at once: everything finished is on disk. Of several ranks, only rank 0 tells how the work goes and
writes files; the others tell how they ended.
"""

import errno
import importlib
import json
import logging
import os
import platform
import queue
import shutil
import signal
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from togi import __version__
from togi.core.errors import TogiError
from togi.core.extras import missing
from togi.core.files import install_fault, read_cache, write_json
from togi.core.ranks import ALONE, Ranks
from togi.core.sources import ModelSource
from togi.recipe.guard import hold_sources, learn_known, source_change
from togi.recipe.store import TRASH, begin, clear_leftovers, is_done, locked, mark_done, remove, rename_away
from togi.stages.base import Context, Control, Resolved, hold_numerics
from togi.stages.resources import Resources
from togi.stages.table import STAGES

SPENT = "spent.json"
LAST_WORDS = ("done", "failed", "crashed")
LIBRARIES = ("torch", "transformers", "numpy", "peft")
log = logging.getLogger("togi")
log.setLevel(logging.INFO)


class Told(logging.Handler):
    """What units say that know of no stage, such as that weights are being converted, is told as the stage's own."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context

    def emit(self, record: logging.LogRecord) -> None:
        self.context.log(record.getMessage())


def main() -> None:
    """Reads commands until standard input closes."""
    if "TOGI_CRASH_AT" in os.environ:
        install_fault(os.environ["TOGI_CRASH_AT"])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    orders = _take_input()
    rank, size, rendezvous = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    control = Control(send=lambda event: _send(answers, event, rank))
    sys.excepthook = crash = partial(_crash, control)
    signal.signal(signal.SIGTERM, lambda *_: setattr(control, "stop", True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the parent, which tells us
    commands: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(orders, commands), daemon=True).start()
    ranks: Ranks | None = None
    while True:
        command = commands.get()
        try:
            ranks = ranks or _meet(rank, size, rendezvous)
            sys.excepthook = crash  # torch.distributed has put its own there
            _do(command, control, ranks)
            control.send({"event": "done", "stage": command["name"]})
        except TogiError as error:
            _fail(control, command, type(error).__name__, str(error))
        except ModuleNotFoundError as error:
            found = missing(error)
            if found is None:
                raise
            _fail(control, command, type(found).__name__, f"stage {command['name']}: {found}")
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            message = (
                f"stage {command['name']}: the disk is full ({error.filename or 'while writing'}); nothing finished "
            )
            _fail(control, command, "StageError", message + "is lost: free some space and run the same command again")


def _take_input() -> TextIO:
    """The stream of orders; standard input is empty from here on, since `exit()` of a stranger's code closes it."""
    orders = os.fdopen(os.dup(0), encoding="utf-8")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    return orders


def _listen(orders: TextIO, commands: "queue.Queue[dict[str, Any]]") -> None:
    for line in orders:
        commands.put(json.loads(line))
    os._exit(0)  # the parent is gone


def _send(answers: TextIO, event: dict[str, Any], rank: int) -> None:
    if rank == 0 or event["event"] in LAST_WORDS:
        answers.write(json.dumps(event, ensure_ascii=False) + "\n")


def _fail(control: Control, command: dict[str, Any], kind: str, message: str) -> None:
    failed = {"event": "failed", "stage": command["name"], "kind": kind, "message": message}
    control.send({**failed, "when": time.monotonic()})


def _crash(control: Control, *error: Any) -> None:
    """Says that this rank ends, before others can say that they miss it; the traceback goes to the log."""
    control.send({"event": "crashed", "when": time.monotonic()})
    sys.__excepthook__(*error)
    sys.stderr.flush()
    os._exit(1)  # an orderly end may wait for ranks that wait for this one


def _meet(rank: int, size: int, rendezvous: str) -> Ranks:
    """The ranks of a stage, once all of them are there."""
    return ALONE if size == 1 else importlib.import_module("togi.train.ranks").join(rank, size, rendezvous)


def _do(command: dict[str, Any], control: Control, ranks: Ranks) -> None:
    folder = Path(command["folder"])
    stage = STAGES[command["settings"]["type"]]
    settings = stage.settings.model_validate(command["settings"])
    with locked(folder) if ranks.first else nullcontext():
        if ranks.once(lambda: is_done(folder)):
            return
        inputs = {ref: _resolved(value) for ref, value in command["inputs"].items()}
        context = Context(
            name=command["name"],
            folder=folder,
            cache=Path(command["cache"]),
            seed=command["seed"],
            inputs=inputs,
            control=control,
            compute=command["compute"],
            ranks=ranks,
            recipe=command["recipe"],
            fingerprint=command["fingerprint"],
            track=tuple(command["track"]),
        )
        log.handlers = [Told(context)]
        start = time.perf_counter()
        work = importlib.import_module(stage.work)
        trains = isinstance(settings, Resources)
        learn_known(command["reads"])
        before = ranks.once(lambda: _prepare(folder, command, ranks.size, trains))
        try:
            if trains:
                fitting = importlib.import_module("togi.stages.fitting_work")
                fit = fitting.Fit(settings, context)
                work.run(fit.settings, context)
                fit.finish()
            else:
                work.run(settings, context)
            ranks.once(lambda: _finish(context, command, before + time.perf_counter() - start))
        finally:
            if ranks.first:
                _leave(context, command, before + time.perf_counter() - start)


def _prepare(folder: Path, command: dict[str, Any], size: int, trains: bool) -> float:
    """Makes the folder ready to begin or to go on; the seconds that earlier, interrupted runs of the stage took."""
    hold_sources(command["name"], command["reads"])
    _check_numerics(folder, command, size)
    clear_leftovers(folder)
    if not trains:  # its alarms are told again; a training cuts them back to its checkpoint
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
    """Notes the time that the work took. What was begun while a file that it reads was changed is forgotten: it would
    be taken up again once the file is what it was."""
    if not is_done(context.folder) and source_change(command["reads"]) is not None:
        context.log("a file that this stage reads was changed while the run went on: what was begun is forgotten")
        remove(rename_away(context.folder, TRASH))
    else:
        write_json(context.folder / SPENT, {"seconds": seconds})


def _spent(folder: Path) -> float:
    """Seconds that earlier, interrupted runs of this stage took."""
    found = read_cache(folder / SPENT, {"seconds": int | float})
    return float(found["seconds"]) if found else 0.0


def _resolved(value: dict[str, Any]) -> Resolved:
    source = value["source"] and ModelSource(**value["source"] | {"tokens": tuple(value["source"]["tokens"])})
    return Resolved(value["kind"], source, Path(value["folder"]) if value["folder"] else None)


def resolved_to_json(value: Resolved) -> dict[str, Any]:
    """What `_resolved` reads."""
    source = asdict(value.source) if value.source else None
    return {"kind": value.kind, "source": source, "folder": str(value.folder) if value.folder else None}


def _check_numerics(folder: Path, command: dict[str, Any], size: int) -> None:
    """An unfinished stage goes on only under the numerics it began with: other libraries give other bits."""
    micro_batch = command["settings"].get("micro_batch_tokens")
    now = {**numerics(command["threads"]), "micro_batch_tokens": micro_batch, "compute": command["compute"]}
    now["processes"] = size
    hold_numerics(folder, now, anew=command["accept_numerics"])


def numerics(threads: int) -> dict[str, Any]:
    """What bits depend on besides settings and data."""
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
