"""This process's memory in bytes: in use, at its peak, and still available.

It is the accelerator's memory if there is one, else the machine's, within the limits of control groups.
"""

import ctypes
import gc
from functools import lru_cache

import torch

from togi.train import machine


def used(device: torch.device) -> int:
    """The memory in use now."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else machine.status("VmRSS")


def at_rest(device: torch.device) -> int:
    """The memory without a stage's models: on an accelerator the memory in use now, else the memory in use at the first
    call, which must come before any model is loaded."""
    return used(device) if device.type == "cuda" else _program()


@lru_cache(maxsize=1)
def _program() -> int:
    return machine.status("VmRSS")


def give_back(device: torch.device) -> None:
    """Returns freed memory to the system."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    if device.type == "cuda":
        torch.cuda.empty_cache()


def begin_peak(device: torch.device, phase: str = "load") -> None:
    """Returns freed memory to the system, resets the peak if the system allows it, and begins the phase."""
    give_back(device)
    _reset(device)
    _phases.clear()
    _phases[phase] = 0
    _now[:] = [phase]


def enter(phase: str, device: torch.device) -> None:
    """Ends the current phase and begins or resumes another."""
    if _now == [phase]:
        return
    _note(device)
    _reset(device)
    _phases.setdefault(phase, 0)
    _now[:] = [phase]


def phases(device: torch.device) -> dict[str, int]:
    """The largest memory use of each phase since `begin_peak`, in order of first occurrence."""
    _note(device)
    return dict(_phases)


def peak(device: torch.device) -> int:
    """The largest memory use since `begin_peak`."""
    return max([_newest(device), *_phases.values()])


_phases: dict[str, int] = {}
_now: list[str] = []


def _note(device: torch.device) -> None:
    for phase in _now:
        _phases[phase] = max(_phases[phase], _newest(device))


def _newest(device: torch.device) -> int:
    """The peak since the last reset."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else machine.status("VmHWM")


def _reset(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        (machine.PROC / "self/clear_refs").write_text("5")
    except OSError:  # not available on every system; the peak is then that of the whole process lifetime
        return


def available(device: torch.device) -> int:
    """The memory that this process may still allocate."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return machine.available()


def total(device: torch.device) -> int:
    """All memory of an accelerator."""
    return int(torch.cuda.get_device_properties(device).total_memory)
