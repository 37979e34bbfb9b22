"""The embedded engine: queues of requests, prompts that join a running batch, the likeliest tokens, new weights."""

import copy
import threading
from itertools import zip_longest

import pytest
import torch
from rollout_tiny import CONFIGS, CharTokenizer, byte_level, tiny

from togi.core.errors import InputError
from togi.core.protocols import Request
from togi.core.records import Message, Prompt, SamplingParams
from togi.rollout.engine import answer
from togi.rollout.generator import ModelGenerator
from togi.rollout.local import Sampler
from togi.text.template import get_template

PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [9, 8, 7], [5], [4, 4, 4, 4]]


@pytest.fixture(scope="module", params=["llama", "qwen3, wide heads", "gemma2, wide heads", "mixtral"])
def net(request):
    return tiny(CONFIGS[request.param])


@pytest.fixture(scope="module")
def llama():
    return tiny(CONFIGS["llama"])


@pytest.fixture(scope="module")
def generator():
    tokenizer = byte_level()
    return ModelGenerator(tiny(CONFIGS["llama"]), tokenizer, get_template("llama3-text", tokenizer), batch_rows=4)


def asked(at: int, **params) -> Request:
    settings = SamplingParams(**{"max_tokens": 10, **params})
    return Request(prompt_ids=tuple(PROMPTS[at]), params=settings, seeds=tuple(range(at * 10, at * 10 + settings.n)))


def plain_logp(net, request: Request, ids: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities (tokens, V) of the library's own forward, under temperature."""
    prompt = request.prompt_ids
    with torch.no_grad():
        logits = net(torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    return (logits / (request.params.temperature or 1.0)).log_softmax(-1)


# --- queues -----------------------------------------------------------------------------------------------------------


QUESTIONS = [Prompt(id=name, messages=(Message("user", text),)) for name, text in (("a", "Hello"), ("b", "今日は?"))]


def test_two_streams_read_in_turn_lose_no_text(generator):
    params = SamplingParams(max_tokens=20, seed=3)
    alone = ["".join(generator.stream(prompt, params)) for prompt in QUESTIONS]
    streams = [generator.stream(prompt, params) for prompt in QUESTIONS]
    pieces = list(zip_longest(*streams, fillvalue=""))
    assert ["".join(side) for side in zip(*pieces, strict=True)] == alone
    assert all(len(text) > 5 for text in alone)
    assert not generator.sampler.busy


def test_two_streams_in_two_threads_lose_no_text(generator):
    params = SamplingParams(max_tokens=20, seed=3)
    alone = {prompt.id: "".join(generator.stream(prompt, params)) for prompt in QUESTIONS}
    found: dict[str, str] = {}

    def read(prompt: Prompt) -> None:
        found[prompt.id] = "".join(generator.stream(prompt, params))

    threads = [threading.Thread(target=read, args=(prompt,)) for prompt in QUESTIONS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == alone


def test_what_one_reader_computes_waits_in_the_other_queues(llama):
    engine = Sampler(llama, CharTokenizer(), "Q")
    first, second = engine.add(asked(0)), engine.add(asked(1))
    assert len(list(engine.events(first))) == 1
    assert not engine.busy
    (event,) = engine.events(second)
    assert event.completion is not None and len(event.completion.token_ids) == 10
    assert list(engine.events(second)) == [] == list(engine.events(99))


def test_a_cancelled_request_ends_its_events_and_no_others(llama):
    engine = Sampler(llama, CharTokenizer(), "Q")
    names = [engine.add(asked(at)) for at in range(3)]
    engine.step()
    engine.cancel(names[1])
    assert [len(list(engine.events(name))) for name in names] == [1, 0, 1]


def test_answers_come_in_the_order_of_the_requests_however_they_end(llama):
    engine = Sampler(llama, CharTokenizer(), "Q")
    requests = [asked(0, max_tokens=12), asked(1, max_tokens=3), asked(2, n=2, max_tokens=5)]
    found = answer(engine, requests)
    assert [len(completion.token_ids) for completion in next(found)] == [12]
    assert not engine.busy  # the short ones ended meanwhile
    assert [[len(c.token_ids) for c in group] for group in found] == [[3], [5, 5]]


def test_answers_that_nobody_waits_for_are_cancelled(llama):
    engine = Sampler(llama, CharTokenizer(), "Q")
    found = answer(engine, [asked(0, max_tokens=2), asked(1, max_tokens=50)])
    next(found)
    found.close()
    assert not engine.busy


# --- prompts that join ------------------------------------------------------------------------------------------------


def test_a_request_that_joins_stops_no_row_and_changes_no_logits(net):
    counted = []
    engine = Sampler(net, CharTokenizer(), "Q", on_logits=lambda logits, rows: counted.append(rows))
    requests = [asked(0, n=3), asked(1, n=2), asked(3, n=2)]
    names = [engine.add(requests[0])]
    engine.step()
    names.append(engine.add(requests[1]))
    engine.step()
    engine.step()
    names.append(engine.add(requests[2]))
    found = {(name, event.index): event.completion for name in names for event in engine.events(name)}
    first, second, third = ([(name, i) for i in range(r.params.n)] for name, r in zip(names, requests, strict=True))
    assert counted[:4] == [first, [*first, *second], [*first, *second], [*first, *second, *third]]
    assert len(counted) == 3 + 10  # no request waited: the last one began with the fourth step
    for name, request in zip(names, requests, strict=True):
        for index in range(request.params.n):
            completion = found[name, index]
            logp = plain_logp(net, request, completion.token_ids)
            expected = logp.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


# --- prompts with a common beginning ----------------------------------------------------------------------------------


COMMON = tuple(1 + i * i % 31 for i in range(40))


def test_what_prompts_begin_with_in_common_is_computed_once(net):
    tokens = []
    engine = Sampler(net, CharTokenizer(), "Q")
    engine.net.register_forward_pre_hook(
        lambda module, args, given: tokens.append(given["input_ids"].numel()), with_kwargs=True
    )
    tails = [(9, 8, 7), (5,), (), (4, 4), COMMON[:3]]
    requests = [
        Request(prompt_ids=(*COMMON, *tail), params=SamplingParams(max_tokens=6, n=2), seeds=(2 * at, 2 * at + 1))
        for at, tail in enumerate(tails)
    ]
    names = [engine.add(request) for request in requests[:3]]
    engine.step()
    engine.step()
    names += [engine.add(request) for request in requests[3:]]
    found = {(name, event.index): event.completion for name in names for event in engine.events(name)}
    # 32 of the 40 tokens are two blocks: the first prompt computes them; those next to it and those that join do not
    assert tokens[:3] == [43 + 9 + 8, 6, 10 + 11 + 6]
    for name, request in zip(names, requests, strict=True):
        for index in range(2):
            logp = plain_logp(net, request, found[name, index].token_ids)
            expected = logp.gather(1, torch.tensor(found[name, index].token_ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(found[name, index].logprobs), expected, atol=1e-4, rtol=0)


def test_a_beginning_is_taken_from_running_requests_alone(llama):
    """So a unit of work that is repeated computes the same, whatever the engine did before."""
    tokens = []
    engine = Sampler(llama, CharTokenizer(), "Q")
    engine.net.register_forward_pre_hook(
        lambda module, args, given: tokens.append(given["input_ids"].numel()), with_kwargs=True
    )
    for _ in range(2):
        engine.generate([COMMON], SamplingParams(max_tokens=1), [[0]])
    assert tokens == [40, 40]


# --- the likeliest tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [{}, {"temperature": 0.5}, {"temperature": 0.0}, {"top_k": 2, "min_p": 0.1}])
def test_the_likeliest_tokens_are_those_of_a_plain_forward(llama, params):
    engine = Sampler(llama, CharTokenizer(), "Q")
    requests = [asked(0, logprobs=4, **params), asked(1), asked(2, logprobs=1)]
    (found,), (silent,), (one,) = answer(engine, requests)
    expected = plain_logp(llama, requests[0], found.token_ids).topk(4, -1)
    assert [[token for token, _ in top] for top in found.top_logprobs] == expected.indices.tolist()
    values = torch.tensor([[logp for _, logp in top] for top in found.top_logprobs])
    torch.testing.assert_close(values, expected.values, atol=1e-4, rtol=0)
    for token, logp, top in zip(found.token_ids, found.logprobs, found.top_logprobs, strict=True):
        assert dict(top).get(token, logp) == pytest.approx(logp, abs=1e-6)
    assert silent.top_logprobs == ()
    assert [len(top) for top in one.top_logprobs] == [1] * 10


def test_a_negative_number_of_likeliest_tokens_is_refused(llama):
    with pytest.raises(InputError, match=r"sampling: logprobs is -1; allowed: 0 \(off\) or more"):
        Sampler(llama, CharTokenizer(), "Q").add(asked(0, logprobs=-1))


# --- weights ----------------------------------------------------------------------------------------------------------


def test_published_weights_are_sampled_from(llama):
    net, other = copy.deepcopy(llama), copy.deepcopy(llama)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.1)
    engine = Sampler(net, CharTokenizer(), "Q")
    before = next(answer(engine, [asked(0)]))
    engine.publish(other.named_parameters())
    expected = next(answer(Sampler(other, CharTokenizer(), "Q"), [asked(0)]))
    assert next(answer(engine, [asked(0)])) == expected != before


def test_weights_are_not_published_under_running_requests(llama):
    engine = Sampler(llama, CharTokenizer(), "Q")
    name = engine.add(asked(0))
    engine.step()
    with pytest.raises(RuntimeError, match="while requests are running"):
        engine.publish(llama.named_parameters())
    engine.close()
    assert list(engine.events(name)) == [] and not engine.busy
    engine.publish(llama.named_parameters())
