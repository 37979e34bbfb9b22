"""The command `togi`, and `python -m togi`."""

import importlib
import os
import sys
from contextlib import suppress

from togi.core.process import heed_signals, ignore_signals


def main() -> None:
    """Runs the command line, which is imported late, so that signals are handled from the beginning."""
    try:
        heed_signals()
        importlib.import_module("togi.cli").main()
    except KeyboardInterrupt:  # before a command began
        ignore_signals()
        with suppress(OSError):
            os.write(2, b"togi: interrupted\n")
        sys.exit(130)
    finally:
        ignore_signals()


if __name__ == "__main__":
    main()
