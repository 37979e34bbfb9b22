"""Training: one loop for all objectives, an optimiser with its schedule, and checkpoints.

The loop yields after each step; the caller logs, evaluates and saves.
"""
