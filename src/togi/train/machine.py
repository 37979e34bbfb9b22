"""The machine's free memory in bytes, within the limits of control groups. Importing this file loads no torch."""

from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
ACCELERATOR = Path("/dev/nvidia0")


def has_accelerator() -> bool:
    """Whether the machine has an accelerator. Only the accelerator's library knows its memory."""
    return ACCELERATOR.exists()


def available() -> int:
    """The memory that this process may still allocate."""
    return min([field(PROC / "meminfo", "MemAvailable") * 1024, *_cgroup_rests()])


def status(name: str) -> int:
    """A size of this process that the kernel reports."""
    return field(PROC / "self/status", name) * 1024


def field(path: Path, name: str) -> int:
    """The number of the field `name` in one of the kernel's tables."""
    lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def _cgroup_rests() -> list[int]:
    """The free memory below each control group limit of this process; droppable file pages count as free."""
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
    taken = int((place / usage).read_text(encoding="ascii")) - field(place / "memory.stat", droppable)
    return [max(0, int(most) - taken)]
