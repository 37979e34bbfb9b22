"""Records before any training: import at the border, filters with reasons, near-duplicates, selection, pairs, few-shot
prompts. Pure functions on records; models reach them only as an `Embedder` or a detector that is handed in."""
