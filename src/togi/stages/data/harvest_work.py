"""Shared by the methods of `synthesize`: makes candidates in units until enough are accepted, and asks the model for
them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b

from togi.core.errors import InputError, StageError
from togi.core.records import Document, Message, Prompt, Record
from togi.data.filters import Filter, copy_of_seed, first_failure, repeated_ngrams, too_long, too_short, wrong_script
from togi.stages.context import Context
from togi.stages.data.rows import shard_task
from togi.stages.data.synthesize import STAGE, Synthesize
from togi.stages.data.synthesize_rows import Continuing, Row, answers, chat_params, continuations, params_of
from togi.stages.endpoints import completer, generator
from togi.stages.model_shards import asked_elsewhere, is_spread, with_model
from togi.stages.rehearsal_work import context_limit, weightless
from togi.text.compare import comparable
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
    context.alarm(
        "under_count",
        f"{message}. Raise max_candidates, or loosen the rules for candidates",
        value=kept,
        threshold=settings.count,
    )


# --- asking -----------------------------------------------------------------------------------------------------------


Ask = Callable[[Sequence[Prompt]], list[Row]]
"""Asks the model for one answer to each prompt."""


def answering(settings: Synthesize, context: Context, *, greedy: int = 0) -> Ask:
    """Asks the stage's model in this process or on its server. With `greedy`, answers are greedy and have at most that
    many tokens."""
    speaker = generator(context, settings.model, batch_rows=settings.batch)
    params = chat_params(settings, context.seed, greedy)
    fits = fits_context(settings, context, params.max_tokens)
    return lambda prompts: answers(speaker, _with_room(fits, prompts), params)


def conversing(settings: Synthesize, context: Context, most: int, asked: Callable[[range], list[Prompt]]) -> Make:
    """Asks about at most `most` candidates with the conversations that `asked` gives, here or in other processes."""
    if not is_spread(context, settings.model):
        ask = answering(settings, context)
        return lambda numbers: ask(asked(numbers))
    fits, units = fits_context(settings, context), _units(most, settings.batch)
    task = shard_task(STAGE, settings, context, None, 0, {"continuing": None})
    task = with_model(task, context, settings.model, "generator", batch_rows=settings.batch)
    prompts = (_with_room(fits, asked(numbers)) for numbers in units)
    spread = asked_elsewhere(context, task, UNIT, len(units), "prompts", prompts)
    return lambda numbers: next(spread)


def continuing(
    settings: Synthesize,
    context: Context,
    most: int,
    how: Continuing,
    asked: Callable[[range], list[Document]],
    *,
    here: bool = False,
) -> Make:
    """Lets the model continue the texts that `asked` gives, in this process or, unless `here`, in others."""
    rows = settings.batch * how.samples
    if here or not is_spread(context, settings.model):
        writer = completer(context, settings.model, batch_rows=rows)
        return lambda numbers: continuations(settings, context.seed, writer, asked(numbers), how)[: len(numbers)]
    units = _units(most, settings.batch if how.joined else rows)
    task = shard_task(STAGE, settings, context, None, 0, {"continuing": asdict(how)})
    task = with_model(task, context, settings.model, "completer", batch_rows=rows)
    spread = asked_elsewhere(context, task, UNIT, len(units), "documents", map(asked, units))
    return lambda numbers: next(spread)[: len(numbers)]


def _with_room(fits: Callable[[Sequence[Message]], bool], prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts, without turns where the model's context has no room for them and an answer."""
    return [prompt if fits(prompt.messages) else replace(prompt, messages=()) for prompt in prompts]


def fits_context(
    settings: Synthesize, context: Context, more: int | None = None
) -> Callable[[Sequence[Message] | str], bool]:
    """Returns a predicate: whether the model's context has room for a conversation or plain text followed by `more`
    tokens (default: those of a candidate). Always true for an endpoint, since the server checks it."""
    source = context.model(settings.model)
    if source.kind == "endpoint":
        return lambda asked: True
    model = weightless(context, settings.model)
    limit, room = context_limit(model), more or params_of(settings).max_tokens

    def tokens(asked: Sequence[Message] | str) -> int:
        if isinstance(asked, str):
            return len(model.tokenizer(asked, add_special_tokens=True)["input_ids"])
        return len(render_prompt(model.template, model.tokenizer, asked))

    return lambda asked: limit is None or tokens(asked) + room <= limit


def unusable(row: Row) -> str | None:
    """The drop reason of a row without a readable answer, else None."""
    if row["stop"] == "error":
        return "failed"
    if row["stop"] == "over_context":
        return "over_context"
    return "no_end" if row["stop"] == "length" else None


# --- rules ------------------------------------------------------------------------------------------------------------


class Rules:
    """The rules for a question and its answer; each gives a drop reason or None. With `distinct`, repetitions of a
    question are dropped."""

    def __init__(self, settings: Synthesize, seeds: Sequence[Prompt] = (), *, distinct: bool = True) -> None:
        repeats = repeated_ngrams(settings.max_repeated_ngrams)
        self.question: list[Filter] = [too_short(settings.min_chars), too_long(settings.longest_question)]
        self.question += [wrong_script(settings.language), copy_of_seed([seed.text for seed in seeds]), repeats]
        self.answer: list[Filter] = [copy_of_seed([seed.answer for seed in seeds if seed.answer]), repeats]
        self.known: set[bytes] | None = set() if distinct else None  # hashes: some 100 bytes per accepted question

    def failure(self, question: str, answer: str | None = None) -> str | None:
        """Returns the first broken rule. A question that passes is remembered."""
        if not question:
            return "empty"
        if answer is not None and not answer:
            return "no_answer"
        reason = first_failure(question, self.question) or first_failure(answer or "", self.answer)
        return reason or self._duplicate(question)

    def _duplicate(self, question: str) -> str | None:
        if self.known is None:
            return None
        key = blake2b(comparable(question).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key in self.known:
            return "duplicate"
        self.known.add(key)
        return None


def need_answers(prompts: Sequence[Prompt], stage: str) -> None:
    """Raises InputError for a prompt without a reference answer."""
    for prompt in prompts:
        if prompt.answer is None:
            raise InputError(
                f"stage {stage}: prompt {prompt.id} has no reference answer, but check_answer needs one: add a column "
                "`answer`, or remove check_answer"
            )
