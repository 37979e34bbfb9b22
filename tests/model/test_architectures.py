"""Architectures of the library, tiny and random: each trains, is saved and answers, or is refused with the reason.

None may raise an exception that is not togi's own.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import BYTES, SHAPE, tiny_tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from togi.core.errors import InputError
from togi.core.records import Message, Prompt, SamplingParams
from togi.core.sources import ModelSource
from togi.model.forest import Sequence, plant
from togi.model.load import load, load_tokenizer
from togi.model.policy import Policy, plain_logprobs
from togi.model.save import check_saved, save_model
from togi.rollout.generator import ModelGenerator
from togi.stages.training.examples_work import window_of

OTHER_NAMES = {  # other names of the same sizes
    **{"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 256},
    **{"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "ffn_dim": 48, "word_embed_proj_dim": 32},
    **{"rotary_dim": 8, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "state_size": 8},
    **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8},
    **{"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 20},
}
LATENT = {"head_dim": None, "num_key_value_heads": 4}
CHANGES: dict[str, dict[str, Any]] = {
    "bloom": {"max_position_embeddings": None},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "falcon": LATENT,
    "falcon_alibi": {**LATENT, "alibi": True},
    "minicpm3": LATENT,
    "mpt": {"intermediate_size": None},
    "mamba2": {"num_heads": 4, "head_dim": 16, "expand": 2},
    "phi3_longrope": {
        "original_max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    },
    "llama_dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
}
# shared prompts and kept keys, shared prompts alone, or neither
BOTH, SHARED, APART = (False, False), (False, True), (True, True)
FAST = {
    "gpt2": BOTH,
    "opt": BOTH,
    "phi3": BOTH,
    "phi3_longrope": BOTH,
    "llama_dynamic": BOTH,
    "stablelm": APART,
    "bloom": APART,
    "falcon": APART,
    "falcon_alibi": APART,
    "gpt_oss": APART,
    "deepseek_v3": BOTH,
    "llama4_text": APART,
    "biogpt": SHARED,
}
SLOW = {
    **dict.fromkeys(("gpt_neox", "phi", "starcoder2", "gpt_bigcode", "olmo", "olmo2", "olmo3", "olmoe"), BOTH),
    **dict.fromkeys(("cohere", "cohere2", "gemma", "glm", "glm4", "glm4_moe", "granite", "granitemoe"), BOTH),
    **dict.fromkeys(("qwen2_moe", "deepseek_v2", "smollm3", "persimmon", "exaone4", "ernie4_5", "helium"), BOTH),
    **dict.fromkeys(("seed_oss", "arcee", "phimoe", "bitnet", "apertus", "ministral", "vaultgemma", "dots1"), BOTH),
    **dict.fromkeys(("jetmoe", "diffllama"), SHARED),
    **dict.fromkeys(("mpt", "codegen", "gptj", "nemotron", "xglm", "openai-gpt"), APART),
}
REFUSED = {
    "mamba": "mamba models are not supported: it keeps a recurrent state",
    "mamba2": "mamba2 models are not supported: it keeps a recurrent state",
    "rwkv": "recurrent state",
    "recurrent_gemma": "recurrent state",
    "jamba": "recurrent state",
    "qwen3_next": "recurrent state",
    "minimax": "layers of type linear_attention",
    "t5": "t5 models are not supported: it has an encoder in addition to its decoder",
    "bert": "bert models are not supported: it is an encoder",
    "modernbert-decoder": "its head does something unknown",
    "minicpm3": "its head does something unknown",
}


def made(name: str, folder: Path) -> ModelSource:
    """A folder with a tiny random model of an architecture."""
    kind = name if name in ("openai-gpt", "modernbert-decoder") else name.removesuffix("_alibi")
    kind = kind.removesuffix("_longrope").removesuffix("_dynamic")
    plain = AutoConfig.for_model(kind)
    known = {**SHAPE, "vocab_size": BYTES, **{k: v for k, v in OTHER_NAMES.items() if hasattr(plain, k)}}
    known |= CHANGES.get(name, {})
    config = type(plain)(**{key: value for key, value in known.items() if value is not None})
    torch.manual_seed(0)
    causal = type(config) in AutoModelForCausalLM._model_mapping.keys()  # noqa: SIM118 (it is no dictionary)
    (AutoModelForCausalLM if causal else AutoModel).from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return ModelSource(kind="path", name=str(folder), template="chatml-nobos")


GROUP = [
    Sequence(tuple(range(5, 25)), (False,) * 10 + (True,) * 10),
    Sequence((*range(5, 15), *range(40, 50)), (False,) * 10 + (True,) * 10),
]


def check(name: str, ways: tuple[bool, bool], folder: Path) -> None:
    source = made(name, folder / "m")
    load_tokenizer(source, folder)
    model = load(source, folder)
    with torch.no_grad():
        plain = plain_logprobs(model.net, GROUP)
    policy = Policy(model.net)
    scored = policy(plant([GROUP])).logp_N
    torch.testing.assert_close(scored.detach(), plain, rtol=1e-3, atol=1e-3)
    (-scored.mean()).backward()
    torch.optim.SGD(policy.parameters(), lr=1e-2).step()
    save_model(model, folder / "o")
    assert check_saved(model, folder / "o") == []
    load_tokenizer(ModelSource(kind="path", name=str(folder / "o")), folder)
    again = load(ModelSource(kind="path", name=str(folder / "o")), folder)
    generator = ModelGenerator(again.net, again.tokenizer, again.template, batch_rows=2)
    prompt = Prompt(id="a", messages=(Message("user", "Hi"),))
    ((answer, other),) = generator.generate([prompt], SamplingParams(max_tokens=5, n=2, seed=1))
    assert answer.token_ids and other.token_ids
    assert (policy.apart, generator.sampler.whole) == ways


@pytest.mark.parametrize("name", FAST)
def test_an_architecture_trains_is_saved_and_answers(name, tmp_path):
    check(name, FAST[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_more_architectures_train_are_saved_and_answer(name, tmp_path):
    check(name, SLOW[name], tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_is_refused_with_the_reason(name, tmp_path):
    source = made(name, tmp_path / "m")
    with pytest.raises(InputError, match=REFUSED[name]):
        if "head" in REFUSED[name]:
            Policy(load(source, tmp_path).net)
        else:
            load_tokenizer(source, tmp_path)


def test_a_model_that_does_not_say_its_context_needs_a_length(tmp_path):
    context: Any = SimpleNamespace(name="tuned")
    bloom, gpt2 = (load(made(name, tmp_path / name), tmp_path) for name in ("bloom", "gpt2"))
    with pytest.raises(InputError, match=r"stage tuned: max_length is not set, and .* does not specify its context"):
        window_of(None, context, bloom)
    assert (window_of(64, context, bloom), window_of(None, context, gpt2)) == (64, 256)
    with pytest.raises(InputError, match="max_length is 257, but the model's context is 256"):
        window_of(257, context, gpt2)
