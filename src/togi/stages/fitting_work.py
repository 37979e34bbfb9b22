"""Fits a training stage into the memory at hand: predicts its peak, chooses the micro-batch, measures afterwards.

What was predicted, chosen and measured stands in memory.json in the stage's folder. The choice is made once: a stage
that goes on after a kill cuts its steps as before, so that it ends with the same bits.
"""

from typing import Any, TypeVar

from togi.core.errors import InputError, StageError
from togi.core.files import read_json, read_lines, write_json
from togi.model.load import load_config
from togi.model.memory import Job, Shape, largest, predict, training_flops
from togi.stages.arithmetic import arithmetic, device
from togi.stages.base import Context
from togi.stages.fixed import Optimisation
from togi.stages.resources import job_of
from togi.stages.train_grpo import other_models
from togi.train import usage

USABLE = 0.9  # of what is free: allocators leave gaps
FILE = "memory.json"

Chosen = TypeVar("Chosen", bound=Optimisation)


def begin(settings: Chosen, context: Context) -> Chosen:
    """`settings` with `auto` decided; from now on the peak is measured.

    Raises StageError where nothing fits, InputError for `auto` where the model's sizes are not known.
    """
    where = device()
    path = context.folder / FILE
    usage.begin_peak(where)
    found: dict[str, Any] = {"used_before": usage.used(where)}
    tokens = settings.micro_batch_tokens
    try:
        # one after the other: the first may convert the weights of a package, once
        shape = Shape.of(context.ranks.in_turn(lambda: load_config(context.model(settings.init), context.cache)))
    except InputError as error:
        if tokens == "auto":
            raise
        context.log(f"peak memory is not predicted: {error}")
    else:
        products = arithmetic(context).compute_dtype
        job = job_of(settings, products, cuda=where.type == "cuda")
        beside = other_models(settings, shape, products)
        if tokens == "auto":
            before = context.ranks.once(lambda: read_json(path) if path.exists() else {})
            tokens = before.get("micro_batch_tokens") or _most(settings, context, shape, job, beside)
        expected = predict(shape, job, tokens)
        found |= {"predicted": round(expected.peak + beside), "floor": round(expected.floor)}
        found["flops_per_token"] = training_flops(shape, job, 1, 1, 0)
    if context.ranks.first:
        write_json(path, {**found, "micro_batch_tokens": tokens})
    return settings.model_copy(update={"micro_batch_tokens": tokens})


def _most(settings: Optimisation, context: Context, shape: Shape, job: Job, beside: float) -> int:
    """The largest micro-batch that fits what is free now, with `beside` bytes of other models."""
    where = device()
    free = context.ranks.once(lambda: usage.available(where))
    room = USABLE * free / (settings.processes if where.type == "cpu" else 1)
    tokens = largest(shape, job, room - beside)
    if not tokens:
        need = predict(shape, job, 256).peak + beside
        raise StageError(
            f"stage {context.name}: no micro-batch fits: the smallest, 256 tokens, needs {gigabytes(need)}, and "
            f"{gigabytes(room)} may be used. Set activation_checkpointing: true, lora, or optimizer: adamw-8bit"
        )
    context.log(f"micro-batches of {tokens} tokens: the largest that fits {gigabytes(room)}")
    return tokens


def finish(context: Context) -> None:
    """Adds the measured peak to memory.json and tells it. On the CPU it is the growth of the process, which is less
    where an earlier stage of the same process left memory free; and more where data are large."""
    if not context.ranks.first:
        return
    found = read_json(context.folder / FILE)
    found["measured"] = usage.peak(device()) - found["used_before"]
    metrics = read_lines(context.folder / "metrics.jsonl")
    found["tokens"] = round(sum(line["tokens_per_second"] * line["time/update"] for line in metrics))
    found["flops"] = found["tokens"] * found.get("flops_per_token", 0.0)
    write_json(context.folder / FILE, found)
    told = f"peak memory: {gigabytes(found['measured'])} measured"
    if "predicted" in found:
        told += (
            f", {gigabytes(found['predicted'])} predicted for micro-batches of {found['micro_batch_tokens']} tokens; "
            f"{gigabytes(found['floor'])} of it are weights, gradients and optimiser"
        )
    context.log(told)


def gigabytes(size: float) -> str:
    """ "1.25 GB" """
    return f"{size / 1e9:.2f} GB"
