"""The one boundary around code that togi does not know: reward functions and chat templates.

Such a call may raise anything, `sys.exit()` of code that a model wrote among it. Here all of it becomes one of togi's
own errors. Nothing else in togi catches exceptions that it cannot name.
"""

from collections.abc import Callable
from typing import TypeVar

from togi.core.errors import Interrupted, TogiError

T = TypeVar("T")
SHOWN = 1000  # characters of a stranger's message


def run_stranger(call: Callable[[], T], error: type[TogiError], where: str = "") -> T:
    """What `call` returns. Raises `error`, with `where` (if given) and what was raised, for anything that it raises.

    A wish to stop (Ctrl-C, `Interrupted`) passes.
    """
    try:
        return call()
    except (KeyboardInterrupt, Interrupted):
        raise
    except BaseException as raised:  # SystemExit and its like too: the process is ours to end
        raise error(f"{where}: {describe(raised)}" if where else describe(raised)) from raised


def describe(raised: BaseException) -> str:
    """The exception's type and message; the message of a stranger's class may itself fail, or be very long."""
    try:
        message = str(raised)
    except BaseException:  # noqa: BLE001 - what it was stands in the first word
        message = "(its message cannot be shown)"
    message = message if len(message) <= SHOWN else f"{message[:SHOWN]} …"
    return f"{type(raised).__name__}: {message}" if message else type(raised).__name__
