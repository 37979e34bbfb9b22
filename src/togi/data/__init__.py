"""Data before training: reading rows, filters with reasons, near-duplicates, selection, pairs, few-shot prompts.

All are pure functions on records. Callers pass in models as an `Embedder` or a detector."""
