"""Guards one service: starts its command, and ends it with all its child processes when standard input closes.

Standard input is a pipe from the run. It closes when the run ends the service or is killed, so no service outlives its
run. If this process itself is killed, the kernel kills the service.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

STOP_SECONDS = 10.0  # from SIGTERM until SIGKILL
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def main() -> None:
    """Runs the command given as arguments; exits with its exit code, or 128 + N if signal N ended it."""
    service = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_me)
    threading.Thread(target=_end_with_parent, args=(service,), daemon=True).start()
    code = service.wait()
    _signal(service, signal.SIGKILL)  # its remaining child processes
    sys.stdout.flush()
    os._exit(code if code >= 0 else 128 - code)


def _die_with_me() -> None:
    with suppress(OSError, AttributeError):  # not on Linux
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)


def _end_with_parent(service: "subprocess.Popen[bytes]") -> None:
    sys.stdin.buffer.read()
    _signal(service, signal.SIGTERM)
    try:
        service.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        _signal(service, signal.SIGKILL)


def _signal(service: "subprocess.Popen[bytes]", number: int) -> None:
    """Sends a signal to the service's process group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(service.pid, number)


if __name__ == "__main__":
    main()
