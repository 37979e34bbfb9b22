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
from togi.rollout.room import KeyRoom
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


def computing(net) -> tuple[Sampler, list[int]]:
    """A sampler, and the number of tokens of each of its passes."""
    tokens: list[int] = []
    engine = Sampler(net, CharTokenizer(), "Q")
    engine.net.register_forward_pre_hook(
        lambda module, args, given: tokens.append(given["input_ids"].numel()), with_kwargs=True
    )
    return engine, tokens


def test_what_prompts_begin_with_in_common_is_computed_once(net):
    engine, tokens = computing(net)
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
    engine, tokens = computing(llama)
    for _ in range(2):
        engine.generate([COMMON], SamplingParams(max_tokens=1), [[0]])
    assert tokens == [40, 40]


def ask(engine: Sampler, ids: tuple[int, ...], **params):
    request = Request(prompt_ids=ids, params=SamplingParams(**{"max_tokens": 6, **params}), seeds=(7,))
    ((found,),) = answer(engine, [request])
    return request, found


def assert_plain(net, request: Request, found) -> None:
    """The answer has the log-probabilities of the library's own forward."""
    expected = plain_logp(net, request, found.token_ids).gather(1, torch.tensor(found.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(found.logprobs), expected, atol=1e-4, rtol=0)


def test_a_kept_beginning_is_not_computed_again(net):
    engine, tokens = computing(net)
    engine.kept.size = 2**20
    _, first = ask(engine, COMMON, max_tokens=30)
    assert tokens.pop(0) == 40
    tokens.clear()
    # a conversation goes on: of the prompt and the answer, 69 tokens have keys, which are four blocks
    request, second = ask(engine, (*COMMON, *first.token_ids, 4, 3))
    assert tokens[0] == 40 + 30 + 2 - 64
    assert_plain(net, request, second)
    tokens.clear()
    request, third = ask(engine, (*COMMON[:33], 1))
    assert tokens[0] == 2
    assert_plain(net, request, third)
    assert engine.kept.reused == 64 + 32


def test_kept_keys_serve_prompts_that_join_running_rows(net):
    engine, tokens = computing(net)
    engine.kept.size = 2**20
    ask(engine, COMMON)
    tokens.clear()
    ids = [(*range(1, 30),), (*COMMON, 5), (*COMMON, 6, 7)]
    requests = [Request(prompt_ids=one, params=SamplingParams(max_tokens=6, n=2), seeds=(1, 2)) for one in ids]
    names = [engine.add(requests[0])]
    engine.step()
    names += [engine.add(request) for request in requests[1:]]
    found = {(name, event.index): event.completion for name in names for event in engine.events(name)}
    assert tokens[:2] == [29, 9 + 10 + 2]
    for name, request in zip(names, requests, strict=True):
        for index in range(2):
            assert_plain(net, request, found[name, index])


def test_kept_keys_stay_within_their_size_and_the_oldest_go_first(llama):
    engine, tokens = computing(llama)
    block = 16 * KeyRoom(llama, 1).token
    engine.kept.size = 5 * block
    old, new = (1,) * 56, (2,) * 56
    for ids in (old, new, new, old):
        ask(engine, ids, max_tokens=1)
    assert tokens == [56, 56, 8, 24]  # of the old prompt's three blocks, the first two have stayed


def test_kept_keys_of_earlier_weights_are_forgotten(llama):
    net = copy.deepcopy(llama)
    engine, tokens = computing(net)
    engine.kept.size = 2**20
    ask(engine, COMMON)
    with torch.no_grad():
        changed = [(name, weight * 1.1) for name, weight in net.named_parameters()]
    engine.publish(changed)
    tokens.clear()
    request, found = ask(engine, COMMON)
    assert tokens[0] == 40
    assert_plain(net, request, found)


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


def test_published_weights_are_sampled_from_where_weights_are_packed_for_good(llama):
    net = copy.deepcopy(llama)
    engine = Sampler(net, CharTokenizer(), "Q")
    engine.pack()
    with torch.no_grad():
        changed = [(name, weight * 1.1) for name, weight in net.named_parameters()]
    for weights in ([], changed):
        engine.publish(weights)
        assert_plain(net, *ask(engine, COMMON, max_tokens=40))
    assert any(getattr(module, "packed", None) is not None for module in engine.net.modules())


def test_weights_are_not_published_under_running_requests(llama):
    engine = Sampler(llama, CharTokenizer(), "Q")
    name = engine.add(asked(0))
    engine.step()
    with pytest.raises(RuntimeError, match="while requests are running"):
        engine.publish(llama.named_parameters())
    engine.close()
    assert list(engine.events(name)) == [] and not engine.busy
    engine.publish(llama.named_parameters())
