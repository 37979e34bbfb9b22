"""Compiles for this processor, at every instruction set that it can be limited to; nobody can poison the cache."""

import logging
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import TESTS

from togi.core.errors import InputError
from togi.kernels import build, dispatch

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
SMALL = "int togi_products(void) { return 41; }"


@pytest.fixture
def small(monkeypatch, tmp_path) -> Path:
    """The cache folder of a library with one function, which compiles quickly."""
    source = tmp_path / "small.c"
    source.write_text(SMALL)
    monkeypatch.setattr(build, "SOURCES", [source])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TOGI_NATIVE", raising=False)
    return tmp_path / "cache" / "togi"


def answer(built: build.Build) -> int:
    return built.library.togi_products()


def damage(path: Path, content: bytes) -> None:
    """Replaces the file of a library by a new file, since this process has mapped the old one."""
    path.unlink()
    path.write_bytes(content)


# --- without compiled functions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiler", ["false", "a-compiler-that-is-not-there"])
def test_without_a_working_compiler_torch_alone_is_used_and_that_is_said(compiler, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with caplog.at_level(logging.INFO):
        found = dispatch.kernels.__wrapped__()
    assert found.native is None and set(found.off) == set(dispatch.PARTS)
    assert "so torch computes everything" in caplog.text
    assert list(tmp_path.rglob("*.so")) == []


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("TOGI_NATIVE", "0")
    found = dispatch.kernels.__wrapped__()
    assert found.native is None and set(found.off.values()) == {"TOGI_NATIVE is 0"}


def test_an_instruction_set_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("TOGI_NATIVE", "sse9")
    with pytest.raises(InputError, match="TOGI_NATIVE: found 'sse9'; allowed: 0, 1, avx512, avx2"):
        dispatch.kernels.__wrapped__()


# --- the cache --------------------------------------------------------------------------------------------------------


@NEEDS_COMPILER
def test_the_folder_is_its_users_alone_and_a_library_is_compiled_once(small):
    first = build.build(())
    files = [(path, path.stat().st_ino) for path in small.iterdir()]
    assert answer(first) == 41 and small.stat().st_mode & 0o777 == 0o700
    assert build.build(()).name == first.name
    assert [(path, path.stat().st_ino) for path in small.iterdir()] == files


@NEEDS_COMPILER
@pytest.mark.parametrize("content", [b"", b"not a library"])
def test_a_damaged_library_is_compiled_again(small, content, caplog):
    build.build(())
    (path,) = small.glob("*.so")
    damage(path, content)
    with caplog.at_level(logging.WARNING):
        assert answer(build.build(())) == 41
    assert "is damaged" in caplog.text
    assert path.read_bytes() != content


@NEEDS_COMPILER
def test_a_cut_library_is_never_mapped(small):
    """Mapping a file that ends early kills the process with SIGBUS."""
    build.build(())
    (path,) = small.glob("*.so")
    damage(path, path.read_bytes()[:4096])
    assert answer(build.build(())) == 41


@NEEDS_COMPILER
def test_what_others_could_write_is_not_loaded(small, tmp_path):
    name = build.build(()).name
    planted = tmp_path / "planted.so"
    (tmp_path / "planted.c").write_text("int togi_products(void) { return 13; }")
    subprocess.run(["cc", "-shared", "-fPIC", str(tmp_path / "planted.c"), "-o", str(planted)], check=True)
    shutil.rmtree(small)
    small.mkdir(mode=0o777)
    small.chmod(0o777)
    shutil.copy(planted, build.content_path(small, name, planted))
    assert answer(build.build(())) == 41
    assert small.stat().st_mode & 0o777 == 0o700


@NEEDS_COMPILER
def test_a_folder_of_somebody_else_is_not_used(small, monkeypatch):
    small.parent.mkdir()
    small.symlink_to(small.parent.parent)
    with pytest.raises(build.BuildError, match="not a folder that this user owns"):
        build.build(())
    small.unlink()
    small.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: small.stat().st_uid + 1)
    with pytest.raises(build.BuildError, match="not a folder that this user owns"):
        build.build(())


@NEEDS_COMPILER
def test_what_killed_compilations_left_and_what_nobody_used_goes(small):
    small.mkdir(parents=True, mode=0o700)
    kept = [small / "compiling-now", small / "native-recent-00.so", small / "notes.txt"]
    gone = [small / "compiling-old", small / "native-old-00.so"]
    for path in (*kept, *gone):
        path.mkdir() if path.name.startswith("compiling") else path.touch()
    for path in (gone[0], gone[1], kept[2]):
        os.utime(path, (0, 0))
    build.build(())
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)


# --- instruction sets -------------------------------------------------------------------------------------------------

LESSER = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
}
"""Instruction sets, with the environment that limits torch and its libraries to them."""

COMPILED = ("kernels/test_native.py", "kernels/test_dispatch.py", "kernels/test_attention.py", "rollout/test_native.py")
"""Tests of compiled functions."""

ABOVE = "(models_with_wide_heads or sampler or known_decoders)"
"""The tests among them of code that calls these functions: the same Python whatever the instruction set."""


def can_be_held_to(level: str) -> bool:
    """Whether the processor has more instructions than these."""
    if platform.machine() != "x86_64":
        return False
    known = torch.backends.cpu.get_cpu_capability()
    return known == "AVX512" and (level == "avx2" or "amx_bf16" in Path("/proc/cpuinfo").read_text())


@NEEDS_COMPILER
@pytest.mark.parametrize("level", LESSER)
def test_what_is_compiled_is_right_on_lesser_processors(level):
    if not can_be_held_to(level):
        pytest.skip(f"this processor knows no more than {level}")
    tests = [str(TESTS / name) for name in COMPILED]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"not {ABOVE}", *tests]
    environment = {**os.environ, **LESSER[level], "TOGI_NATIVE": level}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert "passed" in ended.stdout


def test_another_librarys_threads_do_not_hide_torchs():
    """scikit-learn loads an OpenMP library of its own into the process."""
    pytest.importorskip("sklearn")
    code = "import sklearn.linear_model, torch, togi.kernels.dispatch as found; print(bool(found.kernels().native))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "True", ended.stderr
