"""Whole steps of togi with all compiled parts and with all but one: updates of the weights, or sampling.

One process measures both, under the same memory and load. A repeat measures every part once, each next to a step with
all parts, in alternating order.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import togi_common
import torch
import workloads
from side import Side, versions
from togi_sampling import WEIGHTS, Ragged
from togi_update import micro_batches
from transformers import AutoModelForCausalLM, AutoTokenizer

from togi import kernels
from togi.core.records import SamplingParams
from togi.model.attention import forest_arguments
from togi.model.forest import Forest, plant, split_by_tokens
from togi.model.forest import Sequence as TokenSequence
from togi.model.policy import Policy
from togi.objectives.base import Batch, Output
from togi.objectives.grpo import GRPO
from togi.objectives.sft import SFT
from togi.train.loop import MicroBatch, train_steps

Step = Callable[[str], float]
"""A step without the named part ("": with all); seconds."""


@contextmanager
def without(part: str) -> Iterator[None]:
    """Inside the context torch computes that part ("": none)."""
    if not part:
        yield
        return
    assert kernels.report()[part] == "compiled", f"{part}: {kernels.report()[part]}"
    with kernels.without(part):
        yield


def texts(config: dict[str, Any]) -> list[MicroBatch[Forest]]:
    """Texts of several lengths, each a separate tree."""
    groups = [
        [TokenSequence(tuple(ids), (False,) * first + (True,) * (len(ids) - first))]
        for ids, first in workloads.texts(config)
    ]
    found = []
    for cut in split_by_tokens(groups, config["tokens"]):
        forest = plant(cut.groups)
        batch = Batch(num_sequences=forest.num_sequences, sequence_N=forest.sequence_N)
        found.append(MicroBatch(inputs=forest, batch=batch, num_tokens=len(forest.ids_T)))
    return found


def log_probabilities(policy: Policy, config: dict[str, Any]) -> Callable[[Forest], Output]:
    """Without entropies, as in `train.sft`."""
    return togi_common.in_precision(lambda forest: Output(logp_N=policy(forest).logp_N), config)


def layers_step(side: Side, clock: Callable[[], float]) -> tuple[Step, int]:
    """Forward and backward of the first decoder layers alone, and how many tokens pass through them. The share that
    a part has of them is the most that it can have of a whole step."""
    config = side.config
    net = AutoModelForCausalLM.from_pretrained(config["model"], dtype=torch.float32, num_hidden_layers=config["layers"])
    body = Policy(net, check=False).net.model
    body.embed_tokens.requires_grad_(False)
    forest = micro_batches(config)[0].inputs
    grad = torch.randn(1, len(forest.ids_T), net.config.hidden_size, generator=torch.Generator().manual_seed(1))

    def step(part: str) -> float:
        with without(part):
            start = clock()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config["precision"] == "bf16"):
                hidden = body(**forest_arguments(forest)).last_hidden_state
            hidden.backward(grad)
            return clock() - start

    return step, len(forest.ids_T)


def update_step(side: Side, clock: Callable[[], float]) -> tuple[Step, int]:
    """Updates of a GRPO group ("group") or of texts ("texts"), and how many tokens one computes."""
    config = side.config
    policy, group = togi_common.load(config), config["work"] == "group"
    asked: list[str] = []
    times: list[float] = []
    batches = micro_batches if group else texts

    def batches_on_demand() -> Iterator[list[MicroBatch[Forest]]]:
        while True:
            with without(asked[0]):
                times.append(clock())
                yield batches(config)

    forward = togi_common.forward(policy, config) if group else log_probabilities(policy, config)
    update, objective = togi_common.update(policy, config), GRPO() if group else SFT()
    steps = iter(train_steps(forward, update, objective, batches_on_demand()))

    def step(part: str) -> float:
        asked[:] = [part]
        next(steps)
        return clock() - times[-1]

    return step, sum(batch.num_tokens for batch in batches(config))


def sampling_step(side: Side, clock: Callable[[], float]) -> tuple[Step, int]:
    """Answers to a few prompts, and how many tokens they have. Every step has a new sampler, since keys are laid out
    for the attention that reads them."""
    config = side.config
    net = AutoModelForCausalLM.from_pretrained(
        config["model"], dtype=WEIGHTS[config["precision"]], num_hidden_layers=config["layers"]
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    samples, groups = config["samples"], config["groups"]
    lengths = workloads.answer_lengths(config)
    prompts = [prompt for prompt, _ in workloads.groups({**config, "answer": 0})]
    params = SamplingParams(max_tokens=config["longest"], n=samples)
    seeds = [[i * samples + j for j in range(samples)] for i in range(groups)]

    def step(part: str) -> float:
        with without(part):
            sampler = Ragged(net, tokenizer, "<|eot_id|>", batch_rows=groups * samples)
            sampler.ends_at = [lengths[i * samples : (i + 1) * samples] for i in range(groups)]
            start = clock()
            sampler.generate(prompts, params, seeds)
            return clock() - start

    return step, sum(lengths)


def main() -> None:
    side = Side()
    config = side.config
    clock = time.process_time if config["threads"] == 1 else time.perf_counter
    step, tokens = {"sampling": sampling_step, "layers": layers_step}.get(config["work"], update_step)(side, clock)
    repeat = 0

    def measure() -> dict[str, Any]:
        nonlocal repeat
        repeat += 1
        pairs = {}
        for part in config["parts"]:
            ways = ["", part] if repeat % 2 else [part, ""]
            found = {way: step(way) for way in ways}
            pairs[part] = [found[""], found[part]]
        return {"seconds": sum(sum(pair) for pair in pairs.values()), "pairs": pairs}

    step("")
    side.ready(versions=versions("togi"), tokens=tokens)
    side.serve(measure)


if __name__ == "__main__":
    torch.set_grad_enabled(True)
    main()
