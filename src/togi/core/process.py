"""Signal handling in a command's process, before a run starts and in all commands that are not runs."""

import signal
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)
_asked = False


class Signalled(KeyboardInterrupt):
    """A signal asked the command to end. It is not KeyboardInterrupt, because Python 3.11 ends a process by SIGINT once
    that exception has passed through `exec`, and ignores the exit code."""


def heed_signals() -> None:
    """Makes SIGINT and SIGTERM raise Signalled from now on."""
    for number in STOPPING:
        signal.signal(number, _interrupt)


def ignore_signals() -> None:
    """Ignores signals, for a process that is about to end with its exit code."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def was_interrupted() -> bool:
    """Whether a signal came since `heed_signals`; needed because Python drops exceptions raised in some callbacks."""
    return _asked


def _interrupt(number: int, frame: Any) -> None:
    global _asked
    _asked = True
    raise Signalled
