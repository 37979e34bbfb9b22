"""Benchmarks, their measures, and the uncertainty of these: intervals over prompts, accuracy, diversity, arenas.

Nothing here loads a model: callers pass texts, values, vectors and generators, and get tables. `benchmarks` measure any
number of subjects, `statistics` computes intervals and tests, and `published` holds figures from model cards.
"""
