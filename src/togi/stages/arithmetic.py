"""The arithmetic of a worker, chosen once per machine and kept in the store, so that results stay the same bits."""

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from togi import kernels
from togi.core.errors import InputError
from togi.core.files import read_cache, write_json
from togi.core.ranks import Ranks
from togi.core.seeds import digest
from togi.core.sources import ModelSource
from togi.model.numerics import Numerics, apply_numerics, choose_numerics, processor
from togi.objectives.base import Output
from togi.stages.context import Context, hold_numerics
from togi.train import usage
from togi.train.precision import in_bfloat16

Inputs = TypeVar("Inputs")


def device() -> torch.device:
    """The accelerator if there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model_device(source: ModelSource) -> torch.device:
    """The device of a model that is not trained: that of the recipe, else the default device.

    Raises InputError for a device that this machine does not have.
    """
    if not source.device:
        return device()
    found = torch.device(source.device)
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"{source.name}: its device is {source.device}, but this machine has {_devices()}; change `device` under "
            "models:, or run on a machine that has it"
        )
    return found


def _devices() -> str:
    return ", ".join(["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))])


def use_threads(count: int) -> None:
    """Sets the number of threads of this process, on which the bits of results depend."""
    torch.set_num_threads(count)


def arithmetic(context: Context) -> Numerics:
    """Applies this machine's arithmetic and returns it; logs it once per worker and records it with every stage that
    computes.

    Raises StageError for an unfinished stage that began with other arithmetic.
    """
    found, fresh = (
        chosen_numerics(context.cache, context.compute, context.ranks),
        chosen_numerics.cache_info().hits == 0,
    )
    if fresh:
        context.log(found.describe())
        if device().type == "cpu":
            context.log(_described(kernels.report()))
    noted = {name: getattr(found, name) for name in ("device", "fp32_mode", "compute_dtype")}
    noted["compiled"] = kernels.identity() if device().type == "cpu" else "nothing"
    context.ranks.on_first_rank(lambda: hold_numerics(context.folder, {**noted, "torch_threads": found.threads}))
    return found


def _described(report: Mapping[str, str]) -> str:
    """One line on the implementation of each part of a decoder."""
    by_torch = [f"{part} by {how}" for part, how in report.items() if how != "compiled"]
    compiled = [part for part, how in report.items() if how == "compiled"]
    return f"compiled kernels: {', '.join(compiled) or 'none'}" + "".join(f"; {each}" for each in by_torch)


def in_machine_type(forward: Callable[[Inputs], Output], context: Context) -> Callable[[Inputs], Output]:
    """`forward` with matrix products in the type that is fast on this machine; weights and gradients stay float32."""
    wide = arithmetic(context).dtype == torch.float32
    return forward if wide else in_bfloat16(forward, device().type)


@lru_cache(maxsize=1)
def chosen_numerics(cache: Path, compute: str, ranks: Ranks) -> Numerics:
    usage.at_rest(device())  # no model is loaded yet, because each load asks for the arithmetic first
    if compute == "auto":
        found = ranks.on_first_rank(lambda: _measured(cache))
    else:
        base = Numerics(
            device=device().type,
            fp32_mode="default",
            compute_dtype="float32",
            threads=torch.get_num_threads(),
            cpu=processor(),
        )
        found = base if compute == "float32" else replace(base, compute_dtype="bfloat16")
    apply_numerics(found)
    return found


def _measured(cache: Path) -> Numerics:
    """The choice of an earlier run on the same machine with the same number of threads, else a new measurement. If runs
    measure at the same time, the first to finish chooses: replacing the choice of a run would stop it from continuing.
    """
    mark = digest([processor(), device().type, torch.get_num_threads(), torch.__version__])[:16]
    path = cache / f"arithmetic-{mark}.json"
    known = _known(path)
    if known is None:
        path.unlink(missing_ok=True)  # damaged, or of an older release
        measured = asdict(choose_numerics(device().type))
        _write_first(path, measured)
        known = _known(path) or measured
    return Numerics(**known)


def _known(path: Path) -> dict[str, Any] | None:
    found = read_cache(path, {"compute_dtype": str, "threads": int})
    return found if found and found.keys() == {field.name for field in fields(Numerics)} else None


def _write_first(path: Path, value: Any) -> None:
    """Writes the file, unless another run has written it meanwhile."""
    own = path.with_name(f"{path.stem}-{os.getpid()}-{threading.get_ident()}.json")
    write_json(own, value)
    try:
        os.link(own, path)
    except FileExistsError:
        return  # another run has written it
    except OSError:  # a file system without links
        os.replace(own, path)
    finally:
        own.unlink(missing_ok=True)
