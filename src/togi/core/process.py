"""How a command's process takes signals before the work of a run has begun, and in every command that is no run."""

import signal
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)
_asked = False


class Signalled(KeyboardInterrupt):
    """A signal asked the command to end. Not KeyboardInterrupt itself: once that has passed through `exec`, Python 3.11
    ends its process by SIGINT, whatever exit code was chosen."""


def heed_signals() -> None:
    """From now on SIGINT and SIGTERM raise Signalled."""
    for number in STOPPING:
        signal.signal(number, _interrupt)


def ignore_signals() -> None:
    """For a process that has nothing left to do but to end with the exit code that it has."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def was_interrupted() -> bool:
    """Whether a signal came while `heed_signals` was at work: Python drops what is raised inside some callbacks."""
    return _asked


def _interrupt(number: int, frame: Any) -> None:
    global _asked
    _asked = True
    raise Signalled
