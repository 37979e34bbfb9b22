"""The boundary around foreign code: reward functions and chat templates.

Such a call may raise anything, even SystemExit. This module turns every exception into one of togi's own errors.
Nothing else in togi catches unknown exceptions.
"""

from collections.abc import Callable
from typing import TypeVar

from togi.core.errors import Interrupted, TogiError

T = TypeVar("T")
SHOWN = 1000  # characters of a foreign message


def run_stranger(call: Callable[[], T], error: type[TogiError], where: str = "") -> T:
    """Returns the result of `call`. Turns any exception into `error`, with `where` (if given) and the exception's text.

    Ctrl-C and `Interrupted` pass through.
    """
    try:
        return call()
    except (KeyboardInterrupt, Interrupted):
        raise
    except BaseException as raised:  # SystemExit too: only togi may end the process
        raise error(f"{where}: {describe(raised)}" if where else describe(raised)) from raised


def describe(raised: BaseException) -> str:
    """The exception's type and message. The message of a foreign class may itself fail, or be very long."""
    try:
        message = str(raised)
    except BaseException:  # noqa: BLE001 - the type is still shown
        message = "(its message cannot be shown)"
    message = message if len(message) <= SHOWN else f"{message[:SHOWN]} …"
    return f"{type(raised).__name__}: {message}" if message else type(raised).__name__
