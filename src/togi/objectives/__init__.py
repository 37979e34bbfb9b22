"""Objectives: a loss over log-probabilities, scores, masks and numbers, and nothing else.

`base` holds what they share, `grpo` and `reward` one objective each, `advantages` turns the rewards of a step into the
numbers that GRPO reads. A new objective is one small file with `needs`, `counts` and `loss`.
"""
