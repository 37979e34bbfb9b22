"""Training: one loop for all objectives, optimisers with their schedule, precision, checkpoints, training on several
processes, and the memory of the machine.

The loop yields after each step; the caller logs, evaluates and saves.
"""
