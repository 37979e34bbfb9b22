"""The versions of the transformers library that togi was tested with.

Parts of its models are replaced by name (`fused_layers`), so another version is allowed, but causes a warning.
"""

import logging
from importlib import metadata

log = logging.getLogger(__name__)

TESTED = ((5, 20), (5, 23))
"""The oldest and the newest, as pyproject.toml states them."""


def warn_if_untested(version: str | None = None) -> None:
    """Logs a warning for a version of transformers outside TESTED (None: the installed one)."""
    version = version or metadata.version("transformers")
    major, minor = version.split(".")[:2]
    oldest, newest = TESTED
    if not oldest <= (int(major), int(minor)) <= newest:
        bounds = f">={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}"
        log.warning(
            "transformers %s is installed, but togi was tested with %s. If parts of a model differ, the library's are "
            "used; for tested results: pip install 'transformers%s'", version, bounds, bounds,
        )  # fmt: skip
