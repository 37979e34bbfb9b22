"""Predicts the needs of training by arithmetic: parameters and peak memory.

Nothing is loaded or measured here; docs/memory.md has the derivation, and compares it with measurements. Shapes: T rows
of a micro-batch, N of them scored, H width, F width of the feed-forward part, V vocabulary. Sizes are in bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from togi.core.errors import InputError
from togi.model.families import FAMILIES, family_of

CHUNK_BYTES = 2**26  # logits of the head that are computed at once
KEPT_BYTES = 2**28  # logits that are kept for the backward pass; the rest are recomputed
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes per weight: 4 bits, one byte per 64 weights, four bytes per 256 of those
EIGHT_BIT_MOMENTS = 2 * (1 + 4 / 256)  # two bytes per weight, and four bytes per 256 of each moment
UNPADDED = "unpadded_vocab_size"  # togi's own key, in the shapes that come with recipes
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The number of parameters of a model, as model cards count them: `body` without embeddings and output head,
    `embeddings` with the head, `active` those used for one token, embeddings included."""

    body: int
    embeddings: int
    active: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.body + self.embeddings


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a decoder, from its configuration. `experts` is 0 for a dense one; `unpadded` is the number of
    embedding rows that belong to tokens, if the configuration says that the others are padding."""

    family: str
    layers: int
    width: int
    heads: int
    key_heads: int
    head_width: int
    ffn: int
    vocabulary: int
    tied: bool
    attention_bias: bool = False
    experts: int = 0
    active: int = 0
    unpadded: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shape":
        """The shape for the contents of a config.json. Raises InputError that names a missing key."""
        known = config.get("text_config") or config
        try:
            heads = known["num_attention_heads"]
            experts = known.get("num_local_experts") or known.get("num_experts") or 0
            family = known["model_type"]
            return cls(
                family=family,
                layers=known["num_hidden_layers"],
                width=known["hidden_size"],
                heads=heads,
                key_heads=known.get("num_key_value_heads") or heads,
                head_width=known.get("head_dim") or known["hidden_size"] // heads,
                ffn=(known.get("moe_intermediate_size") if experts else None) or known["intermediate_size"],
                vocabulary=known["vocab_size"],
                tied=known.get("tie_word_embeddings", family_of(family).tied),
                attention_bias=known.get("attention_bias", family_of(family).attention_bias),
                experts=experts,
                active=known.get("num_experts_per_tok") or 0,
                unpadded=known.get(UNPADDED) or 0,
            )
        except KeyError as error:
            raise InputError(f"the model's configuration has no {error}, so its memory cannot be predicted") from None
        except (TypeError, ZeroDivisionError, AttributeError) as error:
            raise InputError(f"the model's configuration is bad ({error}), so its memory cannot be predicted") from None

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the matrices of a layer, without experts."""
        queries, keys = self.heads * self.head_width, self.key_heads * self.head_width
        found = {
            "q_proj": (self.width, queries),
            "k_proj": (self.width, keys),
            "v_proj": (self.width, keys),
            "o_proj": (queries, self.width),
        }
        if self.experts:
            return found
        ffn = {"gate_proj": (self.width, self.ffn), "up_proj": (self.width, self.ffn)}
        return {**found, **ffn, "down_proj": (self.ffn, self.width)}

    @property
    def matrices(self) -> int:
        """The number of weights in the matrices of all layers."""
        experts = self.experts * (3 * self.width * self.ffn + self.width)
        return self.plain_matrices + self.layers * experts

    @property
    def plain_matrices(self) -> int:
        """The same without experts and routers, which the library stores in blocks that are not quantised to 4 bits."""
        return self.layers * sum(a * b for a, b in self.linears.values())

    @property
    def used_matrices(self) -> int:
        """The weights in matrices that one token uses: with experts, only its own and the router."""
        idle = (self.experts - self.active) * 3 * self.width * self.ffn
        return self.matrices - self.layers * idle

    @property
    def embeddings(self) -> int:
        """The number of weights in the embeddings; an untied head has the same number."""
        return self.vocabulary * self.width

    @property
    def largest(self) -> int:
        """The number of weights in the largest matrix; the library stacks the experts of a layer."""
        experts = self.experts * 2 * self.width * self.ffn
        return max(self.embeddings, experts, *(a * b for a, b in self.linears.values()))

    @property
    def vectors(self) -> int:
        """The number of weights in norms and biases."""
        family = family_of(self.family)
        norms = family.norms * self.width
        norms += 2 * self.head_width if family.head_norms else 0
        if self.attention_bias:
            norms += sum(self.linears[name][1] for name in ("q_proj", "k_proj", "v_proj"))
            norms += self.width if family.output_bias else 0
        return self.layers * norms + self.width

    @property
    def parameters(self) -> int:
        """The number of all weights."""
        return self.matrices + self.embeddings * (1 if self.tied else 2) + self.vectors

    @property
    def counts(self) -> Counts:
        """The parameters as model cards count them: embeddings without padding rows, and for one token only the router
        rows of its experts."""
        rows = (self.unpadded or self.vocabulary) * (1 if self.tied else 2)
        idle = (self.experts - self.active) * (3 * self.width * self.ffn + self.width)
        body, embeddings = self.matrices + self.vectors, rows * self.width
        return Counts(body=body, embeddings=embeddings, active=body + embeddings - self.layers * idle)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How a model is trained. `compute_dtype` is the type of matrix products; `rank` 0 trains all weights.

    `accumulates`: a step has several micro-batches, so gradients and activations exist at the same time. `entropy`: the
    head also computes the entropy. `scorer`: the head gives one number. `accelerator`: the softmax copies logits in
    float32, and none are kept. `layers`: the number of trained layers, from the top; None: all, and the embeddings.
    `ranks` processes share weights, gradients and moments; `predict` sums them up. `whole`: each of them reads all
    weights, and then keeps its part.
    """

    weights: Literal["float32", "bfloat16", "bfloat16-master", "nf4"] = "float32"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    bits: Literal[8, 32] = 32
    rank: int = 0
    targets: tuple[str, ...] = LINEARS
    checkpointing: bool = False
    offload: bool = False
    accumulates: bool = True
    entropy: bool = False
    scorer: bool = False
    accelerator: bool = False
    layers: int | None = None
    ranks: int = 1
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on the device by purpose, and on the host if the optimiser is offloaded.

    `head` is the logits in memory, `cast` copies of weights in another type."""

    weights: float
    cast: float
    gradients: float
    optimizer: float
    activations: float
    head: float
    host: float = 0.0
    together: bool = True

    @property
    def floor(self) -> float:
        """The bytes that do not depend on the micro-batch: weights, optimiser, gradients."""
        return self.weights + self.optimizer + self.gradients

    @property
    def peak(self) -> float:
        """The most bytes at any time. In a step with a single micro-batch, gradients appear while activations are
        released."""
        busy = self.activations + self.head
        moving = self.gradients + busy if self.together else max(self.gradients, busy)
        return self.weights + self.cast + self.optimizer + moving


def rank_peak(shape: Shape, job: Job, tokens: int) -> float:
    """The peak of each process, with micro-batches of `tokens` rows: while it trains, or when it holds all weights."""
    memory = predict(shape, job, tokens)
    if job.ranks == 1:
        return memory.peak
    return max(at_work(shape, job, memory), loaded(memory, job), gathered(shape, job, memory))


def between_steps(memory: Memory, ranks: int) -> float:
    """The bytes of a process between two steps: its part of the weights and moments."""
    return (memory.weights + memory.optimizer) / ranks


def loaded(memory: Memory, job: Job) -> float:
    """The peak of each process when the model is loaded: its part of the weights, beside all if it reads them whole."""
    return memory.weights / job.ranks + (memory.weights if job.ranks > 1 and job.whole else 0.0)


def gathered(shape: Shape, job: Job, memory: Memory) -> float:
    """The peak of each of several processes at the end of training, when moments and gradients are freed: its part of
    the weights, and one weight after the other, which is gathered (in two copies) and saved. Of a scorer each process
    keeps all weights."""
    largest_weight = 2 * shape.largest * (4.0 if job.weights == "float32" else 2.0)
    return largest_weight + (memory.weights if job.scorer else memory.weights / job.ranks)


def at_work(shape: Shape, job: Job, memory: Memory) -> float:
    """The peak of each process while it trains.

    One of several holds its part of weights, moments and gradients and, unsharded, what it computes with: embeddings
    and head, the current layer and the next, and the gradients of one layer, twice while they are exchanged. The
    gradients of the head come first, besides logits and activations; those of the embeddings last, when both are gone.
    """
    if job.ranks == 1:
        return memory.peak
    width, layer = 4 if job.weights == "float32" else 2, shape.matrices / shape.layers
    root, all_trained = shape.embeddings * (1 if shape.tied else 2), not job.rank and job.layers is None
    first = width * shape.embeddings if all_trained and not job.scorer else 0
    last = width * 2 * root if all_trained else 0
    whole = width * (root + (2 if job.rank else 4) * layer)
    share = between_steps(memory, job.ranks) + (memory.gradients - width * _summed(shape, job)) / job.ranks
    return share + whole + memory.cast + max(memory.head + memory.activations + first, last)


def key_bytes(shape: Shape, width: int) -> int:
    """Bytes of the keys and values of one token, for numbers of `width` bytes."""
    return 2 * shape.layers * shape.key_heads * shape.head_width * width


def adapter_size(shape: Shape, job: Job) -> int:
    """The number of weights in a low-rank adapter."""
    chosen = shape.linears if "all-linear" in job.targets else {n: shape.linears.get(n, (0, 0)) for n in job.targets}
    return shape.layers * job.rank * sum(a + b for a, b in chosen.values())


def predict(shape: Shape, job: Job, tokens: int) -> Memory:
    """The peak memory of a micro-batch of `tokens` rows, all scored."""
    trained = _trained(shape, job)
    base = 4 if job.weights == "float32" else 2
    weights = float(shape.parameters * base)
    if job.weights == "nf4":
        base = 2 if job.compute_dtype == "bfloat16" else 4
        weights = (shape.parameters - shape.plain_matrices) * base + shape.plain_matrices * NF4
    if job.rank:
        weights, base = weights + trained * 4, 4
    moments = EIGHT_BIT_MOMENTS if job.bits == 8 else 2.0 * (4 if job.weights in ("bfloat16-master", "nf4") else base)
    masters = 4 if job.weights == "bfloat16-master" or (job.offload and not job.rank) else 0
    optimizer = trained * (moments + masters)
    return Memory(
        weights=weights,
        cast=_cast(shape, job),
        gradients=float((trained + _summed(shape, job)) * base),
        optimizer=0.0 if job.offload else optimizer,
        activations=float(activations(shape, job, tokens)),
        head=float(_head(shape, job, tokens)),
        host=optimizer if job.offload else 0.0,
        together=job.accumulates,
    )


def _summed(shape: Shape, job: Job) -> int:
    """The number of second gradients of tied embeddings: those of the embeddings and of the head are added up last."""
    return shape.embeddings if shape.tied and not job.rank and not job.scorer else 0


def _trained(shape: Shape, job: Job) -> int:
    """The number of trained weights."""
    if job.rank:
        return adapter_size(shape, job)
    if job.layers is not None:
        return (shape.matrices + shape.vectors) * min(job.layers, shape.layers) // shape.layers
    return shape.parameters


def _cast(shape: Shape, job: Job) -> float:
    """Bytes of weights cast to the type of matrix products: float32 weights are cast once per micro-batch and kept for
    it, but not experts; 4-bit weights are dequantised one matrix at a time."""
    if job.weights == "nf4":
        return max(a * b for a, b in shape.linears.values()) * (2 if job.compute_dtype == "bfloat16" else 4)
    if job.weights == "float32" and job.compute_dtype == "bfloat16":
        routers = shape.layers * shape.experts * shape.width
        return 2.0 * (shape.plain_matrices + routers + shape.embeddings)
    return 0.0


def activations(shape: Shape, job: Job, tokens: int) -> int:
    """Bytes that the layers, and the parts around them, keep for the backward pass of a micro-batch."""
    layer = layer_bytes(shape, job)
    wide = 2 if _half(job) else 4
    trained = shape.layers if job.layers is None else min(job.layers, shape.layers)
    kept = trained * (shape.width * wide if job.checkpointing else layer)
    last = 5 * shape.width * 4  # the final norm, the scored rows and their gradient
    at_work = layer if job.checkpointing or trained < shape.layers else 0
    return tokens * (kept + at_work + last)


def layer_bytes(shape: Shape, job: Job) -> int:
    """Bytes that one layer keeps for each row: inputs of products, of norms and of the gate.

    With an adapter, the frozen matrices keep no input, but the adapter keeps its own. If the type changes between a row
    and the products that read it, each of them keeps its own copy. Families of `fused_layers` keep the input of a norm
    once, and only gate and up of the gated part.
    """
    queries, keys = shape.heads * shape.head_width, shape.key_heads * shape.head_width
    frozen = job.rank > 0
    narrow = 2 if job.compute_dtype == "bfloat16" or _half(job) else 4
    copies = 0
    fused = shape.family in FAMILIES
    if narrow == 4:
        norm = (2 if frozen or fused else 3) * 4 * shape.width
    elif _half(job):
        norm = (4 if frozen or fused else 8) * shape.width  # float32 inside, results in bfloat16
        copies = 5 * 2 * shape.width if frozen else 0
    else:
        norm = (4 if frozen or fused else 8) * shape.width
        copies = 5 * 2 * shape.width
    attention = narrow * (3 * queries + 2 * keys) + 4 * shape.heads
    ffn = _expert_bytes(shape, job) if shape.experts else narrow * _gated_rows(shape, job) * shape.ffn
    adapters = 4 * job.rank * len(shape.linears) if frozen else 0
    return 2 * norm + copies + attention + ffn + adapters


def _gated_rows(shape: Shape, job: Job) -> int:
    """The number of rows of width F that a dense feed-forward part keeps."""
    if not family_of(shape.family).gated:
        return 4
    return 3 if job.rank and ("down_proj" in job.targets or "all-linear" in job.targets) else 2


def _expert_bytes(shape: Shape, job: Job) -> int:
    """Bytes that the experts of one row keep. Each keeps gate, silu(gate), up and its result, which the router weighs;
    trained ones also keep their input and the product. They compute in the type of their weights, also where other
    products are bfloat16."""
    rows = 3 * shape.ffn + shape.width if job.rank else 4 * shape.ffn + 2 * shape.width
    return (2 if _half(job) else 4) * rows * shape.active


def _half(job: Job) -> bool:
    """Whether the rows between the layers are bfloat16."""
    return job.weights.startswith("bfloat16") or (job.weights == "nf4" and job.compute_dtype == "bfloat16")


def _head(shape: Shape, job: Job, tokens: int) -> int:
    if job.scorer:
        return 0
    row = shape.vocabulary * (2 if job.compute_dtype == "bfloat16" else 4)
    rows = min(tokens, chunk_rows(row))
    if not job.accelerator:
        return rows * row + min(KEPT_BYTES, (tokens - rows) * row)
    copies = 2 if job.entropy or job.compute_dtype == "bfloat16" else 1
    return rows * shape.vocabulary * 4 * copies


def chunk_rows(row_bytes: int) -> int:
    """The number of tokens whose logits the head computes at once."""
    return max(16, min(1024, CHUNK_BYTES // row_bytes))


def largest(shape: Shape, job: Job, memory: float, *, step: int = 256, most: int = 2**16) -> int:
    """The largest micro-batch (tokens, a multiple of `step`) whose peak fits into the `memory` of each process; 0 if
    none does."""
    found = 0
    for tokens in range(step, most + 1, step):
        if rank_peak(shape, job, tokens) > memory:
            break
        found = tokens
    return found
