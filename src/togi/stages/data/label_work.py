"""The work of `label`: a unit is a batch of comparisons, each in all its orders, or of answers; one batch is in memory.

A resumed stage reads the judge's replies from finished units, so nothing is asked twice.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Generic, TypeVar

from togi.core.records import Message, Pair, Prompt, Sample, Verdict
from togi.core.seeds import derive, make_id
from togi.judge.contests import Contest, by_prompt, decide, preference, rivals
from togi.judge.prompts import Case, JudgePrompt
from togi.stages.context import Context
from togi.stages.data.label import STAGE, Label
from togi.stages.data.label_notes import Tally
from togi.stages.data.label_rows import TOGETHER, Said, choices, reader, replies
from togi.stages.data.rows import shard_task
from togi.stages.data.shown import Shown
from togi.stages.endpoints import chooser
from togi.stages.judging_work import asker, graded_case, judge_prompt, judges_own, questioned
from togi.stages.kinship import kin, writers
from togi.stages.model_shards import asked_elsewhere, is_spread, with_model
from togi.stages.rehearsal_work import Rehearsed, prompt_rows, weightless
from togi.text.compare import same

Item = TypeVar("Item")
FIRST = 8  # comparisons or answers in the first unit
BATCH = 64
BATCH_OF_ENDPOINTS = 512
UNIT = "verdicts"
Replies = list[list[Said]]
"""The judge's replies to each question of a unit."""


def run(settings: Label, context: Context) -> None:
    """Raises StageError if no reply of the judge can be read."""
    samples: Sequence[Sample] = context.aside(settings.samples)
    tally = Tally(settings, context)
    judge = kin(context, settings.judge)
    tally.note_own(samples, judges_own(context, settings), judge, writers(context, settings.samples))
    prompt = judge_prompt(settings, settings.method)
    if settings.method == "pairwise":
        _pairwise(settings, context, samples, prompt, tally)
    else:
        _graded(settings, context, samples, prompt, tally)
    tally.finish()


def rehearse(settings: Label, context: Context) -> Iterator[Rehearsed]:
    samples: list[Sample] = context.records(settings.samples)
    prompt = judge_prompt(settings, settings.method)
    if settings.method == "pairwise":
        contests = _contests(settings, context.seed, samples, context.drop)
        shown = [_question(settings, prompt, contest, False) for contest in contests]
    else:
        shown = [_graded_question(settings, prompt, sample) for sample in samples if sample.text.strip()]
    context.counts["comparisons" if settings.method == "pairwise" else "answers to grade"] = len(shown)
    source = context.model(settings.judge)
    if source.kind != "endpoint" or source.tokenizer:
        model = weightless(context, settings.judge)
        written = 1 if settings.by == "logprobs" else settings.max_tokens
        yield from prompt_rows(context, model, [(each.id, each.messages) for each in shown], written)


def _size(settings: Label, context: Context) -> int:
    """Comparisons or answers in one unit. A server's replies are stored one by one, so a larger unit loses nothing."""
    remote = context.model(settings.judge).kind == "endpoint"
    return settings.batch_prompts or (BATCH_OF_ENDPOINTS if remote else BATCH)


@dataclass(frozen=True, slots=True)
class _Asking(Generic[Item]):
    """What is asked about comparisons or answers. `items` yields them, from the first one on each call; `questions`
    returns the questions about one of them; `joined` turns the replies to a batch's questions into the replies about
    each item."""

    items: Callable[[], Iterator[Item]]
    questions: Callable[[Item], list[Prompt]]
    joined: Callable[[Sequence[Item], Replies], list[Any]]

    def batch(self, items: Iterable[Item]) -> list[Prompt]:
        """The questions about several items."""
        return [question for item in items for question in self.questions(item)]


def _asked(
    settings: Label, context: Context, asking: _Asking[Item], count: int, tally: Tally
) -> Iterator[tuple[Item, Any]]:
    """Yields each of `count` comparisons or answers with the judge's replies, unit by unit. The first unit is small, so
    that a judge with unreadable replies is found early. Raises StageError for such a judge."""
    size = _size(settings, context)
    sizes = [min(FIRST, count), *(min(size, count - first) for first in range(FIRST, count, size))] if count else []
    reply = _elsewhere(settings, context, asking, sizes) or _here(settings, context, asking)
    batch: list[Item] = []

    def make(number: int) -> list[Any]:
        said = asking.joined(batch, reply(batch))
        if number == 0:
            tally.refuse_unreadable(_texts(said))
        return said

    units, left = context.stream_units(len(sizes), make, UNIT), asking.items()
    for rows in sizes:
        batch = list(islice(left, rows))
        yield from zip(batch, next(units), strict=True)


def _here(settings: Label, context: Context, asking: _Asking[Item]) -> Callable[[Sequence[Item]], Replies]:
    """A function that asks the judge about a batch."""
    if settings.by == "logprobs":
        compare = chooser(context, settings.judge)
        remote = context.model(settings.judge).kind == "endpoint"
        together = 2 * BATCH_OF_ENDPOINTS if remote else TOGETHER
        return lambda batch: choices(compare, asking.batch(batch), together)
    judge = asker(settings, context, reader(settings), batch_rows=_rows(settings, context))
    return lambda batch: replies(settings, judge, asking.batch(batch))


def _elsewhere(
    settings: Label, context: Context, asking: _Asking[Item], sizes: Sequence[int]
) -> Callable[[Sequence[Item]], Replies] | None:
    """A function that gives what the judge says of the next batch in other processes; None if it is asked in this
    one."""
    if not is_spread(context, settings.judge):
        return None
    task = shard_task(STAGE, settings, context, None, 0, {})
    if settings.by == "logprobs":
        task = with_model(task, context, settings.judge, "chooser")
    else:
        task = with_model(task, context, settings.judge, "generator", batch_rows=_rows(settings, context))
    items = asking.items()
    batches = (asking.batch(islice(items, rows)) for rows in sizes)
    spread = asked_elsewhere(context, task, UNIT, len(sizes), "prompts", batches)
    return lambda batch: next(spread)


def _rows(settings: Label, context: Context) -> int:
    """How many replies the judge computes together."""
    return _size(settings, context) * (2 if settings.method == "pairwise" else settings.rounds)


def _texts(said: Any) -> list[Said]:
    """All replies of the judge in a unit."""
    return [said] if isinstance(said, dict) else [each for part in said for each in _texts(part)]


# --- two answers ------------------------------------------------------------------------------------------------------


def _pairwise(settings: Label, context: Context, samples: Sequence[Sample], prompt: JudgePrompt, tally: Tally) -> None:
    count = sum(1 for _ in _contests(settings, context.seed, samples, context.drop))
    context.count_in(count + len(context.drops))
    asking = _Asking(
        lambda: _contests(settings, context.seed, samples, lambda sample, reason: None),
        lambda contest: [_question(settings, prompt, contest, swap) for swap in contest.swapped],
        _by_order,
    )
    with context.writer("verdicts", "verdicts") as verdicts, context.writer("pairs") as pairs:
        for contest, orders in _asked(settings, context, asking, count, tally):
            made = [_verdicts(context, settings, contest, order, said) for order, said in enumerate(orders)]
            verdicts.write([verdict for each in made for verdict in each])
            last = [each[-1] for each in made]
            tally.note(last)
            tally.show(contest, last)
            pair = _pair(settings, context, contest, last)
            pairs.write([pair] if isinstance(pair, Pair) else [])
            if isinstance(pair, str):
                context.drop(contest.first, pair)


def _contests(
    settings: Label, seed: int, samples: Sequence[Sample], drop: Callable[[Sample, str], None]
) -> Iterator[Contest]:
    """Yields the comparisons in the order of prompts; drops answers that cannot be compared."""
    for answers in by_prompt(samples):
        spoken = [answer for answer in answers if answer.text.strip()]
        for answer in answers:
            if not answer.text.strip():
                drop(answer, "empty_answer")
        if len(spoken) == 1:
            drop(spoken[0], "alone")
        for first, second in rivals(spoken, settings.compare):
            if same(first.text, second.text):
                drop(first, "same_text")
                continue
            swaps = (False, True)
            if settings.orders == "random":
                swaps = (derive(seed, "order", first.id, second.id) % 2 == 1,)
            yield Contest(first.prompt, first, second, swaps)


def _question(settings: Label, prompt: JudgePrompt, contest: Contest, swapped: bool) -> Prompt:
    shown = contest.shown(swapped)
    case = Case(
        messages=contest.prompt.messages,
        answers=(shown[0].text.strip(), shown[1].text.strip()),
        reference=contest.prompt.answer if settings.reference else None,
        explain=settings.by == "text",
    )
    return questioned(prompt, case, make_id("judge", (shown[0].id, shown[1].id), 0))


def _by_order(contests: Sequence[Contest], found: Replies) -> list[list[list[Said]]]:
    """The replies about each contest, by order."""
    left = iter(found)
    return [[next(left) for _ in contest.swapped] for contest in contests]


def _verdicts(
    context: Context, settings: Label, contest: Contest, order: int, attempts: Sequence[Said]
) -> list[Verdict]:
    """The judge's verdicts in one order, one for each attempt."""
    shown = contest.shown(contest.swapped[order])
    names = (shown[0].id, shown[1].id)
    found = []
    for attempt, said in enumerate(attempts):
        probability, value = said.get("probability"), said.get("value")
        if probability is not None:
            value = "tie" if probability == 0.5 else "A" if probability > 0.5 else "B"
        read = "tie" if value == "tie" else "winner" if value else "failed" if said.get("failed") else "unreadable"
        found.append(
            Verdict(
                id=make_id(context.folder.name, names, 1000 * order + attempt),
                parents=names,
                source=contest.first.source,
                prompt=contest.prompt.id,
                answers=names,
                judge=settings.judge.name,
                text=said.get("text", ""),
                order=order,
                winner={"A": names[0], "B": names[1]}.get(value or ""),
                probability=probability,
                outcome=read,
                attempt=attempt,
            )
        )
    return found


def _pair(settings: Label, context: Context, contest: Contest, last: Sequence[Verdict]) -> Pair | str:
    """Returns the pair that results from the last verdicts of all orders, or the drop reason."""
    if any(verdict.outcome == "failed" for verdict in last):
        return "failed"
    outcome = decide([_preference(verdict, contest) for verdict in last], settings.keep)
    if outcome.winner is None:
        return outcome.reason
    better, worse = contest.first, contest.second
    mean = outcome.preference or 0.0
    if outcome.winner == "second":
        better, worse, mean = worse, better, 1 - mean
    sure = settings.by == "logprobs" and 0 < mean < 1
    return Pair(
        id=make_id(context.folder.name, (better.id, worse.id), 0),
        parents=(better.id, worse.id),
        source=contest.first.source,
        prompt=contest.prompt.messages,
        chosen=(Message("assistant", better.text.strip()),),
        rejected=(Message("assistant", worse.text.strip()),),
        margin=math.log(mean / (1 - mean)) if sure else None,
        extra={"preference": mean, "chosen_model": better.model, "rejected_model": worse.model},
    )


def _preference(verdict: Verdict, contest: Contest) -> float | None:
    """Returns the preference of a verdict for the contest's first answer."""
    if verdict.outcome not in ("winner", "tie"):
        return None
    swapped = verdict.answers[0] != contest.first.id
    if verdict.probability is not None:
        return 1 - verdict.probability if swapped else verdict.probability
    choice = "tie" if verdict.winner is None else "A" if verdict.winner == verdict.answers[0] else "B"
    return preference(choice, swapped)


# --- one answer -------------------------------------------------------------------------------------------------------


def _graded(settings: Label, context: Context, samples: Sequence[Sample], prompt: JudgePrompt, tally: Tally) -> None:
    context.count_in(len(samples))
    for sample in samples:
        if not sample.text.strip():
            context.drop(sample, "empty_answer")
    count = len(samples) - len(context.drops)
    shown = Shown("judge")
    asking = _Asking(
        lambda: (sample for sample in samples if sample.text.strip()),
        lambda sample: [_graded_question(settings, prompt, sample)],
        lambda batch, found: found,
    )
    with context.writer("verdicts", "verdicts") as verdicts, context.writer("samples") as kept:
        for sample, attempts in _asked(settings, context, asking, count, tally):
            found = [_grade(settings, context, sample, number, said) for number, said in enumerate(attempts)]
            verdicts.write(found)
            tally.note(found)
            graded = _with_grade(sample, found)
            shown.take(graded)
            kept.write(graded)
            if not graded:
                context.drop(sample, "failed" if found[-1].outcome == "failed" else "unreadable")
    context.summary |= shown.summary()


def _with_grade(sample: Sample, found: Sequence[Verdict]) -> list[Sample]:
    """Returns the sample with its mean grade; an empty list if no grade is readable."""
    grades = [verdict.score for verdict in found if verdict.score is not None]
    return [replace(sample, scores={**sample.scores, "judge": sum(grades) / len(grades)})] if grades else []


def _graded_question(settings: Label, prompt: JudgePrompt, sample: Sample) -> Prompt:
    case = graded_case(settings, sample.prompt.messages, sample.text.strip(), sample.prompt.answer)
    return questioned(prompt, case, make_id("judge", (sample.id,), 0))


def _grade(settings: Label, context: Context, sample: Sample, number: int, said: Said) -> Verdict:
    value = said["value"]
    return Verdict(
        id=make_id(context.folder.name, (sample.id,), number),
        parents=(sample.id,),
        source=sample.source,
        prompt=sample.prompt.id,
        answers=(sample.id,),
        judge=settings.judge.name,
        text=said["text"],
        score=value,
        outcome="failed" if said["failed"] else "unreadable" if value is None else "grade",
        attempt=number,
    )
