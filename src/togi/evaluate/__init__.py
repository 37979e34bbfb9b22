"""Measures of an evaluation and their uncertainty: intervals over prompts, accuracy, diversity, length-matched answers.

Nothing here loads a model: callers pass values, texts and vectors, and get rows of a before/after table.
"""
