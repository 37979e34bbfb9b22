"""Training: one loop for every objective, an optimiser with its schedule, and checkpoints that lose nothing.

The loop yields after each step; logging, evaluating and saving stand in the caller.
"""
