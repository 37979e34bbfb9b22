"""The row-wise part of `respond`: a batch of prompts and a model's answers."""

from collections.abc import Sequence
from typing import Any

from togi.core.records import Completion, Prompt, SamplingParams, with_system
from togi.core.seeds import derive
from togi.core.settings import Ref
from togi.stages.data.follow_ups import follow_up, followed
from togi.stages.data.respond import Respond
from togi.stages.endpoints import ChatGenerator
from togi.stages.model_shards import computed
from togi.stages.shards import Shard

Answer = dict[str, Any]
"""The `text` of a completion without the terminator, trimmed, and its `stop`."""

OVERLONG: Answer = {"text": "", "stop": "too_long"}
"""Placeholder for the answers to a prompt that leaves no room for them."""


def as_asked(settings: Respond, prompt: Prompt) -> Prompt:
    """The prompt, with the system turn of the settings if it has none."""
    return prompt if settings.system is None else with_system(prompt, settings.system)


def answers(
    settings: Respond, seed: int, ref: Ref, speaker: ChatGenerator, prompts: Sequence[Prompt]
) -> list[list[Answer]]:
    """Returns one model's answers to each prompt; if the prompt has a follow-up, first the answer before it, alone if
    that would be dropped. The model's name is part of the seed, so its answers do not depend on which other models
    answer. Raises InputError for a prompt that its template rejects."""
    heads = _first_answers(settings, seed, ref, speaker, prompts)
    params = settings.params(seed=derive(seed, "respond", ref.name), n=settings.samples)
    asked = [conversation(settings, prompt, head) for prompt, head in zip(prompts, heads, strict=True)]
    found = iter(_said(speaker, params, [each for each in asked if each is not None]))
    return [head if each is None else [*head, *next(found)] for each, head in zip(asked, heads, strict=True)]


def _first_answers(
    settings: Respond, seed: int, ref: Ref, speaker: ChatGenerator, prompts: Sequence[Prompt]
) -> list[list[Answer]]:
    """One answer to each prompt with a follow-up, none to the others."""
    begun = [bool(follow_up(prompt, settings.follow_up)) for prompt in prompts]
    params = settings.params(seed=derive(seed, "respond", ref.name, "first"), n=1)
    found = iter(_said(speaker, params, [prompt for prompt, first in zip(prompts, begun, strict=True) if first]))
    return [next(found) if first else [] for first in begun]


def conversation(settings: Respond, prompt: Prompt, found: Sequence[Answer]) -> Prompt | None:
    """What the samples of a model answer: the prompt, or its follow-up after the first of the answers found; None if
    that one would be dropped."""
    turns = follow_up(prompt, settings.follow_up)
    if not turns:
        return prompt
    return None if why_dropped(settings, found[0]) else followed(prompt, found[0]["text"], turns)


def why_dropped(settings: Respond, answer: Answer) -> str | None:
    """The reason for dropping an answer; None if it is kept."""
    if answer["stop"] in ("error", "too_long"):
        return "failed" if answer["stop"] == "error" else "too_long"
    if answer["stop"] == "length" and settings.truncated == "drop":
        return "truncated"
    return None if answer["text"] else "empty_answer"


def _said(speaker: ChatGenerator, params: SamplingParams, prompts: Sequence[Prompt]) -> list[list[Answer]]:
    """The model's answers to each prompt."""
    ends = [end for end in (speaker.terminator, *speaker.turn_starts) if end]
    fits = [speaker.fits(prompt, params) for prompt in prompts]
    asked = [prompt for prompt, room in zip(prompts, fits, strict=True) if room]
    found = iter(speaker.generate(asked, params) if asked else ())
    return [[_answer(each, ends) for each in next(found)] if room else [OVERLONG] * params.n for room in fits]


def _answer(completion: Completion, ends: Sequence[str]) -> Answer:
    """Cuts the text at the first terminator or turn start. An answer that ran into another turn counts as ended."""
    text, stop = completion.text, completion.stop
    for end in ends:
        text, found, _ = text.partition(end)
        stop = "terminator" if found and stop == "length" else stop
    return {"text": text.strip(), "stop": stop}


def value_of(settings: Respond, shard: Shard, more: dict[str, Any]) -> dict[str, Any]:
    """`found`: the answers to the shard's prompts of the model at `place` among those of the settings."""
    ref = settings.models[more["place"]]
    prompts = [as_asked(settings, prompt) for prompt in shard.records]
    return computed(ref, shard, more, lambda speaker: answers(settings, shard.seed, ref, speaker, prompts))
