"""The memory of a policy's training by phase: load, sample, score, update, save. docs/memory.md says how it is derived.

Importing this file does not import torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from togi.model.sizes import Job, Shape, key_bytes, predict

BLOCK = 16  # columns of the key cache come in blocks
PREFILL = 2048  # tokens of prompts that are computed at once
SCORED = 8192  # tokens that a reward model computes at once
PACKED = 2 * 1024**3  # on a processor smaller models are laid out anew while they sample
LOGITS = 3  # copies of the logits of all rows, in float32, while a token is drawn
LIBRARIES = 40e6  # on a processor: what the model library loads with the first model, as measured
ADAPTERS = 54e6  # and peft with the first adapter
TOKENIZER = 700  # bytes a token of the vocabulary that a tokenizer takes, as measured
SAVED_TOKENIZER = 370  # and its copies while it is saved


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """How a policy samples: at most `rows` answers of `answer` tokens at once, `group` to each prompt, of at most
    `prompt` tokens; their keys take at most `bound` bytes, where one is set."""

    rows: int
    group: int
    answer: int
    prompt: int = 0
    bound: float | None = None


def key_cache(shape: Shape, rollouts: Rollouts, width: int) -> float:
    """Bytes of keys and values, of numbers of `width` bytes. A bound below what one group needs cannot be kept to."""
    token = key_bytes(shape, width)
    needed = _columns(rollouts.rows, rollouts) * token
    if rollouts.bound is None:
        return float(needed)
    return min(float(needed), max(rollouts.bound, one_group(shape, rollouts, width)))


def one_group(shape: Shape, rollouts: Rollouts, width: int) -> float:
    """Bytes of keys and values of a single group: the least that sampling works with."""
    return float(_columns(rollouts.group, rollouts) * key_bytes(shape, width))


def _columns(rows: int, rollouts: Rollouts) -> int:
    return rows // rollouts.group * _blocks(rollouts.prompt) + rows * _blocks(rollouts.answer)


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK) * BLOCK


def by_phase(
    shape: Shape, job: Job, rollouts: Rollouts, *, tokens: int, copies: float, graders: Sequence[Shape]
) -> dict[str, float]:
    """Bytes at the peak of each phase on the device that trains, one process, with micro-batches of `tokens` rows.
    `copies` are the bytes of other copies of the policy, `graders` the sizes of the
    reward models on the same device. On a processor libraries and tokenizers count too."""
    width = 2 if job.compute_dtype == "bfloat16" else 4
    memory = predict(shape, job, tokens)
    beside = copies + sum(width * (grader.matrices + grader.vectors + grader.embeddings) for grader in graders)
    between = memory.weights + memory.optimizer + beside  # gradients are gone between steps
    keys = key_cache(shape, rollouts, width)
    rows = min(rollouts.rows, int(keys // one_group(shape, rollouts, width)) * rollouts.group)
    logits = LOGITS * 4 * rows * shape.vocabulary
    read = min(PREFILL + rollouts.prompt, rows // rollouts.group * rollouts.prompt)
    sample = between + keys + packed(shape, job, rollouts) + max(logits, forward_bytes(shape, read, width))
    scored = min(SCORED, rollouts.group * (rollouts.prompt + rollouts.answer))
    score = max((forward_bytes(grader, scored, width) for grader in graders), default=0.0)
    sampling = keys + packed(shape, job, rollouts) if rollouts.rows > rollouts.group else 0.0  # the other groups
    models = {
        "load": memory.weights + beside,
        "sample": sample,
        "score": between + sampling + score,
        "update": memory.peak + beside,
        "save": saving(shape, job, memory.weights),
    }
    if job.accelerator:
        return models
    around = LIBRARIES + (ADAPTERS if job.rank else 0) + TOKENIZER * sum(each.vocabulary for each in (shape, *graders))
    copied = SAVED_TOKENIZER * shape.vocabulary
    return {phase: size + around + (copied if phase == "save" else 0) for phase, size in models.items()}


def packed(shape: Shape, job: Job, rollouts: Rollouts) -> float:
    """Bytes of the copy of the weights that a processor samples with."""
    matrices = shape.embeddings + (0 if job.weights == "nf4" else shape.matrices)
    size = matrices * (2 if job.compute_dtype == "bfloat16" else 4)
    return 0.0 if job.accelerator or size > PACKED or rollouts.answer < 32 else float(size)


def forward_bytes(shape: Shape, tokens: int, width: int) -> float:
    """Bytes at work in a forward pass that keeps nothing: the rows of one layer."""
    queries, keys = shape.heads * shape.head_width, shape.key_heads * shape.head_width
    attention, ffn = 3 * queries + 2 * keys, 3 * shape.ffn * (shape.active or 1)
    return float(tokens * width * (3 * shape.width + max(attention, ffn)))


def saving(shape: Shape, job: Job, weights: float) -> float:
    """Bytes while the model is merged and written weight by weight, and read back so. The largest of them counts: a
    matrix, its sum with the adapter and that adapter's part; or the embeddings in the type in which they are saved, and
    on a processor also as they lie in the file, at most 4 bytes each in all."""
    merging = 3 * 4.0 * max(a * b for a, b in shape.linears.values()) if job.rank else 0.0
    rounded = 2.0 if job.weights == "float32" else 0.0
    return weights + max(merging, shape.embeddings * (rounded if job.accelerator else 4.0))
