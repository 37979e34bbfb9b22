"""How much memory this process uses, used at most, and may still take, in bytes.

It is the accelerator's where there is one, else the machine's, limits of control groups included.
"""

from functools import lru_cache
from pathlib import Path

import torch

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def used(device: torch.device) -> int:
    """What this process holds now."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS")


def at_rest(device: torch.device) -> int:
    """What there is without the models of a stage: on an accelerator now, else what the program itself held when this
    was first asked, which must be before any model is loaded."""
    return used(device) if device.type == "cuda" else _program()


@lru_cache(maxsize=1)
def _program() -> int:
    return _status("VmRSS")


def begin_peak(device: torch.device) -> None:
    """Forgets the peak so far, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        (PROC / "self/clear_refs").write_text("5")
    except OSError:  # not on every system; the peak is then that of the whole life of the process
        return


def peak(device: torch.device) -> int:
    """The most that this process held since `begin_peak`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def available(device: torch.device) -> int:
    """What this process may still take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = _field(PROC / "meminfo", "MemAvailable") * 1024
    return min([free, *_cgroup_rests()])


def _status(name: str) -> int:
    return _field(PROC / "self/status", name) * 1024


def _field(path: Path, name: str) -> int:
    lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def _cgroup_rests() -> list[int]:
    """Of each limit above this process: what is left below it; file pages that can be dropped count as free."""
    rests = []
    for line in (PROC / "self/cgroup").read_text(encoding="ascii").splitlines():
        number, kinds, name = line.split(":", 2)
        if number == "0":
            root, names = CGROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            root, names = CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = root / name.lstrip("/")
        for place in [folder, *folder.parents]:
            if place.is_relative_to(root):
                rests += _rest(place, *names)
    return rests


def _rest(place: Path, limit: str, usage: str, droppable: str) -> list[int]:
    if not (place / limit).exists() or not (place / usage).exists():
        return []
    most = (place / limit).read_text(encoding="ascii").strip()
    if most == "max":
        return []
    taken = int((place / usage).read_text(encoding="ascii")) - _field(place / "memory.stat", droppable)
    return [max(0, int(most) - taken)]
