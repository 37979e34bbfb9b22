"""The work of `respond`: a unit is a batch of prompts answered by one model, and only one batch is in memory."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from togi.core.errors import StageError
from togi.core.records import Completion, Prompt, Sample, with_system
from togi.core.seeds import derive, make_id
from togi.core.settings import Ref
from togi.stages.context import Context
from togi.stages.data.respond import Respond
from togi.stages.data.shown import Shown
from togi.stages.endpoints import ChatGenerator, generator
from togi.stages.rehearsal_work import Rehearsed, asked, prompt_rows, weightless

BATCH = 16
BATCH_OF_ENDPOINTS = 1024  # each answer is stored as it arrives, so a large unit loses nothing and keeps servers busy


def run(settings: Respond, context: Context) -> None:
    """Raises StageError if no answer is kept, and InputError for a prompt that a template rejects."""
    total = context.records_count(settings.prompts)
    context.count_in(total)
    answering = _Answering(settings, context, total)
    shown = Shown()
    with context.writer("samples") as writer:
        for prompts, answers in answering.batches():
            for prompt, by_model in zip(prompts, answers, strict=True):
                kept = list(_samples(settings, context, prompt, by_model))
                shown.take(kept)
                writer.write(kept)
        if not writer.count:
            raise StageError(_nothing_kept(settings, context))
    _tell_failures(context, writer.count)
    context.summary |= {"prompts": total, **shown.summary()}


def rehearse(settings: Respond, context: Context) -> Iterator[Rehearsed]:
    prompts = asked([_as_asked(settings, prompt) for prompt in context.records(settings.prompts)])
    for ref in settings.models:
        model = weightless(context, ref)
        yield from prompt_rows(
            context, model, prompts, settings.max_tokens, lambda name: context.drop(name, "too_long")
        )


Answer = dict[str, Any]
"""The `text` of a completion without the terminator, trimmed, and its `stop`."""

OVERLONG: Answer = {"text": "", "stop": "too_long"}
"""Placeholder for the answers to a prompt that leaves no room for them."""


@dataclass(slots=True)
class _Answering:
    """Asks all models, unit by unit; `prompts` are those of the current batch, as they are asked."""

    settings: Respond
    context: Context
    total: int
    prompts: list[Prompt] = field(default_factory=list)

    def batches(self) -> Iterator[tuple[list[Prompt], list[list[list[Answer]]]]]:
        """Yields the prompts of each batch, and for each prompt the answers of each model."""
        settings, size = self.settings, self._size()
        models = len(settings.models)
        speakers = [generator(self.context, ref, batch_rows=size * settings.samples) for ref in settings.models]
        units = self.context.stream_units(
            -(-self.total // size) * models,
            lambda number: self._ask(settings.models[number % models], speakers[number % models]),
            told=False,
        )
        done = 0
        for batch in self.context.batches(settings.prompts, size):
            self.prompts = [_as_asked(settings, prompt) for prompt in batch]
            by_model = []
            for _ in settings.models:
                by_model.append(next(units))
                done += len(batch) * settings.samples
                self.context.progress(done, self.total * models * settings.samples, "answers")
            yield self.prompts, [list(groups) for groups in zip(*by_model, strict=True)]

    def _size(self) -> int:
        remote = all(self.context.inputs[ref].endpoint is not None for ref in self.settings.models)
        return self.settings.batch_prompts or (BATCH_OF_ENDPOINTS if remote else BATCH)

    def _ask(self, ref: Ref, speaker: ChatGenerator) -> list[list[Answer]]:
        """Returns one model's answers to the current prompts. Its name is part of the seed, so its answers do not
        depend on which other models answer."""
        params = self.settings.params(seed=derive(self.context.seed, "respond", ref.name), n=self.settings.samples)
        ends = [end for end in (speaker.terminator, *speaker.turn_starts) if end]
        fits = [speaker.fits(prompt, params) for prompt in self.prompts]
        asked = [prompt for prompt, room in zip(self.prompts, fits, strict=True) if room]
        found = iter(speaker.generate(asked, params) if asked else ())
        return [[_answer(each, ends) for each in next(found)] if room else [OVERLONG] * params.n for room in fits]


def _as_asked(settings: Respond, prompt: Prompt) -> Prompt:
    return prompt if settings.system is None else with_system(prompt, settings.system)


def _answer(completion: Completion, ends: Sequence[str]) -> Answer:
    """Cuts the text at the first terminator or turn start. An answer that ran into another turn counts as ended."""
    text, stop = completion.text, completion.stop
    for end in ends:
        text, found, _ = text.partition(end)
        stop = "terminator" if found and stop == "length" else stop
    return {"text": text.strip(), "stop": stop}


def _samples(
    settings: Respond, context: Context, prompt: Prompt, by_model: Sequence[Sequence[Answer]]
) -> Iterator[Sample]:
    """Yields the kept answers to one prompt, ordered by model and number; drops the others."""
    for place, (ref, answers) in enumerate(zip(settings.models, by_model, strict=True)):
        for index, answer in enumerate(answers):
            if reason := _why_dropped(settings, answer):
                context.drop(prompt, reason)
                continue
            yield Sample(
                id=make_id(context.folder.name, (prompt.id,), place * settings.samples + index),
                parents=(prompt.id,),
                source=prompt.source,
                prompt=prompt,
                completion=Completion(**answer),
                model=ref.name,
                index=index,
            )


def _why_dropped(settings: Respond, answer: Answer) -> str | None:
    if answer["stop"] in ("error", "too_long"):
        return "failed" if answer["stop"] == "error" else "too_long"
    if answer["stop"] == "length" and settings.truncated == "drop":
        return "truncated"
    return None if answer["text"] else "empty_answer"


def _tell_failures(context: Context, kept: int) -> None:
    failed = context.drop_counts().get("failed", 0)
    if failed:
        context.alarm(
            "failed",
            f"{failed} answers are missing because their requests failed (the log has the reasons); {kept} are kept. "
            "To request the missing ones, rerun the stage with --redo: stored answers are not requested again",
            value=failed,
        )


def _nothing_kept(settings: Respond, context: Context) -> str:
    counts = Counter(context.drop_counts())
    hint = ""
    if counts["truncated"] > counts["failed"]:
        hint = f"; raise max_tokens ({settings.max_tokens} now), or set truncated: keep"
    return f"stage {context.name}: no answer was kept; reasons: {context.drop_reasons()}{hint}"
