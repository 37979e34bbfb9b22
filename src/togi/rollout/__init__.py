"""Sampling: the embedded sampler, which runs on the trained model itself, and engines on servers.

`engine` is what both have in common: requests in, steps, events out. `local` is the embedded one and `remote` the one
on a server; `generator` adds chat templates to either, and `completer` makes completers of local models. Of the
embedded sampler, `attention` and `cache` compute a prompt once for all its samples, `kept` holds keys for later
requests, `processors` turns logits into tokens, `terminator` detects the end of an answer, and `sampling_model` makes
the twin of the model to sample from.
"""
