"""Rewards: cheap gates in order, then terms, and guards that watch for reward hacking.

`combine.Reward` grades answers. Each gate and each kind of term is one small file. A new one is a callable, a settings
class in `settings` and a line in `build`. Callers pass in what gates and terms need (a language detector, a reward
model).
"""
