"""togi: from a base language model to an aligned chat model, in one recipe file."""

__version__ = "0.1.0"
