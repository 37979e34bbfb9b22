"""The memory of a policy's training by phase: load, sample, score, update, save. docs/memory.md derives it.

Importing this file does not import torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from togi.model.sizes import (
    Job,
    Shape,
    adapter_size,
    at_work,
    between_steps,
    gathered,
    key_bytes,
    loaded,
    predict,
)

BLOCK = 16  # tokens per block of the key-value cache
PREFILL = 2048  # prompt tokens computed at once
SCORED = 8192  # tokens that a reward model computes at once
PACKED = 2 * 1024**3  # on a CPU, smaller models are sampled from a repacked copy of the weights
SERVED = 64  # answers that togi's own server computes at once
LOGITS = 3  # float32 copies of the logits of all rows while a token is drawn
LIBRARIES = 40e6  # on a CPU: what the model library loads with the first model, as measured
ADAPTERS = 54e6  # the same for peft with the first adapter
EXCHANGE = 30e6  # the same for several processes that exchange shards
TOKENIZER = 700  # bytes of a tokenizer per token of its vocabulary, as measured
SAVED_TOKENIZER = 370  # bytes per token of the copies made while it is saved
READ_BACK = 40e6  # on a CPU: what a saved network that is read back takes besides its weights, as measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """How a policy samples: at most `rows` answers of `answer` tokens at once, `group` per prompt of at most `prompt`
    tokens. `bound` limits the bytes of their key-value cache; None: no limit."""

    rows: int
    group: int
    answer: int
    prompt: int = 0
    bound: float | None = None

    def of_one(self, ranks: int) -> "Rollouts":
        """The largest share of one of several processes that share the prompts."""
        return replace(self, rows=-(-(self.rows // self.group) // ranks) * self.group)

    def one_by_one(self) -> "Rollouts":
        """The same on togi's own server, where each answer is a request, and at most SERVED are computed at once."""
        return replace(self, rows=min(self.rows, SERVED), group=1, bound=None)


def key_cache(shape: Shape, rollouts: Rollouts, width: int) -> float:
    """Bytes of the key-value cache, with numbers of `width` bytes. It never gets less than one group needs, whatever
    the bound."""
    token = key_bytes(shape, width)
    needed = _columns(rollouts.rows, rollouts) * token
    if rollouts.bound is None:
        return float(needed)
    return min(float(needed), max(rollouts.bound, one_group(shape, rollouts, width)))


def one_group(shape: Shape, rollouts: Rollouts, width: int) -> float:
    """Bytes of the keys and values of one group, the minimum for sampling."""
    return float(_columns(rollouts.group, rollouts) * key_bytes(shape, width))


def _columns(rows: int, rollouts: Rollouts) -> int:
    return rows // rollouts.group * _blocks(rollouts.prompt) + rows * _blocks(rollouts.answer)


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK) * BLOCK


def by_phase(
    shape: Shape, job: Job, rollouts: Rollouts, *, tokens: int, copies: float, graders: Sequence[Shape]
) -> dict[str, float]:
    """Peak bytes of each phase on the training device of one process, with micro-batches of `tokens` tokens.

    `copies` are the bytes of other copies of the policy during training, `graders` the sizes of the reward models and
    judges on the same device. Several processes share the prompts of `rollouts`; the first one grades when all have
    sampled. On a CPU, libraries and tokenizers count too.
    """
    width = 2 if job.compute_dtype == "bfloat16" else 4
    own, memory = rollouts.of_one(job.ranks), predict(shape, job, tokens)
    beside = copies + sum(width * grader.parameters for grader in graders)
    between = between_steps(memory, job.ranks) + beside  # gradients are freed between steps
    keys = key_cache(shape, own, width)
    working = keys + packed(shape, job, own)
    publishing = 0.0 if job.ranks == 1 or job.rank else shape.largest * (4.0 if job.weights == "float32" else 2.0)
    score = max((forward_bytes(grader, scored(rollouts), width) for grader in graders), default=0.0)
    sampling = working if job.ranks == 1 and rollouts.rows > rollouts.group else 0.0  # of the other groups
    models = {
        "load": loaded(memory, job) + stacking(shape, job) + beside - kept_base(shape, job, width),
        "sample": between + max(publishing, working + drawing(shape, own, keys, width)),
        "score": between + sampling + score,
        "update": beside + at_work(shape, job, memory),
        "save": max(
            saving(shape, job, memory.weights / job.ranks), 0.0 if job.ranks == 1 else gathered(shape, job, memory)
        ),
    }
    if job.accelerator:
        return models
    around = LIBRARIES + (ADAPTERS if job.rank else 0) + (EXCHANGE if job.ranks > 1 else 0)
    around += TOKENIZER * sum(each.vocabulary for each in (shape, *graders))
    models["save"] += READ_BACK + SAVED_TOKENIZER * shape.vocabulary
    return {phase: size + around for phase, size in models.items()}


def scored(rollouts: Rollouts) -> int:
    """The most tokens that a reward model computes at once: a group, or part of it, but never part of an answer."""
    one = rollouts.prompt + rollouts.answer
    return max(one, min(SCORED, rollouts.group * one))


def judging(judge: Shape, job: Job, rollouts: Rollouts, writes: int) -> float:
    """Bytes that a judge of at most `writes` tokens holds while it grades one group: keys, and on a CPU the repacked
    copy of its weights. Its question is counted as prompt and answer."""
    one = Rollouts(rows=rollouts.group, group=1, answer=writes, prompt=rollouts.prompt + rollouts.answer)
    width = 2 if job.compute_dtype == "bfloat16" else 4
    return key_cache(judge, one, width) + packed(judge, replace(job, weights="float32"), one)


def drawing(shape: Shape, rollouts: Rollouts, keys: float, width: int) -> float:
    """Bytes at work while sampling with a cache of `keys` bytes: logits of all rows, or prompts in one layer."""
    rows = min(rollouts.rows, int(keys // one_group(shape, rollouts, width)) * rollouts.group)
    read = min(PREFILL + rollouts.prompt, rows // rollouts.group * rollouts.prompt)
    return max(float(LOGITS * 4 * rows * shape.vocabulary), forward_bytes(shape, read, width))


def sampling_copy(shape: Shape, job: Job, width: int) -> float:
    """Bytes of the copy that the policy samples from, in numbers of `width` bytes. A single process samples from the
    policy itself if that has this type."""
    if job.ranks == 1 and width == 4:
        return 0.0
    adapter = adapter_size(shape, job) * width
    if _shares_base(job, width):
        return adapter + kept_base(shape, job, width)
    return float(adapter + shape.parameters * width)


def stacking(shape: Shape, job: Job) -> float:
    """Bytes beside the weights while a CPU loads a mixture: the experts of a layer, one by one and stacked."""
    if job.accelerator or not shape.experts:  # stacked in the memory of the host
        return 0.0
    return 2.0 * shape.largest * (4 if job.weights == "float32" else 2)


def kept_base(shape: Shape, job: Job, width: int) -> float:
    """Bytes of the frozen weights that the sampler shares with the loaded model, and that several processes therefore
    keep whole when they replace that model by their shards."""
    return float(shape.parameters * width) if job.ranks > 1 and _shares_base(job, width) else 0.0


def _shares_base(job: Job, width: int) -> bool:
    """Whether the sampler shares the frozen weights, because they have its type or are in 4 bits."""
    types = {"float32": 4, "bfloat16": 2}
    return job.rank > 0 and (job.weights == "nf4" or types.get(job.weights) == width)


def packed(shape: Shape, job: Job, rollouts: Rollouts) -> float:
    """Bytes of the repacked copy of the weights that a CPU samples with."""
    matrices = shape.embeddings + (0 if job.weights == "nf4" else shape.matrices)
    size = matrices * (2 if job.compute_dtype == "bfloat16" else 4)
    return 0.0 if job.accelerator or size > PACKED or rollouts.answer < 32 else float(size)


def forward_bytes(shape: Shape, tokens: int, width: int) -> float:
    """Bytes of the activations in a forward pass without gradients: those of one layer."""
    queries, keys = shape.heads * shape.head_width, shape.key_heads * shape.head_width
    attention, ffn = 3 * queries + 2 * keys, 3 * shape.ffn
    if shape.experts:  # they also gather their rows, and keep them to the end
        ffn = (4 * shape.ffn + shape.width) * shape.active
    return float(tokens * width * (3 * shape.width + max(attention, ffn)))


def saving(shape: Shape, job: Job, weights: float) -> float:
    """Bytes while the model is merged, written and read back weight by weight.

    The largest of three counts. One is the largest matrix, its sum with the adapter, and the adapter's product. One is
    the embeddings in the type in which they are saved and, on a CPU, also as stored in the file: at most 4 bytes per
    number in all. One is, on a CPU, all experts, which are stacked again when they are read back; it is assumed that
    they are saved in the type in which they were trained.
    """
    merging = 3 * 4.0 * max(a * b for a, b in shape.linears.values()) if job.rank else 0.0
    rounded, stored = (2.0, 4.0) if job.weights == "float32" else (0.0, 2.0)
    if job.accelerator:
        return weights + max(merging, shape.embeddings * rounded)
    return weights + max(merging, stored * (shape.matrices - shape.plain_matrices), shape.embeddings * 4.0)
