"""Tiny models, with helpers to save, load and adapt them and to read their logits."""

from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from tiny import BYTES, tiny_model, tiny_tokenizer
from tiny_forests import batches

from togi.core.records import Message, Prompt, SamplingParams
from togi.core.sources import ModelSource
from togi.model.forest import plant
from togi.model.load import LoadedModel
from togi.model.policy import Policy
from togi.rollout.generator import ModelGenerator
from togi.text.template import Template, get_template


def loaded(kind: str = "llama", dtype: torch.dtype = torch.float32, **changes) -> LoadedModel:
    net = tiny_model(kind, dtype, vocab_size=BYTES, **changes)
    return LoadedModel(net=net, tokenizer=tiny_tokenizer(), template=get_template("chatml-nobos"), name="tiny")


def at(folder: Path, **changes) -> ModelSource:
    return ModelSource(kind="path", name=str(folder), **changes)


IDS = torch.tensor([[5, 9, 33, 7, 60, 61]])


def logits(net) -> torch.Tensor:
    with torch.no_grad():
        return net(input_ids=IDS).logits


def shaken(net) -> PeftModel:
    """Sets the adapter's weights to random values other than zero."""
    for name, weight in net.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return net


def trained_a_little(net):
    """The network after one large step on the policy's own log-probabilities, so that every adapter has moved."""
    shaken(net)
    params = [param for param in net.parameters() if param.requires_grad]
    Policy(net)(plant(batches()["many"])).logp_N.sum().backward()
    with torch.no_grad():
        for param in params:
            assert param.grad is not None
            param += 0.05 * param.grad.sign()
            param.grad = None
    return net


QUESTION = (Message("user", "Say it."),)


def speaker(kind: str = "llama", **changes) -> LoadedModel:
    """A random model that writes only letters; its embeddings are not tied."""
    model = loaded(kind, tie_word_embeddings=False, **changes)
    letters = model.tokenizer("abcdefghijklmnopqrstuvwxyz", add_special_tokens=False)["input_ids"]
    head = model.net.get_output_embeddings().weight
    with torch.no_grad():
        head[[i for i in range(len(head)) if i not in letters]] = 0.0
    return model


def ended_by(model: LoadedModel, terminator: str) -> LoadedModel:
    turns = {"user": ("User: ", "\n"), "assistant": ("AI:", f"{terminator}\n")}
    template = Template(name="plain", roles=turns, generation="AI:", terminator=terminator)
    return replace(model, template=template)


def said(model: LoadedModel) -> str:
    """The greedy output of togi's generator."""
    generator = ModelGenerator(model.net, model.tokenizer, model.template)
    params = SamplingParams(temperature=0.0, max_tokens=24)
    return generator.generate([Prompt(id="q", messages=QUESTION)], params)[0][0].text
