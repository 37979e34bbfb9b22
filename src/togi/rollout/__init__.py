"""Sampling: the embedded sampler that runs on the trained model itself.

`local` is the sampler (requests in, steps, events out), `generator` puts chat templates in front of it. Under it,
`attention` and `cache` compute a prompt once for all its samples, `processors` turn logits into tokens, `terminator`
finds where an answer ends, and `network` makes the twin of the model that they run on.
"""
