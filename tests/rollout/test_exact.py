"""The sampler against the plain computation: tiny random models of every tested kind, in fp32."""

import copy
from itertools import chain

import pytest
import torch
from rollout_tiny import CONFIGS, VOCABULARY, CharTokenizer, tiny
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from togi.core.errors import InputError
from togi.core.protocols import Request
from togi.core.records import Completion, SamplingParams
from togi.rollout import sampling_model
from togi.rollout.local import Sampler
from togi.rollout.packed import PackedLinear

PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [9, 8, 7], [5], [4, 4, 4, 4, 4, 4, 4, 4]]


@pytest.fixture(scope="module", params=CONFIGS)
def net(request):
    return tiny(CONFIGS[request.param])


@pytest.fixture(scope="module")
def llama():
    return tiny(CONFIGS["llama"])


def sampler(net, terminator: str = "Q", **settings) -> Sampler:
    return Sampler(net, CharTokenizer(), terminator, **settings)


def streams(num_prompts: int, n: int) -> list[list[int]]:
    return [[100 * p + i for i in range(n)] for p in range(num_prompts)]


def plain_logp(net, prompt: list[int], completion: Completion, temperature: float) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    with torch.no_grad():
        logits = net(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    return (logits / temperature).log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_logprobs_are_those_of_a_plain_forward(net, temperature):
    # a terminator that is sampled often ends answers at different steps, so rows and groups move
    terminator = "".join(CharTokenizer().decode([7]))
    params = SamplingParams(n=5, max_tokens=20, temperature=temperature)
    found = sampler(net, terminator).generate(PROMPTS, params, streams(4, 5))
    for prompt, group in zip(PROMPTS, found, strict=True):
        for completion in group:
            expected = plain_logp(net, prompt, completion, temperature)
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)
            assert completion.sampled_logprobs == completion.logprobs


def test_greedy_is_that_of_transformers(net):
    params = SamplingParams(temperature=0.0, max_tokens=14)
    found = sampler(net).generate(PROMPTS, params, streams(4, 1))
    for prompt, group in zip(PROMPTS, found, strict=True):
        expected = net.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=14,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert list(group[0].token_ids) == expected[0, len(prompt) :].tolist()
        assert set(group[0].sampled_logprobs) == {0.0}
        torch.testing.assert_close(
            torch.tensor(group[0].logprobs), plain_logp(net, prompt, group[0], 1.0), atol=1e-4, rtol=0
        )


def test_a_stream_gives_the_same_ids_whichever_rows_run_beside_it(net):
    engine = sampler(net, batch_rows=12)
    together = engine.generate(PROMPTS, SamplingParams(n=3, max_tokens=12), streams(4, 3))
    for p, i in ((0, 0), (1, 2), (2, 1), (3, 2)):
        alone = engine.generate([PROMPTS[p]], SamplingParams(max_tokens=12), [[100 * p + i]])
        assert alone[0][0].token_ids == together[p][i].token_ids


FILTERS = [
    SamplingParams(top_k=7),
    SamplingParams(top_p=0.6),
    SamplingParams(top_p=0.97, temperature=1.5),
    SamplingParams(min_p=0.1, temperature=0.7),
    SamplingParams(repetition_penalty=1.4),
    SamplingParams(repetition_penalty=1.2, temperature=0.8, top_k=40, top_p=0.9, min_p=0.02),
    SamplingParams(),
]


def reference_logp(params: SamplingParams, seen: list[int], logits: torch.Tensor) -> torch.Tensor:
    """The library's own processors, one sequence at a time; (V,) log-probabilities."""
    ids = torch.tensor([seen])
    scores = logits[None]
    steps = [
        (params.repetition_penalty != 1, lambda: RepetitionPenaltyLogitsProcessor(params.repetition_penalty)),
        (params.temperature != 1, lambda: TemperatureLogitsWarper(params.temperature)),
        (params.top_k > 0, lambda: TopKLogitsWarper(params.top_k)),
        (params.top_p < 1, lambda: TopPLogitsWarper(params.top_p)),
        (params.min_p > 0, lambda: MinPLogitsWarper(params.min_p)),
    ]
    for wanted, make in steps:
        if wanted:
            scores = make()(ids, scores)
    return scores[0].double().log_softmax(-1)


def test_sampled_logprobs_are_those_of_the_processors_on_the_samplers_own_logits(llama):
    """Requests with different settings run together; each is compared with the library's processors on its own."""
    logits: dict[tuple[int, int], list[torch.Tensor]] = {}

    def watch(logits_RV, rows):
        for row, key in zip(logits_RV, rows, strict=True):
            logits.setdefault(key, []).append(row)

    engine = sampler(llama, on_logits=watch)
    requests = [
        Request(prompt_ids=tuple(PROMPTS[at % 4]), params=replaced(params, n=2, max_tokens=12), seeds=(at, at + 50))
        for at, params in enumerate(FILTERS)
    ]
    names = [engine.add(request) for request in requests]
    done = finish(engine, names)
    for name, request in zip(names, requests, strict=True):
        for index in range(2):
            completion = done[name, index]
            for at, token in enumerate(completion.token_ids):
                row = logits[name, index][at]
                seen = [*request.prompt_ids, *completion.token_ids[:at]]
                sampled = reference_logp(request.params, seen, row)[token].item()
                assert completion.sampled_logprobs[at] == pytest.approx(sampled, abs=1e-6)
                under_temperature = (row.double() / request.params.temperature).log_softmax(-1)[token].item()
                assert completion.logprobs[at] == pytest.approx(under_temperature, abs=1e-5)


def replaced(params: SamplingParams, **changes) -> SamplingParams:
    values = {name: changes.get(name, value) for name, value in vars_of(params).items()}
    return SamplingParams(**values)


def vars_of(params: SamplingParams) -> dict:
    return {name: getattr(params, name) for name in params.__slots__}


def finish(engine: Sampler, names: list[int]) -> dict[tuple[int, int], Completion]:
    events = [event for name in names for event in engine.events(name)]
    return {(event.request, event.index): event.completion for event in events if event.completion is not None}


def test_late_requests_join_and_cancelled_ones_leave(net):
    params = SamplingParams(n=2, max_tokens=12)

    def request(at: int) -> Request:
        return Request(prompt_ids=tuple(PROMPTS[at]), params=params, seeds=(100 * at, 100 * at + 1))

    engine = sampler(net)
    first, cancelled = engine.add(request(0)), engine.add(request(1))
    for _ in range(5):
        engine.step()
    late = engine.add(request(2))
    for _ in range(3):
        engine.step()
    engine.cancel(cancelled)
    never = engine.add(request(1))
    engine.cancel(never)
    last = engine.add(request(3))
    done = finish(engine, [first, cancelled, late, never, last])
    assert sorted(done) == [(name, index) for name in (first, late, last) for index in (0, 1)]
    for name, at in ((first, 0), (late, 2), (last, 3)):
        alone = sampler(net).generate([PROMPTS[at]], params, [[100 * at, 100 * at + 1]])[0]
        assert [done[name, i].token_ids for i in (0, 1)] == [c.token_ids for c in alone]


def test_more_requests_than_rows_wait(llama):
    params = SamplingParams(n=3, max_tokens=6)
    wide = sampler(llama).generate(PROMPTS, params, streams(4, 3))
    narrow = sampler(llama, batch_rows=4).generate(PROMPTS, params, streams(4, 3))
    split = sampler(llama, batch_rows=2).generate(PROMPTS, params, streams(4, 3))
    for a, b, c in zip(wide, narrow, split, strict=True):
        assert [x.token_ids for x in a] == [x.token_ids for x in b] == [x.token_ids for x in c]


def test_room_for_answers_grows(llama, monkeypatch):
    params = SamplingParams(n=2, max_tokens=60)
    expected = sampler(llama).generate(PROMPTS, params, streams(4, 2))
    monkeypatch.setattr("togi.rollout.batch.OWN_COLUMNS", 16)
    monkeypatch.setattr("togi.rollout.local.PREFILL_TOKENS", 12)
    found = sampler(llama).generate(PROMPTS, params, streams(4, 2))
    assert [[c.token_ids for c in g] for g in found] == [[c.token_ids for c in g] for g in expected]


def test_sampling_sees_training_steps_and_leaves_the_model_alone():
    net = tiny(CONFIGS["llama"]).train()
    before = net.config._attn_implementation
    engine = sampler(net)
    params = SamplingParams(max_tokens=8)
    engine.generate(PROMPTS, params, streams(4, 1))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
    net(torch.tensor([PROMPTS[0]]), labels=torch.tensor([PROMPTS[0]])).loss.backward()
    optimizer.step()
    found = engine.generate(PROMPTS, params, streams(4, 1))
    assert net.training
    assert net.config._attn_implementation == before
    for prompt, group in zip(PROMPTS, found, strict=True):
        expected = plain_logp(net, prompt, group[0], 1.0)
        torch.testing.assert_close(torch.tensor(group[0].logprobs), expected, atol=1e-4, rtol=0)


def test_an_untested_architecture_is_probed_and_a_wrong_one_computed_whole(llama, monkeypatch, caplog):

    monkeypatch.setattr(sampling_model, "TESTED", frozenset())
    assert sampler(llama).generate([[1]], SamplingParams(max_tokens=2), [[0]])
    monkeypatch.setattr("togi.rollout.attention.DecodePass._write", lambda self, buffer, new: None)
    engine = sampler(llama)
    assert engine.whole and "differ from the model's own" in caplog.text and "recomputes its whole" in caplog.text
    for prompt, (answer,) in zip(
        PROMPTS, engine.generate(PROMPTS, SamplingParams(max_tokens=8), streams(4, 1)), strict=True
    ):
        torch.testing.assert_close(
            torch.tensor(answer.logprobs), plain_logp(llama, prompt, answer, 1.0), atol=1e-4, rtol=0
        )
    monkeypatch.setattr(
        "togi.rollout.batch.RunningBatch._recomputed", lambda self: torch.zeros(len(self.rows), VOCABULARY)
    )
    with pytest.raises(InputError, match=r"LlamaForCausalLM: the embedded sampler cannot compute .* generate\(\)"):
        sampler(llama)


def test_packed_weights_give_the_same_and_are_given_back(net, monkeypatch):
    params = SamplingParams(n=3, max_tokens=8)
    engine = sampler(net)
    layers = [module for module in engine.net.modules() if isinstance(module, PackedLinear)]
    assert len(layers) == sum(type(module) is torch.nn.Linear for module in net.modules())
    expected = engine.generate(PROMPTS, params, streams(4, 3))
    packed = []
    monkeypatch.setattr("togi.rollout.local.FEWEST_TOKENS", 8)
    engine.on_logits = lambda logits, rows: packed.append(all(layer.packed is not None for layer in layers))
    found = engine.generate(PROMPTS, params, streams(4, 3))
    assert packed == [True] * 8
    assert all(layer.packed is None for layer in layers)
    for a, b in zip(chain(*expected), chain(*found), strict=True):
        assert a.token_ids == b.token_ids
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_in_a_half_type_the_sampler_is_as_near_to_the_truth_as_the_model(net, monkeypatch):
    monkeypatch.setattr("togi.rollout.local.FEWEST_TOKENS", 8)
    half = tiny(net.config).to(torch.bfloat16)
    wide = copy.deepcopy(half).float()
    found = sampler(half).generate(PROMPTS, SamplingParams(n=6, max_tokens=8), streams(4, 6))
    own, plain = [], []
    for prompt, group in zip(PROMPTS, found, strict=True):
        for completion in group:
            truth = plain_logp(wide, prompt, completion, 1.0)
            own.append((torch.tensor(completion.logprobs) - truth).abs())
            plain.append((plain_logp(half, prompt, completion, 1.0) - truth).abs())
    assert torch.cat(own).mean() < 1.3 * torch.cat(plain).mean()
