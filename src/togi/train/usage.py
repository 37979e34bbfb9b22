"""How much memory this process uses, used at most, and may still take, in bytes.

It is the accelerator's where there is one, else the machine's, limits of control groups included.
"""

import ctypes
import gc
from functools import lru_cache

import torch

from togi.train import machine


def used(device: torch.device) -> int:
    """What this process holds now."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else machine.status("VmRSS")


def at_rest(device: torch.device) -> int:
    """What there is without the models of a stage: on an accelerator now, else what the program itself held when this
    was first asked, which must be before any model is loaded."""
    return used(device) if device.type == "cuda" else _program()


@lru_cache(maxsize=1)
def _program() -> int:
    return machine.status("VmRSS")


def begin_peak(device: torch.device) -> None:
    """Gives back what was freed, and forgets the peak so far, where the system allows it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        (machine.PROC / "self/clear_refs").write_text("5")
    except OSError:  # not on every system; the peak is then that of the whole life of the process
        return


def peak(device: torch.device) -> int:
    """The most that this process held since `begin_peak`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else machine.status("VmHWM")


def available(device: torch.device) -> int:
    """What this process may still take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return machine.available()
