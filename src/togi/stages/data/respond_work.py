"""The work of `respond`: a unit is a batch of prompts answered by one model, and only one batch is in memory."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from togi.core.errors import StageError
from togi.core.records import Completion, Prompt, Sample
from togi.core.seeds import make_id
from togi.core.settings import Ref
from togi.stages.context import Context
from togi.stages.data.follow_ups import check_follow_ups, follow_up, followed
from togi.stages.data.respond import STAGE, Respond
from togi.stages.data.respond_rows import Answer, answers, as_asked, conversation, why_dropped
from togi.stages.data.rows import shard_task
from togi.stages.data.shown import Shown
from togi.stages.endpoints import generator, reader
from togi.stages.kinship import keep_writers
from togi.stages.model_shards import found_by, is_spread, with_model
from togi.stages.rehearsal_work import Rehearsed, asked, prompt_rows, weightless
from togi.stages.shards import ShardTask
from togi.stages.system_turns import tell_replaced
from togi.text.template import Template

BATCH = 16
BATCH_OF_ENDPOINTS = 1024  # each answer is stored as it arrives, so a large unit loses nothing and keeps servers busy
UNIT = "batch"


def run(settings: Respond, context: Context) -> None:
    """Raises StageError if no answer is kept, and InputError for a prompt that a template rejects."""
    total = context.records_count(settings.prompts)
    context.count_in(total)
    keep_writers(context, settings.models)
    _look_at_prompts(settings, context)
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


def _look_at_prompts(settings: Respond, context: Context) -> None:
    """Raises InputError for follow-ups that cannot be asked, and alarms for system turns that the template of a local
    model does not write."""
    if settings.follow_up is not None:
        check_follow_ups(_prompts(settings, context), settings.follow_up, context.name)
    for ref in settings.models:
        if context.inputs[ref].endpoint is None:
            _tell_replaced(context, ref, reader(context, ref)[1], _prompts(settings, context))


def _prompts(settings: Respond, context: Context) -> Iterator[Prompt]:
    """The prompts as they are asked, read a part at a time."""
    for batch in context.batches(settings.prompts, noted=False):
        yield from (as_asked(settings, prompt) for prompt in batch)


def _tell_replaced(context: Context, ref: Ref, template: Template, prompts: Iterable[Prompt]) -> None:
    conversations = (prompt.messages for prompt in prompts)
    tell_replaced(context, template, conversations, f"{ref} does not see it; to show it")


def rehearse(settings: Respond, context: Context) -> Iterator[Rehearsed]:
    """Yields each prompt, up to its follow-up if it has one; the answer before that is a stand-in of one character."""
    given = [as_asked(settings, prompt) for prompt in context.records(settings.prompts)]
    if settings.follow_up is not None:
        check_follow_ups(given, settings.follow_up, context.name)
    prompts = asked([_whole(settings, prompt) for prompt in given])
    for ref in settings.models:
        model = weightless(context, ref)
        if context.model(ref).kind != "endpoint":
            _tell_replaced(context, ref, model.template, given)
        yield from prompt_rows(
            context, model, prompts, settings.max_tokens, lambda name: context.drop(name, "too_long")
        )


def _whole(settings: Respond, prompt: Prompt) -> Prompt:
    """The prompt, continued with a stand-in for the first answer and its follow-up, if it has one."""
    turns = follow_up(prompt, settings.follow_up)
    return followed(prompt, "-", turns) if turns else prompt


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
        count = -(-self.total // size) * models
        asks = list(self._asks(count, size))
        units = self.context.stream_units(count, lambda number: asks[number % models](), UNIT, told=False)
        done = 0
        for batch in self.context.batches(settings.prompts, size):
            self.prompts = [as_asked(settings, prompt) for prompt in batch]
            by_model = []
            for _ in settings.models:
                by_model.append(next(units))
                done += len(batch) * settings.samples
                self.context.progress(done, self.total * models * settings.samples, "answers")
            yield self.prompts, [list(groups) for groups in zip(*by_model, strict=True)]

    def _size(self) -> int:
        remote = all(self.context.inputs[ref].endpoint is not None for ref in self.settings.models)
        return self.settings.batch_prompts or (BATCH_OF_ENDPOINTS if remote else BATCH)

    def _asks(self, count: int, size: int) -> Iterator[Callable[[], list[list[Answer]]]]:
        """For each model a function that returns its answers to the current prompts, of one of `count` units."""
        settings, context = self.settings, self.context
        rows = size * settings.samples
        tasks = {place: self._task(place, rows) for place, ref in enumerate(settings.models) if is_spread(context, ref)}
        spread = found_by(context, self._shards(tasks, count, size))
        for place, ref in enumerate(settings.models):
            if place in tasks:
                yield lambda: next(spread)
                continue
            speaker = generator(context, ref, batch_rows=rows)
            yield lambda ref=ref, speaker=speaker: answers(settings, context.seed, ref, speaker, self.prompts)

    def _task(self, place: int, rows: int) -> ShardTask:
        task = shard_task(STAGE, self.settings, self.context, self.settings.prompts, 0, {"place": place})
        return with_model(task, self.context, self.settings.models[place], "generator", batch_rows=rows)

    def _shards(self, tasks: Mapping[int, ShardTask], count: int, size: int) -> list[ShardTask]:
        """The units that other processes do, of those that are left; a model's task says what they have in common."""
        models = len(self.settings.models)
        left = self.context.missing_units(count, UNIT) if tasks else []
        return [
            replace(tasks[unit % models], number=unit, first=unit // models * size, count=size)
            for unit in left
            if unit % models in tasks
        ]


def _samples(
    settings: Respond, context: Context, prompt: Prompt, by_model: Sequence[Sequence[Answer]]
) -> Iterator[Sample]:
    """Yields the kept answers to one prompt, ordered by model and number; drops the others."""
    for place, (ref, found) in enumerate(zip(settings.models, by_model, strict=True)):
        question, given = _question(settings, context, prompt, place, found)
        for index, answer in enumerate(given):
            if reason := why_dropped(settings, answer):
                context.drop(prompt, reason)
                continue
            yield Sample(
                id=make_id(context.folder.name, (prompt.id,), place * settings.samples + index),
                parents=(prompt.id,),
                source=prompt.source,
                prompt=question,
                completion=Completion(**answer),
                model=ref.name,
                index=index,
            )


def _question(
    settings: Respond, context: Context, prompt: Prompt, place: int, found: Sequence[Answer]
) -> tuple[Prompt, Sequence[Answer]]:
    """What a model's samples answer, and these. If its first answer to a prompt with a follow-up is dropped, so are all
    its samples, for the same reason."""
    question = conversation(settings, prompt, found)
    if question is None:
        return prompt, [found[0]] * settings.samples
    if question is prompt:
        return prompt, found
    name = make_id(f"{context.folder.name}/follow_up", (prompt.id,), place)
    return replace(question, id=name, parents=(prompt.id,)), found[1:]


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
