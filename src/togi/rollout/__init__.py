"""Sampling: the embedded sampler, which runs on the trained model itself, and engines on servers.

`engine` is what both have in common: requests in, steps, events out. `local` is the embedded one and `remote` the one
on a server; `generator` adds chat templates to either, and `completer` makes completers of local models. The embedded
sampler has these parts: `attention` and `cache` compute a prompt once for all its samples, and `kept` holds keys for
later requests. `processors` turns logits into tokens, and `terminator` detects the end of an answer. `sampling_model`
makes the twin of the model to sample from.
"""
