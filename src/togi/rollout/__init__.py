"""Sampling: the embedded sampler, which runs on the trained model itself.

`local` is the sampler (requests in, steps, events out), and `generator` adds chat templates. `attention` and `cache`
compute a prompt once for all its samples, `processors` turns logits into tokens, `terminator` detects the end of an
answer, and `sampling_model` makes the twin of the model to sample from.
"""
