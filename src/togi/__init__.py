"""togi: from a base language model to an aligned chat model, in one recipe file.

The names of the Python API (docs/api.md) are loaded on first use: `import togi` imports nothing heavy.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

API = (
    *("load", "score", "run"),
    *("SFT", "DPO", "SMPO", "GRPO", "BradleyTerry", "Batch", "Output"),
    *("TokenSequence", "Forest", "plant", "Policy", "LoadedModel"),
)

__all__ = list(API)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in API:
        raise AttributeError(f"module 'togi' has no attribute {name!r}; its Python API is: {', '.join(API)}")
    return getattr(importlib.import_module("togi.api"), name)


def __dir__() -> list[str]:
    return [*API, "__version__"]
