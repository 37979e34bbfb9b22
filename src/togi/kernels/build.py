"""Compiles the C files in `c/` for this processor, once, and keeps the library where only the user can write.

A library's name contains a fingerprint of its inputs and a hash of its content: `native-<fingerprint>-<sha256>.so`. If
the content does not match the name, the library is damaged and compiled again.
"""

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from togi.core.errors import InputError
from togi.core.files import sync_folder

log = logging.getLogger(__name__)

SOURCES = sorted((Path(__file__).parent / "c").glob("*.[ch]"))
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing", "-fopenmp", "-fPIC")
_NO_TILES = ("-mno-amx-tile", "-mno-amx-bf16", "-mno-amx-int8")
LEVELS = {"": (), "1": (), "avx512": _NO_TILES, "avx2": (*_NO_TILES, "-mno-avx512f")}
"""Values of TOGI_NATIVE, with the compiler options that limit the instruction sets of the library."""

STALE_SECONDS = 3600  # no compilation takes this long: a killed process left the folder
UNUSED_SECONDS = 30 * 24 * 3600  # libraries of other checkouts and compilers are kept this long


class BuildError(Exception):
    """There is no compiled library; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class Build:
    """A compiled library. `name` depends only on the sources, the compiler, the processor and the OpenMP library."""

    name: str
    library: ctypes.CDLL


def build(sizes: Sequence[str]) -> Build:
    """The library for this processor, limited to the instruction sets of TOGI_NATIVE; compiled if it does not exist.
    `sizes` are the compiler options that define constants.

    Raises BuildError if there is no compiler, no unique OpenMP library or no private folder, and InputError if
    TOGI_NATIVE is not in LEVELS.
    """
    level = os.environ.get("TOGI_NATIVE", "").lower()
    if level not in LEVELS:
        allowed = ", ".join(("0", *(name for name in LEVELS if name)))
        raise InputError(
            f"TOGI_NATIVE: found {level!r}; allowed: {allowed}; unset it to use all instructions of the processor"
        )
    command = [*shlex.split(os.environ.get("CC") or "cc"), *FLAGS, *LEVELS[level], *sizes]
    threads, compiler = threads_library(), command[0]
    if threads is None:
        raise BuildError("torch's libgomp, whose threads the kernels must share, could not be identified")
    if shutil.which(compiler) is None:
        raise BuildError(f"the C compiler {compiler} was not found; install gcc, or set CC to the path of a compiler")
    try:
        name = f"native-{_fingerprint(command, threads)}"
        folder = _own_folder()
        return Build(name, ctypes.CDLL(str(_kept(folder, name) or _compile(command, [threads, "-lm"], folder, name))))
    except subprocess.CalledProcessError as error:
        raise BuildError(f"{compiler}: {(error.stderr or str(error)).strip().splitlines()[0]}") from error
    except OSError as error:
        raise BuildError(str(error)) from error


def cache_folder() -> Path:
    """The folder of compiled libraries."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "togi"


def _own_folder() -> Path:
    """The cache folder, which nobody else can write. Raises BuildError if it belongs to another user."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise BuildError(f"{folder} is not a folder that this user owns; set XDG_CACHE_HOME to another folder")
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)
        for path in folder.glob("native-*.so"):  # others may have put them there
            path.unlink(missing_ok=True)
    return folder


def _kept(folder: Path, name: str) -> Path | None:
    """The library of that name, if it is intact and owned by the user. Removes damaged, unfinished and long unused
    libraries."""
    _sweep(folder, name)
    for path in sorted(folder.glob(f"{name}-*.so")):
        found = path.lstat()
        own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
        if own and path == content_path(folder, name, path):
            os.utime(path)
            return path
        log.warning("the compiled library %s is damaged or owned by another user; compiling it again", path)
        path.unlink()
    return None


def _sweep(folder: Path, name: str) -> None:
    now = time.time()
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process sweeps too
            age = now - path.lstat().st_mtime
            if path.name.startswith("compiling-") and age > STALE_SECONDS:
                shutil.rmtree(path)
            elif path.match("native-*.so") and not path.name.startswith(name) and age > UNUSED_SECONDS:
                path.unlink()


def content_path(folder: Path, name: str, path: Path) -> Path:
    """The path for a library with the content of `path`."""
    return folder / f"{name}-{hashlib.sha256(path.read_bytes()).hexdigest()}.so"


def threads_library() -> str | None:
    """The OpenMP library that torch has loaded, whose threads the functions must share; None if it cannot be
    identified."""
    try:
        loaded = Path("/proc/self/maps").read_text()
    except FileNotFoundError:
        return None
    return _torchs({line.split(maxsplit=5)[5] for line in loaded.splitlines() if "/libgomp" in line})


def _torchs(libraries: Collection[str]) -> str | None:
    """The one of several OpenMP libraries that is torch's. scikit-learn, for example, brings its own under another
    name."""
    if len(libraries) > 1:
        libraries = {path for path in libraries if Path(path).parent.parent.name == "torch"}
    return min(libraries) if len(libraries) == 1 else None


def _fingerprint(command: Sequence[str], threads: str) -> str:
    """A hash of everything that the library depends on: sources, compiler, processor, OpenMP library."""
    version = _output([*command, "--version"])
    processor = _output([*command, "-dM", "-E", "-x", "c", os.devnull])
    whole = "\0".join([*(source.read_text() for source in SOURCES), version, processor, *command, threads])
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def _compile(command: Sequence[str], libraries: Sequence[str], cache: Path, name: str) -> Path:
    """Compiles in a temporary folder, because several ranks may compile at the same time."""
    with tempfile.TemporaryDirectory(prefix="compiling-", dir=cache) as folder, ThreadPoolExecutor() as pool:
        sources = [source for source in SOURCES if source.suffix == ".c"]
        objects = [str(Path(folder) / f"{source.stem}.o") for source in sources]
        steps = [[*command, "-c", str(s), "-o", o] for s, o in zip(sources, objects, strict=True)]
        list(pool.map(_output, steps))
        made = Path(folder) / f"{name}.so"
        _output([*command, "-shared", *objects, *libraries, "-o", str(made)])
        with made.open("rb+") as handle:
            os.fsync(handle.fileno())
        path = content_path(cache, name, made)
        made.replace(path)
        sync_folder(cache)
    return path


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=True).stdout
