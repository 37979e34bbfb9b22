"""Predicts the floating-point operations of training by arithmetic; docs/memory.md has the derivation."""

from togi.model.sizes import Job, Shape, adapter_size


def training_flops(shape: Shape, job: Job, tokens: int, scored: int, length: int) -> float:
    """Floating-point operations of a forward and backward pass over `tokens` rows, `scored` of which go through the
    head; `length` is the typical length of a sequence.

    Two per weight and row in the forward pass, two for the gradient of the rows, and two for that of the weights, which
    adapters save; recomputation adds a forward pass of the layers. A row attends to half of its sequence. Untrained
    layers have no backward pass; a scorer's head counts nothing.
    """
    share = 1.0 if job.layers is None else min(job.layers, shape.layers) / shape.layers
    attention = 2 * shape.layers * shape.heads * shape.head_width * length * tokens
    layers = 2 * shape.used_matrices * tokens + attention
    head = 0 if job.scorer else 2 * shape.embeddings * scored
    weights = 0 if job.rank else 2 * shape.used_matrices * tokens * share + head
    adapter = 6 * adapter_size(shape, job) * tokens if job.rank else 0
    backward = (layers + attention) * share + head + weights + adapter
    again = layers * share if job.checkpointing else 0
    return float(layers + head + backward + again)
