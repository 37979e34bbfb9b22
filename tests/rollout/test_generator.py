"""Prompts through template, sampler and back; what the sampler refuses."""

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rollout_tiny import CONFIGS, CharTokenizer, byte_level, tiny
from transformers import LlamaConfig

from togi.core.errors import InputError
from togi.core.protocols import Request
from togi.core.records import Message, Prompt, SamplingParams
from togi.core.seeds import derive
from togi.rollout.engine import batches
from togi.rollout.generator import ModelGenerator
from togi.rollout.local import Sampler
from togi.text.render import render_prompt
from togi.text.template import get_template


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


@pytest.fixture(scope="module")
def generator(tokenizer):
    net = tiny(LlamaConfig(**{**CONFIGS["llama"].to_diff_dict(), "max_position_embeddings": 512}))
    return ModelGenerator(net, tokenizer, get_template("llama3-text", tokenizer), batch_rows=4)


def prompt(name: str, text: str = "今日は?") -> Prompt:
    return Prompt(id=name, messages=(Message("user", text),))


def test_answers_belong_to_prompts_and_not_to_their_places(generator, tokenizer):
    prompts = [prompt("a"), prompt("b", "Hello there"), prompt("c", "yes")]
    params = SamplingParams(n=2, max_tokens=8, seed=5)
    found = generator.generate(prompts, params)
    assert [[len(c.token_ids) for c in group] for group in found] == [[8, 8]] * 3
    turned = generator.generate(prompts[::-1], params)[::-1]
    assert [[c.token_ids for c in g] for g in found] == [[c.token_ids for c in g] for g in turned]
    ids = render_prompt(generator.template, tokenizer, prompts[1].messages)
    seeds = [derive(5, "b", 0), derive(5, "b", 1)]
    assert generator.sampler.generate([ids], params, [seeds])[0] == generator.generate([prompts[1]], params)[0]


@pytest.mark.parametrize("seed", range(12))
def test_a_stream_is_the_same_answer_in_pieces(generator, seed):
    params = SamplingParams(max_tokens=24, seed=seed, stop=("e",))
    whole = generator.generate([prompt("a")], params)[0][0]
    assert "".join(generator.stream(prompt("a"), params)) == whole.text.removesuffix(generator.template.terminator)


def test_a_stream_that_is_left_is_cancelled(generator):
    for _ in generator.stream(prompt("a"), SamplingParams(max_tokens=100)):
        break
    assert not generator.sampler.busy


def test_stop_strings_leave_their_ids_and_go_from_the_text(generator):
    found = generator.generate([prompt(str(i)) for i in range(6)], SamplingParams(max_tokens=60, stop=("e", "t")))
    stopped = [group[0] for group in found if group[0].stop == "stop_string"]
    assert stopped
    for completion in stopped:
        assert "e" not in completion.text and "t" not in completion.text
        written = generator.tokenizer.decode(list(completion.token_ids), skip_special_tokens=False)
        assert "e" in written or "t" in written


@pytest.mark.parametrize(
    ("length", "more", "advice"),
    [
        (100, 40, "shorten the prompt by 12 tokens or lower max_tokens to 28"),
        (100, 999, "lower max_tokens to 28"),
        (100, 29, "shorten the prompt by 1 token or lower max_tokens to 28"),
        (1, 128, "lower max_tokens to 127"),
        (200, 40, "shorten the prompt by 112 tokens"),
        (200, 999, "shorten the prompt and lower max_tokens"),
    ],
)
def test_a_prompt_longer_than_the_context_names_itself_and_what_helps(length, more, advice):
    engine = Sampler(tiny(CONFIGS["llama"]), CharTokenizer(), "Q")
    tokens = "1 token" if length == 1 else f"{length} tokens"
    sums = f"{tokens} and max_tokens {more} are {length + more}"
    message = f"prompt 0: {sums}, but the model's context is 128; {advice}"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        engine.generate([[2] * length], SamplingParams(max_tokens=more), [[0]])
    assert engine.generate([[2] * 100], SamplingParams(max_tokens=28), [[0]])[0][0].stop == "length"


def test_requests_that_can_never_be_answered_are_refused():
    engine = Sampler(tiny(CONFIGS["llama"]), CharTokenizer(), "Q", batch_rows=2)
    with pytest.raises(InputError, match="it has no tokens"):
        engine.generate([[]], SamplingParams(), [[0]])
    with pytest.raises(InputError, match="1 seeds for n = 2"):
        engine.generate([[1]], SamplingParams(n=2), [[0]])
    with pytest.raises(InputError, match="n = 3 samples, but a batch has 2 rows"):
        engine.add(Request(prompt_ids=(1,), params=SamplingParams(n=3), seeds=(0, 1, 2)))
    engine.add(Request(prompt_ids=(1,), params=SamplingParams(max_tokens=4), seeds=(0,)))
    with pytest.raises(RuntimeError, match="requests of add are running"):
        engine.generate([[1]], SamplingParams(), [[0]])


def test_models_and_templates_that_do_not_fit_are_refused():
    net = tiny(CONFIGS["llama"])
    with pytest.raises(InputError, match="no terminator"):
        Sampler(net, CharTokenizer(), "")
    with pytest.raises(InputError, match="Linear is not a model of transformers"):
        Sampler(torch.nn.Linear(2, 2), CharTokenizer(), "Q")


def test_layers_of_an_unknown_type_compute_whole_sequences_and_a_warning_says_so(caplog):
    net = tiny(CONFIGS["llama"])
    expected = Sampler(net, CharTokenizer(), "Q").generate([[1, 2, 3]], SamplingParams(max_tokens=6), [[0]])[0][0]
    net.config.layer_types = ["linear_attention", "full_attention"]
    sampler = Sampler(net, CharTokenizer(), "Q")
    assert "only the library can compute its layers of type linear_attention" in caplog.text
    found = sampler.generate([[1, 2, 3]], SamplingParams(max_tokens=6), [[0]])[0][0]
    assert found.token_ids == expected.token_ids


def test_an_adapter_is_sampled_and_its_training_seen():
    torch.manual_seed(3)
    net = get_peft_model(tiny(CONFIGS["llama"]), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    engine = Sampler(net, CharTokenizer(), "Q")
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    completion = engine.generate([[1, 2, 3]], SamplingParams(max_tokens=6), [[0]])[0][0]
    ids = torch.tensor([[1, 2, 3, *completion.token_ids]])
    with torch.no_grad():
        logp = net(input_ids=ids).logits[0, 2:-1].log_softmax(-1).gather(1, ids[0, 3:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(completion.logprobs), logp, atol=1e-4, rtol=0)


def test_batches_follow_from_the_counts_alone():
    assert batches([2, 2, 2, 5, 1, 1], 4) == [range(0, 2), range(2, 3), range(3, 4), range(4, 6)]
    assert batches([], 4) == []
