"""Warnings of libraries go to a file, not to the reader of a command."""

import logging
from pathlib import Path

LIBRARIES = ("py.warnings", "transformers", "huggingface_hub", "peft", "torch")
NAME = "libraries.log"


def keep_library_warnings(folder: Path) -> None:
    """Sends what libraries warn of, from now on, to `folder`/libraries.log; where there is no such folder, nowhere.

    Call it once the libraries are imported: they set their own handlers then.
    """
    logging.captureWarnings(True)
    there = folder.is_dir()
    handler = logging.FileHandler(folder / NAME, encoding="utf-8", delay=True) if there else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        for old in logger.handlers:
            old.close()
        logger.handlers, logger.propagate = [handler], False
