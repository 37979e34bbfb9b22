"""Sends the warnings of libraries to a file instead of the terminal."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIBRARIES = ("py.warnings", "transformers", "huggingface_hub", "peft", "torch")
NAME = "libraries.log"


@contextmanager
def library_warnings_kept(folder: Path) -> Iterator[None]:
    """Sends the warnings of libraries to `folder`/libraries.log inside the block, or nowhere if the folder is absent.

    Enter it after the libraries are imported, because they set their own handlers on import.
    """
    handler: logging.Handler = logging.NullHandler()
    if folder.is_dir():
        handler = logging.FileHandler(folder / NAME, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    logging.captureWarnings(True)
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
        handler.close()
