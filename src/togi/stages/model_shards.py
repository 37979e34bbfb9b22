"""Units of work that a local model computes, as shards, so that a cluster can do them.

A shard is one unit: the batch that the stage itself would compute at once. The batch, the threads, the arithmetic and
the device decide the bits, and a shard carries the first two: the number of threads is that of the run, wherever the
shard is done. The arithmetic and the device come back with the shard's value, and must agree with the stage's own
record of its numerics. A process keeps its models for later shards.

A stage with such shards names, under `model_rows` of its type, a module without heavy imports, with
`value_of(settings, shard, more)`, which returns what `computed` returns.
"""

import importlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from togi.core.errors import InputError, RecipeError
from togi.core.files import read_object
from togi.core.record_streams import record_writer
from togi.core.records import Record
from togi.core.seeds import digest
from togi.core.settings import Ref
from togi.core.sources import ModelSource, fingerprint, lineage, model_files
from togi.stages import endpoints
from togi.stages.context import Context, Control, Resolved, hold_numerics
from togi.stages.shards import Shard, ShardTask

KEPT = 4
"""The most models that a process keeps for later shards, as `stages/models.py` does."""

ABSENT = (
    "every machine that does shards needs the models of the recipe: install the same packages on each, and put folders "
    "on a file system that all of them mount at the same path"
)


# --- where the run runs -----------------------------------------------------------------------------------------------


def is_spread(context: Context, ref: Ref) -> bool:
    """Whether other processes do the shards of a model."""
    return context.shards.apart and _may_spread(context, ref)


def any_may_spread(context: Context) -> bool:
    """Whether other processes could do the shards of any model among the inputs."""
    models = [Ref(ref) for ref, target in context.inputs.items() if target.kind in ("model", "scorer")]
    return any(_may_spread(context, ref) for ref in models)


def _may_spread(context: Context, ref: Ref) -> bool:
    """Whether a model is neither on a server nor on a certain card of this machine, such as `device: cuda:1`. Where
    another process has one card, that is cuda:0."""
    here = context.inputs[ref].endpoint is None
    return here and context.model(ref).device.partition(":")[2] in ("", "0")


def with_model(task: ShardTask, context: Context, ref: Ref, use: str, **options: Any) -> ShardTask:
    """A shard of rows that the model `ref` computes. `use` names the function in `stages/endpoints` that gives it (such
    as `generator`), and `options` are its options. Raises InputError if the model's files cannot be used."""
    source = context.model(ref)
    importlib.import_module("togi.model.load").inspect(source, context.cache)  # one process converts its weights
    needs = {
        "use": use,
        "source": asdict(source),
        "mark": _mark(source),
        "cache": str(context.cache),
        "compute": context.compute,
        "threads": context.threads,
        "options": options,
    }
    more = {**(task.more or {}), "model": needs}
    return replace(task, more=more, threads=context.threads, device=source.device)


def found_by(context: Context, tasks: Sequence[ShardTask]) -> Iterator[Any]:
    """Yields what each shard found. Logs what their processes said, each line once.

    Raises StageError if a shard was computed under other numerics than earlier ones.
    """
    told: dict[str, None] = {}
    for value in context.shards.values(tasks):
        hold_numerics(context.folder, value["held"])
        for line in value["said"]:
            if line not in told:
                context.log(line)
            told[line] = None
        yield value["found"]


def asked_elsewhere(
    context: Context, task: ShardTask, unit: str, count: int, kind: str, asked: Iterable[Sequence[Record]]
) -> Iterator[Any]:
    """Yields what other processes found for those of the `count` units that are left, in order. `asked` gives what the
    model is asked in each unit, as records of `kind`. While they are needed, they are in a file in the stage's folder,
    which all machines see. Raises what `found_by` does."""
    left = dict.fromkeys(context.missing_units(count, unit))
    if not left:
        return
    path = context.folder / f".asked-{unit}.tmp"  # a continued stage removes what a kill left behind
    tasks: list[ShardTask] = []
    try:
        with record_writer(path, kind) as writer:
            for number, records in enumerate(asked):
                if number in left:
                    first = writer.count
                    tasks.append(replace(task, source=str(path), number=number, first=first, count=len(records)))
                    writer.write(records)
        yield from found_by(context, tasks)
    finally:
        path.unlink(missing_ok=True)


def _mark(source: ModelSource) -> str:
    """Identifies a model by the versions of packages and the names and sizes of files, without reading its weights."""
    versions = [fingerprint(each) for each in lineage(source) if each.kind != "path"]
    return digest([versions, [[path.name, path.stat().st_size] for path in model_files(source)]])[:16]


# --- where a shard is done --------------------------------------------------------------------------------------------


class Kept(NamedTuple):
    """A model that this process keeps, the numerics under which it computes, and the lines logged as it was loaded."""

    model: Any
    held: dict[str, Any]
    said: list[str]


def computed(ref: Ref, shard: Shard, more: dict[str, Any], work: Callable[[Any], Any]) -> dict[str, Any]:
    """The value of a shard: `found` is the result of `work`, which gets the model `ref`; `held` are the numerics,
    `said` lines for the log. Raises InputError if the model cannot be loaded here, and what `work` raises."""
    kept = _kept(ref, shard.stage, json.dumps(more["model"], sort_keys=True))
    return {"found": work(kept.model), "held": kept.held, "said": kept.said}


@lru_cache(maxsize=KEPT)
def _kept(ref: Ref, stage: str, needs: str) -> Kept:
    given, said = json.loads(needs), _Lines()
    source = ModelSource.from_json(given["source"])
    log = logging.getLogger("togi")
    log.addHandler(said)
    try:
        importlib.import_module("togi.stages.arithmetic").use_threads(given["threads"])
        with TemporaryDirectory(prefix="togi-") as folder:
            context = Context(
                name=stage,
                folder=Path(folder),
                cache=Path(given["cache"]),
                seed=0,
                inputs={ref: Resolved("model", source)},
                control=Control(send=said.take),
                compute=given["compute"],
                threads=given["threads"],
            )
            model = getattr(endpoints, given["use"])(context, ref, **given["options"])
            _refuse_other(source, given["mark"])
            return Kept(model, read_object(context.folder / "numerics.json"), said.lines)
    except (InputError, RecipeError) as error:
        raise type(error)(f"{ref}: {error}; {ABSENT}") from None
    finally:
        log.removeHandler(said)


def _refuse_other(source: ModelSource, mark: str) -> None:
    """Raises InputError if this machine has another model under the same name."""
    if _mark(source) != mark:
        raise InputError(f"{source.name} has other files or another version here than where the run runs")


class _Lines(logging.Handler):
    """Collects messages that a stage would log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def take(self, event: dict[str, Any]) -> None:
        """Takes the message of an event, if it is one for the log."""
        if event["event"] == "log":
            self.lines.append(event["message"])
