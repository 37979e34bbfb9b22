"""Exceptions in a worker: full disks and exhausted memory are recognised in any wording, and faults stay faults."""

import errno
import json
import os
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors import SafetensorError

from togi.core.errors import InputError, StageError
from togi.recipe.faults import told

COMMAND = {"name": "policy", "settings": {"micro_batch_tokens": 64, "lora": None, "sampling": {"max_tokens": 9}}}


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number), "/home/x")


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        os_error(errno.ENOSPC),
        os_error(errno.EDQUOT),
        os_error(errno.EFBIG),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),  # raised by tokenizers
        pa.ArrowInvalid("[Errno 28] Error writing bytes to file"),
        caused(ValueError("I/O operation on closed file"), os_error(errno.ENOSPC)),
        caused(InputError("the model cannot be read"), os_error(errno.ENOSPC)),
    ],
)
def test_a_full_disk_is_a_full_disk_in_any_words(error):
    found = told(error, COMMAND)
    assert isinstance(found, StageError) and str(found).startswith("stage policy: the disk is full (")
    assert "run the same command again" in str(found)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
        os_error(errno.ENOMEM),
        pa.ArrowMemoryError("malloc of size 64 failed"),
    ],
)
def test_no_memory_says_what_to_lower(error):
    found = told(error, COMMAND)
    assert isinstance(found, StageError) and "not enough memory" in str(found)
    assert "Lower stages.policy.micro_batch_tokens or stages.policy.sampling.max_tokens, or" in str(found)
    assert "train with lora" in str(found)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE])
def test_what_the_machine_refuses_is_said_plainly(number):
    found = told(os_error(number), COMMAND)
    assert isinstance(found, StageError) and f"stage policy: {os.strerror(number)}: /home/x; fix that" in str(found)


def test_an_exit_is_no_success():
    found = told(SystemExit(0), COMMAND)
    assert isinstance(found, StageError) and "asked the process to exit (SystemExit: 0)" in str(found)


def test_errors_of_ours_stay_what_they_are_and_other_exceptions_are_faults():
    ours = InputError("no such row")
    assert told(ours, COMMAND) is ours
    others: list[BaseException] = [KeyError("a"), RuntimeError("shapes differ"), os_error(errno.ENOENT)]
    others += [json.JSONDecodeError("Expecting value", "", 0)]
    assert [told(error, COMMAND) for error in others] == 4 * [None]


def test_settings_that_are_not_there_are_not_named():
    plain: dict[str, Any] = {"name": "some", "settings": {}}
    assert "Use a smaller model or shorter data; everything" in str(told(MemoryError(), plain))
