"""Families of models, by the name that the library gives them (`model_type`)."""

TESTED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "mixtral", "qwen3_moe")
"""Proved equal to the plain computation by the tests; others are probed when they are loaded."""
