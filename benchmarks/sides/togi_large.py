"""One whole GRPO step by togi of a 13B model with random weights, made on the device in 4 bits, layer after layer."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import togi_common
import togi_step
import torch
import workloads
from side import Side, versions
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from togi.core.records import Message, Prompt
from togi.model.load import LoadedModel
from togi.model.quantised import four_bits
from togi.stages.models import adapted
from togi.stages.training.grpo import TrainGrpo
from togi.stages.training.grpo_work import GrpoBatches
from togi.stages.training.lora import Lora
from togi.train import usage
from togi.train.loop import train_steps

SPREAD = 0.02  # of random weights


def network(config: dict[str, Any], device: torch.device) -> Any:
    """A random Llama of the sizes `shape`, its layers' matrices in 4 bits and the rest in bfloat16."""
    known = LlamaConfig(**config["shape"], dtype="bfloat16")
    with torch.device("meta"):
        net: Any = LlamaForCausalLM(known)
        net.to(torch.bfloat16)
    body = net.get_decoder()
    with device:  # what is computed from the configuration
        body.rotary_emb = type(body.rotary_emb)(known)
    generator = torch.Generator(device).manual_seed(config["seed"])
    for name, part in list(net.named_modules()):
        for own, weight in list(part.named_parameters(recurse=False)):
            made = torch.ones(weight.shape, dtype=weight.dtype, device=device)
            made = made if weight.dim() < 2 else made.normal_(std=SPREAD, generator=generator)
            part.register_parameter(own, nn.Parameter(made, requires_grad=False))
        if type(part) is nn.Linear and name.startswith("model.layers."):
            net.set_submodule(name, four_bits(part, torch.bfloat16).to(device))
    net.is_loaded_in_4bit = True
    return net.eval()


def settings(config: dict[str, Any]) -> TrainGrpo:
    """The stage of docs/memory.md."""
    base = togi_step.settings({**config, "groups": 1}).model_dump()
    lora = Lora(rank=16, base="nf4").model_dump()
    return TrainGrpo.model_validate(
        base | {"lora": lora, "activation_checkpointing": True, "key_cache": config["keys"]}
    )


def main() -> None:
    side = Side()
    config, device = side.config, side.device
    if device.type == "cuda":
        size = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, config["cap"] / size))
    before = usage.at_rest(device)
    usage.begin_peak(device)
    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    bare = LoadedModel(net=network(config, device), tokenizer=tokenizer, template=togi_step.BARE, name="large")
    chosen = settings(config)
    assert chosen.lora is not None
    model = adapted(bare, chosen.lora, seed=config["seed"])
    texts = workloads.prompt_texts(config, 4)
    prompts = [
        Prompt(id=str(i), messages=(Message("user", text[: config["letters"]]),)) for i, text in enumerate(texts)
    ]
    source = GrpoBatches(chosen, replace(togi_step.context(config), compute="bfloat16"), model, prompts)
    source.updates.policy.recompute = True
    started = 0.0

    def steps() -> Iterator[Any]:
        nonlocal started
        made = source.steps(0)
        while side.wait():
            started = side.clock()
            yield next(made)

    side.ready(versions=versions("togi"), weights=sum(weight.numel() for weight in model.net.parameters()))
    update = togi_common.update(model.net, config)
    forward = togi_common.in_precision(source.forward, config)
    for info in train_steps(forward, update, source.updates.objective(), steps()):
        phases = {phase: peak - before for phase, peak in usage.phases(device).items()}
        times = {f"{name}_seconds": value for name, value in source.made.times.items()}
        side.report(side.clock() - started, update_seconds=info.seconds, phases=phases, **times)


if __name__ == "__main__":
    main()
