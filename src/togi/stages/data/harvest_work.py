"""Shared by the methods of `synthesize`: makes candidates in units until enough are accepted, and asks the model for
them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from togi.core.errors import InputError, StageError
from togi.core.records import Completion, Message, Prompt, Record, SamplingParams
from togi.core.seeds import derive
from togi.data.filters import Filter, copy_of_seed, first_failure, repeated_ngrams, too_long, too_short, wrong_script
from togi.stages.context import Context
from togi.stages.data.synthesize import Synthesize
from togi.stages.endpoints import generator
from togi.stages.rehearsal_work import context_limit, weightless
from togi.text.compare import comparable
from togi.text.render import render_prompt

Row = dict[str, Any]
"""The data that a unit stores of a candidate: JSON-like, with at least `text` and `stop`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a method works: at most `most` candidates, `unit` of them in one unit of work.

    `make(numbers)` asks the model and returns a row for each candidate. `read(number, row)` returns the record in a
    row, or the drop reason; it is called once for each candidate, in order. `name(number)` is the id for a drop.
    """

    most: int
    unit: int
    make: Callable[[range], list[Row]]
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
    def make(unit: int) -> list[Row]:
        return plan.make(range(unit * plan.unit, min((unit + 1) * plan.unit, plan.most)))

    number = 0
    for rows in context.stream_units(-(-plan.most // plan.unit), make, told=False):
        for row in rows:
            yield number, row
            number += 1


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


def params_of(settings: Synthesize, seed: int = 0, n: int = 1, stop: tuple[str, ...] = ()) -> SamplingParams:
    """The sampling parameters of the recipe, or else of the method."""
    way = settings.way
    return SamplingParams(
        temperature=way.temperature if settings.temperature is None else settings.temperature,
        top_p=settings.top_p or way.top_p,
        max_tokens=settings.max_tokens or way.max_tokens,
        n=n,
        seed=seed,
        stop=stop,
    )


OVER_CONTEXT: Row = {"text": "", "stop": "over_context"}


class Asker:
    """Asks the stage's model with its chat template for one answer to each prompt, from the prompt's own random stream.
    With `greedy`, answers are greedy and have at most that many tokens."""

    def __init__(self, settings: Synthesize, context: Context, *, greedy: int = 0) -> None:
        self.speaker = generator(context, settings.model, batch_rows=settings.batch)
        self.params = params_of(settings, derive(context.seed, "synthesize"))
        if greedy:
            self.params = replace(self.params, temperature=0.0, max_tokens=greedy)
        self.fits = fits_context(settings, context, self.params.max_tokens)

    def ask(self, prompts: Sequence[Prompt]) -> list[Row]:
        """Returns a row for each prompt; a prompt too long for the context is not asked."""
        asked = [prompt for prompt in prompts if self.fits(prompt.messages)]
        found = self.speaker.generate(asked, self.params) if asked else []
        rows = {prompt.id: self.row(answers[0]) for prompt, answers in zip(asked, found, strict=True)}
        return [rows.get(prompt.id, OVER_CONTEXT) for prompt in prompts]

    def row(self, completion: Completion) -> Row:
        """The answer, cut at its terminator or at the start of another turn."""
        text = completion.text
        for end in (self.speaker.terminator, *self.speaker.turn_starts):
            text = text.partition(end)[0] if end else text
        return {"text": text.strip(), "stop": completion.stop}


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
