"""Memory and operations by arithmetic: counts of weights against real models, and consequences of the formulas."""

from dataclasses import replace

import pytest
import torch
from tiny import CONFIGS, SHAPE
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from togi.core.errors import InputError
from togi.model.operations import training_flops
from togi.model.sizes import (
    CHUNK_BYTES,
    KEPT_BYTES,
    NF4,
    Job,
    Shape,
    adapter_size,
    at_work,
    gathered,
    largest,
    layer_bytes,
    loaded,
    predict,
    rank_peak,
)

SMALL = Shape.of(
    {
        "model_type": "llama",
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }
)
THIRTEEN = Shape(  # llm-jp-3-13b
    family="llama",
    layers=40,
    width=5120,
    heads=40,
    key_heads=40,
    head_width=128,
    ffn=13824,
    vocabulary=99487,
    tied=False,
)


def counted(config) -> int:
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(config)
    return sum(param.numel() for param in net.parameters())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_weights_are_counted_as_the_library_does(kind, tied):
    config_class, extra = CONFIGS[kind]
    config = config_class(**{**SHAPE, **extra, "tie_word_embeddings": tied})
    assert Shape.of(config.to_dict()).parameters == counted(config)


def test_biases_are_counted():
    for config in (Qwen2Config(**SHAPE), LlamaConfig(**SHAPE, attention_bias=True)):
        assert Shape.of(config.to_dict()).parameters == counted(config)


def test_known_models():
    assert SMALL.parameters == 134_515_008
    assert THIRTEEN.matrices + THIRTEEN.vectors == 12_688_184_320  # the card's number, without embeddings and head
    assert THIRTEEN.parameters == 13_706_931_200


def test_a_configuration_that_says_too_little_is_refused():
    with pytest.raises(InputError, match="has no 'hidden_size'"):
        Shape.of({"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 8})


def test_the_floor_is_weights_gradients_and_moments():
    weights = SMALL.parameters
    plain = predict(SMALL, Job(), 1024)
    assert (plain.weights, plain.optimizer) == (4 * weights, 8 * weights)
    assert plain.gradients == 4 * (weights + SMALL.embeddings)  # those of head and embeddings are summed last
    narrow = predict(SMALL, Job(weights="bfloat16-master", compute_dtype="bfloat16"), 1024)
    assert (narrow.weights, narrow.optimizer) == (2 * weights, 12 * weights)
    away = predict(SMALL, Job(weights="bfloat16-master", compute_dtype="bfloat16", offload=True), 1024)
    assert (away.optimizer, away.host) == (0, 12 * weights)
    assert predict(SMALL, Job(bits=8), 1024).optimizer == pytest.approx(2.03 * weights, rel=1e-3)


def test_what_each_choice_saves():
    job = Job()
    full = predict(SMALL, job, 4096).peak
    assert predict(SMALL, replace(job, checkpointing=True), 4096).peak < 0.5 * full
    assert predict(SMALL, replace(job, rank=16), 4096).peak < full
    assert predict(SMALL, replace(job, accumulates=False), 4096).peak < full
    four_bit = predict(SMALL, Job(weights="nf4", rank=16, compute_dtype="bfloat16"), 4096)
    assert four_bit.weights < 0.5 * predict(SMALL, Job(rank=16), 4096).weights


def test_experts_are_not_put_into_4_bits():
    mixture = replace(THIRTEEN, experts=8, active=2)
    job = Job(weights="nf4", rank=16, targets=("q_proj",), compute_dtype="bfloat16")
    attention = 40 * 4 * 5120**2
    others = mixture.parameters - attention
    assert predict(mixture, job, 1).weights == 2 * others + attention * NF4 + 4 * adapter_size(mixture, job)
    assert THIRTEEN.plain_matrices == THIRTEEN.matrices


def test_experts_keep_rows_and_compute_in_the_type_of_their_weights():
    mixture = replace(THIRTEEN, experts=8, active=2)
    frozen, trained = Job(rank=16, targets=("q_proj",)), Job()
    for job, numbers in (
        (frozen, 3 * mixture.ffn + mixture.width),
        (trained, 4 * mixture.ffn + 2 * mixture.width),
    ):
        for weights, compute, width in (
            ("float32", "float32", 4),
            ("float32", "bfloat16", 4),
            ("bfloat16", "bfloat16", 2),
        ):
            chosen = replace(job, weights=weights, compute_dtype=compute)
            two, three = (layer_bytes(replace(mixture, active=active), chosen) for active in (2, 3))
            assert three - two == width * numbers
    cast = predict(mixture, Job(compute_dtype="bfloat16"), 1).cast
    router = 40 * 8 * mixture.width
    assert cast == 2 * (mixture.plain_matrices + router + mixture.embeddings)


def test_the_logits_of_the_head_are_bounded_whatever_the_tokens():
    row = 4 * SMALL.vocabulary
    assert predict(SMALL, Job(), 100).head == 100 * row
    assert KEPT_BYTES < predict(SMALL, Job(), 100_000).head <= CHUNK_BYTES + KEPT_BYTES
    card = predict(SMALL, Job(accelerator=True), 100_000).head
    assert CHUNK_BYTES - row < card <= CHUNK_BYTES
    assert predict(SMALL, Job(accelerator=True, entropy=True), 100_000).head == 2 * card


def test_the_largest_micro_batch_fits_and_the_next_does_not():
    job = Job(checkpointing=True)
    memory = predict(SMALL, job, 4000).peak
    found = largest(SMALL, job, memory)
    assert found % 256 == 0 and predict(SMALL, job, found).peak <= memory < predict(SMALL, job, found + 256).peak
    assert largest(SMALL, job, 1e6) == 0 and largest(SMALL, job, 1e15) == 2**16


def test_ranks_share_weights_gradients_and_moments_and_gather_the_weights():
    job = Job(checkpointing=True, ranks=8)
    memory, floor = predict(THIRTEEN, job, 1024), 16 * THIRTEEN.parameters
    root, layer = 2 * THIRTEEN.embeddings, THIRTEEN.matrices / THIRTEEN.layers
    # embeddings, head, two layers and the gradients of one, twice; those of the head besides all activations, those of
    # both at the end, twice
    unsharded, longer = 4 * root + 16 * layer, predict(THIRTEEN, job, 65_536)
    assert at_work(THIRTEEN, job, memory) == pytest.approx(floor / 8 + unsharded + 8 * root)
    first = longer.activations + longer.head + 4 * THIRTEEN.embeddings
    assert at_work(THIRTEEN, job, longer) == pytest.approx(floor / 8 + unsharded + first)
    assert loaded(memory, job) == pytest.approx(0.5 * THIRTEEN.parameters)
    assert loaded(memory, replace(job, whole=True)) == pytest.approx(4.5 * THIRTEEN.parameters)
    one = 8 * THIRTEEN.embeddings
    assert gathered(THIRTEEN, job, memory) == 4 * THIRTEEN.parameters / 8 + one
    assert gathered(THIRTEEN, replace(job, scorer=True), memory) == 4 * THIRTEEN.parameters + one
    for tokens in (256, 65_536):
        memory = predict(THIRTEEN, job, tokens)
        ends = loaded(memory, job), gathered(THIRTEEN, job, memory)
        assert rank_peak(THIRTEEN, job, tokens) == max(at_work(THIRTEEN, job, memory), *ends)
    assert rank_peak(THIRTEEN, replace(job, ranks=1), 256) == predict(THIRTEEN, job, 256).peak


def test_frozen_weights_of_ranks_have_no_gradients_and_their_own_type():
    job = Job(weights="bfloat16", compute_dtype="bfloat16", rank=16, checkpointing=True, ranks=4)
    memory = predict(THIRTEEN, job, 1024)
    shared = (2 * THIRTEEN.parameters + 16 * adapter_size(THIRTEEN, job)) / 4
    unsharded = 2 * (2 * THIRTEEN.embeddings + 2 * THIRTEEN.matrices / THIRTEEN.layers)
    assert at_work(THIRTEEN, job, memory) == pytest.approx(shared + unsharded + memory.activations + memory.head)


def test_operations_are_six_a_weight_and_token():
    tokens = 10_000
    used = SMALL.matrices + SMALL.embeddings
    assert training_flops(SMALL, Job(), tokens, tokens, 0) == 6 * used * tokens
    twice = training_flops(SMALL, Job(checkpointing=True), tokens, tokens, 0)
    assert twice == (8 * SMALL.matrices + 6 * SMALL.embeddings) * tokens
    adapted = training_flops(SMALL, Job(rank=8), tokens, tokens, 0)
    assert adapted == (4 * used + 6 * adapter_size(SMALL, Job(rank=8))) * tokens
    assert training_flops(SMALL, Job(), tokens, 0, 0) == 6 * SMALL.matrices * tokens  # unscored rows skip the head
    assert training_flops(SMALL, Job(), tokens, tokens, 512) > 6 * used * tokens
