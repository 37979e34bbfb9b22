"""Servers over HTTP: chat and completions on an engine, and the scores of a reward model."""
