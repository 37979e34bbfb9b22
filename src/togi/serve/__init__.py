"""HTTP servers: chat and completions on an engine, scores of a reward model, and embeddings."""
