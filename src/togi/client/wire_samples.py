"""Calls for the samples of a policy and for updates of its weights, on vLLM, SGLang and togi:

    call                vllm                                  sglang                          togi
    sample token ids    /v1/completions                       /generate                       /v1/completions
    score token ids     the same, with echo                   the same, from the first on     the same, with echo
    weights of a folder /collective_rpc (reload_weights),     /update_weights_from_disk       /update_weights_from_disk
                        /reset_prefix_cache
    an adapter by name  /v1/unload_ and /v1/load_lora_adapter /unload_ and /load_lora_adapter a folder as well

A sample ends only at the terminator, which stays in it. The reply contains its ids and their log-probabilities.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from togi.client.transport import Reply
from togi.client.wire_base import Broken, Call, check_error, fields, items, listed, number, shown, text, token_ids

SEEDS: Mapping[str, int] = {"togi": 2**64}
"""The number of seeds that a server accepts, if it is not 2**31."""
PLAIN: Mapping[str, Any] = {"top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """A request for one sample after the ids of a prompt, from the random stream `seed`. `end_id` is the terminator's
    id if it is a single token."""

    prompt: tuple[int, ...]
    temperature: float
    max_tokens: int
    seed: int
    terminator: str
    end_id: int | None = None


@dataclass(frozen=True, slots=True)
class Sampled:
    """The ids of a sample, their log-probabilities, its finish reason, and the version of the weights, if the server
    reports it."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str
    weights: str | None


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights for a server to load from a `folder`, or, if that is empty, to receive; `mark` is their version. An
    `adapter` is loaded under the name `mark`, and replaces the one named `before`."""

    folder: str
    mark: str
    adapter: bool = False
    before: str = ""


# --- samples ----------------------------------------------------------------------------------------------------------


def sample(request: SampleRequest, model: str, speaks: str, adapter: str) -> Call:
    """The call for one sample; `adapter` is the name of the adapter to sample with, empty for none."""
    if speaks == "sglang":
        return _generate(request, adapter)
    body: dict[str, Any] = {
        "model": model if not adapter or speaks == "togi" else adapter,
        "prompt": request.prompt,
        "n": 1,
        "temperature": request.temperature,
        "top_k": 0,
        **PLAIN,
        "max_tokens": request.max_tokens,
        "seed": _seed(request.seed, speaks),
        "logprobs": 0,
        "return_token_ids": True,
        "stop": [request.terminator],
        "ignore_eos": True,
    }
    if request.end_id is not None:
        body["stop_token_ids"] = [request.end_id]
    if speaks == "vllm":
        shown = {"skip_special_tokens": False, "spaces_between_special_tokens": False}
        body |= {"include_stop_str_in_output": True, **shown}
    return Call("/completions", body)


def _generate(request: SampleRequest, adapter: str) -> Call:
    sampling: dict[str, Any] = {
        "n": 1,
        "temperature": request.temperature,
        "top_k": -1,
        **PLAIN,
        "max_new_tokens": request.max_tokens,
        "sampling_seed": _seed(request.seed, "sglang"),
        "stop": [request.terminator],
        "no_stop_trim": True,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
    }
    if request.end_id is not None:
        sampling["stop_token_ids"] = [request.end_id]
    body: dict[str, Any] = {"input_ids": request.prompt, "sampling_params": sampling, "return_logprob": True}
    return Call("/generate", body | ({"lora_path": adapter} if adapter else {}), at_root=True)


def _seed(seed: int, speaks: str) -> int:
    return seed % SEEDS.get(speaks, 2**31)


def read_sample(value: Any, speaks: str) -> Sampled:
    """The sample in a reply. Raises Broken."""
    if speaks == "sglang":
        check_error(value, "meta_info")
        row = fields(value[0] if isinstance(value, list) and value else value, "a sample")
        meta = fields(row.get("meta_info"), "meta_info")
        end = fields(meta.get("finish_reason"), "finish_reason").get("type")
        return _sampled(row.get("output_ids"), _native(meta, "output_token_logprobs"), end, meta.get("weight_version"))
    row = fields(listed(value, "choices", 1)[0], "a choice")
    logprobs = items(fields(row.get("logprobs"), "logprobs").get("token_logprobs"), "token_logprobs")
    return _sampled(row.get("token_ids"), logprobs, row.get("finish_reason"), value.get("weight_version"))


def _sampled(ids: Any, logprobs: list[Any], finish: Any, mark: Any) -> Sampled:
    found = token_ids(ids, len(logprobs))
    if not found:
        raise Broken("token ids: the sample has none")
    known = tuple(number(each, "a log-probability") for each in logprobs)
    return Sampled(found, known, text(finish, "finish_reason"), _mark(mark))


def _mark(value: Any) -> str | None:
    """The version of the weights, if the server reports it. Raises Broken."""
    return None if value is None else text(value, "weight_version")


def _native(meta: Mapping[str, Any], name: str) -> list[Any]:
    return [items(place, "a log-probability", 3)[0] for place in items(meta.get(name), name)]


# --- given texts ------------------------------------------------------------------------------------------------------


def score(ids: tuple[int, ...], model: str, speaks: str, adapter: str) -> Call:
    """The call that returns the log-probabilities of given ids, at temperature 1."""
    if speaks == "sglang":
        sampling = {"max_new_tokens": 1, "temperature": 1.0, "top_k": -1, **PLAIN}
        body: dict[str, Any] = {"input_ids": ids, "sampling_params": sampling}
        body |= {"return_logprob": True, "logprob_start_len": 0}
        return Call("/generate", body | ({"lora_path": adapter} if adapter else {}), at_root=True)
    named = model if not adapter or speaks == "togi" else adapter
    plain = {"temperature": 1.0, "top_k": 0, **PLAIN}
    return Call("/completions", {"model": named, "prompt": ids, **plain, "max_tokens": 1, "echo": True, "logprobs": 1})


def read_score(value: Any, speaks: str, count: int) -> tuple[tuple[float, ...], str | None]:
    """Log-probabilities of all `count` ids but the first, and the version of the server's weights. Raises Broken."""
    if speaks == "sglang":
        check_error(value, "meta_info")
        row = fields(value[0] if isinstance(value, list) and value else value, "a reply")
        meta = fields(row.get("meta_info"), "meta_info")
        found, mark = _native(meta, "input_token_logprobs"), meta.get("weight_version")
    else:
        row, mark = fields(listed(value, "choices", 1)[0], "a choice"), value.get("weight_version")
        found = items(fields(row.get("logprobs"), "logprobs").get("token_logprobs"), "token_logprobs")
    if len(found) < count:
        raise Broken(f"log-probabilities of a given text: received {len(found)}, expected {count}")
    return tuple(number(each, "a log-probability") for each in found[1:count]), _mark(mark)


# --- weights ----------------------------------------------------------------------------------------------------------


def orders(weights: Weights, speaks: str) -> list[Call]:
    """The calls, in order, that make a server load weights."""
    if speaks == "vllm" and not weights.adapter:
        reload = {"method": "reload_weights", "kwargs": {"weights_path": weights.folder}}
        return [Call("/collective_rpc", reload, at_root=True), Call("/reset_prefix_cache", {}, at_root=True)]
    if speaks == "togi" or not weights.adapter:
        body = {"model_path": weights.folder, "weight_version": weights.mark}
        return [Call("/update_weights_from_disk", body, at_root=True)]
    native = speaks == "sglang"
    leave = Call("/unload_lora_adapter", {"lora_name": weights.before}, at_root=native, may_fail=True)
    load = Call("/load_lora_adapter", {"lora_name": weights.mark, "lora_path": weights.folder}, at_root=native)
    return [*([leave] if weights.before else []), load]


def refusal(reply: Reply) -> str:
    """The reason why a server did not obey, in a reply whose status is good; empty if it did."""
    try:
        value = reply.json()
    except (ValueError, RecursionError):
        return ""  # vLLM answers in plain text
    return shown(value.get("message")) if isinstance(value, dict) and value.get("success") is False else ""
