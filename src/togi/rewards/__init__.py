"""Rewards: cheap gates in order, then terms; guards that watch whether a reward is being gamed.

`combine.Reward` grades answers. Each gate and each kind of term is one small file; a new one is a callable, a settings
class in `settings` and a line in `build`. What a gate or a term needs from elsewhere (a language detector, a reward
model) is handed in.
"""
