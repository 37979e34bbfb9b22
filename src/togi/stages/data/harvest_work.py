"""Shared by the methods of `synthesize`: makes candidates in units until enough are accepted, and asks the model for
them."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from togi.core.errors import InputError, StageError
from togi.core.records import Document, Message, Prompt, Record
from togi.stages.context import Context
from togi.stages.data.rows import shard_task
from togi.stages.data.synthesize import GREEDY, STAGE, Synthesize
from togi.stages.data.synthesize_rows import (
    Ask,
    Continuing,
    Questions,
    Row,
    answers,
    chat_params,
    continuations,
    params_of,
)
from togi.stages.endpoints import completer, generator
from togi.stages.model_shards import asked_elsewhere, is_spread, with_model
from togi.stages.rehearsal_work import context_limit, weightless
from togi.text.render import render_prompt

UNIT = "batch"
Make = Callable[[range], list[Row]]
"""Asks the model about the candidates of a unit, given by their numbers; returns a row for each."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a method works: at most `most` candidates, `unit` of them in one unit of work.

    `make(numbers)` asks the model and returns a row for each candidate. `read(number, row)` returns the record in a
    row, or the drop reason; it is called once for each candidate, in order. `name(number)` is the id for a drop.
    """

    most: int
    unit: int
    make: Make
    read: Callable[[int, Row], Record | str]
    name: Callable[[int], str]


def harvest(settings: Synthesize, context: Context, plan: Plan) -> None:
    """Writes exactly `count` accepted records, or fewer with an alarm or a log line if `max_candidates` runs out.

    Without `count` every candidate is read. Raises StageError if none is accepted.
    """
    want, read = settings.count or plan.most, 0
    with context.writer(settings.gives) as writer:
        for number, row in _rows(context, plan):
            found, read = plan.read(number, row), number + 1
            if isinstance(found, str):
                context.drop(plan.name(number), found)
            else:
                writer.write([found])
            _tell(settings, context, writer.count, read, plan)
            if writer.count == want:
                break
        context.count_in(read)
        _look_at_harvest(settings, context, writer.count, read)


def _rows(context: Context, plan: Plan) -> Iterator[tuple[int, Row]]:
    units = _units(plan.most, plan.unit)
    number = 0
    for rows in context.stream_units(len(units), lambda unit: plan.make(units[unit]), UNIT, told=False):
        for row in rows:
            yield number, row
            number += 1


def _units(most: int, unit: int) -> list[range]:
    """The numbers of the candidates in each unit."""
    return [range(first, min(first + unit, most)) for first in range(0, most, unit)]


def _tell(settings: Synthesize, context: Context, kept: int, read: int, plan: Plan) -> None:
    """Reports progress after each unit and at the end."""
    if settings.count is not None and (read % plan.unit == 0 or kept == settings.count):
        context.progress(kept, settings.count, "rows", f"of {read} candidates, at most {plan.most}")
    elif read % plan.unit == 0 or read == plan.most:
        context.progress(read, plan.most, "candidates", f"{kept} accepted")


def _look_at_harvest(settings: Synthesize, context: Context, kept: int, read: int) -> None:
    """Reports that candidates ran out before `count` records were accepted."""
    reasons = context.drop_reasons() or "none was dropped"
    if not kept:
        raise StageError(f"stage {context.name}: none of {read} candidates was accepted; reasons: {reasons}")
    if settings.count is None or kept == settings.count:
        return
    message = f"only {kept} of {settings.count} records were accepted from {read} candidates; drops: {reasons}"
    if settings.max_candidates is None and settings.way.tries == 1:
        context.log(f"{message}. To get exactly {settings.count}, set max_candidates")
        return
    more = "Raise max_candidates, or loosen"
    if settings.asks_once and read < (settings.max_candidates or math.inf):
        more = f"Each source is asked about once, because {GREEDY}: raise temperature, remove count, or loosen"
    context.alarm(
        "under_count",
        f"{message}. {more} the rules for candidates",
        value=kept,
        threshold=settings.count,
    )


# --- asking -----------------------------------------------------------------------------------------------------------


def answering(settings: Synthesize, context: Context, *, greedy: int = 0) -> Ask:
    """Asks the stage's model in this process or on its server. With `greedy`, answers are greedy and have at most that
    many tokens."""
    speaker = generator(context, settings.model, batch_rows=settings.batch)
    params = chat_params(settings, context.seed, greedy)
    return lambda prompts: answers(speaker, prompts, params)


def conversing(settings: Synthesize, context: Context, most: int, asked: Callable[[range], list[Prompt]]) -> Make:
    """Asks about at most `most` candidates with the conversations that `asked` gives, here or in other processes."""
    if not is_spread(context, settings.model):
        ask = answering(settings, context)
        return lambda numbers: ask(asked(numbers))
    units = _units(most, settings.batch)
    task = shard_task(STAGE, settings, context, None, 0, {"continuing": None})
    task = with_model(task, context, settings.model, "generator", batch_rows=settings.batch)
    spread = asked_elsewhere(context, task, UNIT, len(units), "prompts", map(asked, units))
    return lambda numbers: next(spread)


def continuing(
    settings: Synthesize, context: Context, most: int, how: Continuing, asked: Callable[[range], list[Document]]
) -> Make:
    """Lets the model continue the texts that `asked` gives, in this process or in others."""
    rows = settings.batch * how.samples
    if not is_spread(context, settings.model):
        writer = completer(context, settings.model, batch_rows=rows)
        return lambda numbers: continuations(settings, context.seed, writer, asked(numbers), how)[: len(numbers)]
    units = _units(most, settings.batch if how.joined else rows)
    task = shard_task(STAGE, settings, context, None, 0, {"continuing": asdict(how)})
    task = with_model(task, context, settings.model, "completer", batch_rows=rows)
    spread = asked_elsewhere(context, task, UNIT, len(units), "documents", map(asked, units))
    return lambda numbers: next(spread)[: len(numbers)]


def questioning(
    settings: Synthesize,
    context: Context,
    how: Continuing,
    asked: Callable[[range], list[Document]],
    questions: Questions,
) -> Make:
    """Lets the model continue the texts that `asked` gives to questions and, if the settings say so, answer those that
    pass the rules; in this process or in others."""
    most, rows = settings.most(0), settings.batch * how.samples
    if settings.answer_tokens and is_spread(context, settings.model):
        more = {"continuing": asdict(how), "ends": questions.ends, "most": most}
        task = shard_task(STAGE, settings, context, None, 0, more)
        task = with_model(task, context, settings.model, "voices", batch_rows=settings.batch, continued_rows=rows)
        units = _units(most, rows)
        spread = asked_elsewhere(context, task, UNIT, len(units), "documents", map(asked, units))
        return lambda numbers: next(spread)
    sample = continuing(settings, context, most, how, asked)
    if not settings.answer_tokens:
        return lambda numbers: questions.read(sample(numbers))
    ask = answering(settings, context, greedy=settings.answer_tokens)
    return lambda numbers: questions.answered(numbers, questions.read(sample(numbers)), ask)


def fits_context(settings: Synthesize, context: Context) -> Callable[[Sequence[Message] | str], bool]:
    """Returns a predicate: whether the model's context has room for a conversation or plain text and a candidate after
    it. Always true for an endpoint, since the server checks it."""
    source = context.model(settings.model)
    if source.kind == "endpoint":
        return lambda asked: True
    model = weightless(context, settings.model)
    limit, room = context_limit(model), params_of(settings).max_tokens

    def tokens(asked: Sequence[Message] | str) -> int:
        if isinstance(asked, str):
            return len(model.tokenizer(asked, add_special_tokens=True)["input_ids"])
        return len(render_prompt(model.template, model.tokenizer, asked))

    return lambda asked: limit is None or tokens(asked) + room <= limit


def need_answers(prompts: Sequence[Prompt], stage: str) -> None:
    """Raises InputError for a prompt without a reference answer."""
    for prompt in prompts:
        if prompt.answer is None:
            raise InputError(
                f"stage {stage}: prompt {prompt.id} has no reference answer, but check_answer needs one: add a column "
                "`answer`, or remove check_answer"
            )
