"""The work of `curate`: rules, then the judgement of a model or a reward model, then an optional rewrite.

Drafts that a model judges wait on disk; a batch of them is in memory.
"""

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, overload

import numpy as np

from togi.core.aside import records_aside
from togi.core.errors import RecipeError, StageError
from togi.core.records import Chat, Message, Prompt, Record
from togi.core.seeds import make_id
from togi.data.filters import first_failure, run_filters
from togi.data.prompt_files import prompt_of
from togi.stages.context import Context
from togi.stages.data.curate import SCORE, STAGE, Curate
from togi.stages.data.curate_rows import Phase, model_of, question_of, read_verdict, rules, said
from togi.stages.data.rows import map_shards, shard_task
from togi.stages.endpoints import chooser, generator, scorer
from togi.stages.failures import Failures
from togi.stages.model_shards import asked_elsewhere, is_spread, with_model
from togi.stages.rehearsal_work import Rehearsed, prompt_rows, weightless

Ask = Callable[[Prompt], tuple[Message, ...]]
"""How a model is asked about a draft."""
Batch = list[tuple[int, Prompt]]
"""Drafts that are kept, each with its row among the records that pass the rules."""


def run(settings: Curate, context: Context) -> None:
    kind = context.inputs[settings.input].kind
    kept = map_shards(STAGE, settings, context, settings.input, kind)
    if settings.method != "rules":
        kept = _judged(settings, context, records_aside(kept, context.folder))
    with context.writer(kind) as writer:
        for batch in kept:
            writer.write(batch)
        _look_at_harvest(settings, context, writer.count)


def _judged(settings: Curate, context: Context, records: Sequence[Any]) -> Iterator[list[Any]]:
    """Yields the records whose drafts the model keeps, with its corrections, batch by batch."""
    if not records:
        return
    kept = JUDGES[settings.method](settings, context, Drafts(records))
    if settings.rewrite:
        kept = _rewrite(settings, context, kept)
    for batch in kept:
        yield [with_draft(records[row], draft) for row, draft in batch]


class Drafts(Sequence[Prompt]):
    """The part to judge of each record, made when it is read."""

    def __init__(self, records: Sequence[Any]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [as_draft(record) for record in self._records[index]]
        return as_draft(self._records[index])


def as_draft(record: Prompt | Chat) -> Prompt:
    """Returns the part to judge: of a chat, its last answer and everything before it."""
    if isinstance(record, Prompt):
        return record
    *before, last = record.messages
    answered = last.role == "assistant"
    messages = tuple(before) if answered else record.messages
    answer = last.content if answered else None
    return Prompt(**_common(record), messages=messages, answer=answer)


def with_draft(record: Prompt | Chat, draft: Prompt) -> Prompt | Chat:
    """The record with the draft in place of the part that was judged; a chat keeps the rest of its last turn."""
    if isinstance(record, Prompt):
        return draft
    answer = () if draft.answer is None else (replace(record.messages[-1], content=draft.answer),)
    return Chat(**_common(draft), messages=(*draft.messages, *answer))


def _common(record: Record) -> dict[str, Any]:
    """The fields that all records share."""
    return {field.name: getattr(record, field.name) for field in fields(Record)}


def _look_at_harvest(settings: Curate, context: Context, kept: int) -> None:
    """Raises an alarm if few drafts are kept, and StageError if none is."""
    came = context.counts["in"]
    share = kept / came
    if share < settings.alarm_below:
        context.alarm(
            "kept_share",
            f"only {kept} of {came} drafts are kept ({share:.1%}); look at the drops with `togi show`",
            value=share,
            threshold=settings.alarm_below,
        )
    if not kept:
        raise StageError(f"stage {context.name}: no draft was kept of {came}; reasons: {context.drop_reasons()}")


def rehearse(settings: Curate, context: Context) -> Iterator[Rehearsed]:
    came = context.records(settings.input)
    records, drops = run_filters(came, rules(settings), stage=context.name, text=question_of)
    context.drop_all(drops)
    prompts = [as_draft(record) for record in records]
    if settings.model is None:
        context.counts["records that pass the rules"] = len(records)
        return
    ask = verdict_asker(settings) if settings.method == "json" else plain_asker(settings.question)
    model, most = weightless(context, settings.model), 1 if settings.method == "logprob" else settings.max_tokens
    yield from prompt_rows(context, model, [(p.id, ask(p)) for p in prompts], most)


def plain_asker(question: str) -> Ask:
    """Asks `question` with {text} replaced by the draft."""
    return lambda prompt: (Message("user", question.replace("{text}", prompt.text)),)


def verdict_asker(settings: Curate) -> Ask:
    """Asks with the prompt file: the user's own, or the built-in one of the language."""
    template = prompt_of(settings.prompt, "curate", settings.language)
    return lambda prompt: (Message("user", template.render({"question": prompt.text, "answer": prompt.answer})),)


def _by_logprob(settings: Curate, context: Context, drafts: Sequence[Prompt]) -> Iterator[Batch]:
    """Keeps the share with the largest log p(yes) - log p(no), read at the first token of each word.

    A batch is one tree, so the shared beginning of its questions is computed only once.
    """
    scoring = Scoring(settings, context, drafts, np.arange(len(drafts)))
    return scoring.best(scoring.scores("judge", plain_asker(settings.question)), "judge_margin")


def _by_reward(settings: Curate, context: Context, drafts: Sequence[Prompt]) -> Iterator[Batch]:
    """Scores each draft's answer; drops drafts without an answer or without a score."""
    rows = array("q")
    for row, draft in enumerate(drafts):
        if draft.answer is None:
            context.drop(draft, "no_answer")
        else:
            rows.append(row)
    scoring = Scoring(settings, context, drafts, np.asarray(rows, dtype=np.int64))
    return scoring.best(scoring.scores("score", lambda prompt: prompt.messages), "score")


@dataclass(frozen=True, slots=True)
class Scoring:
    """Scores the drafts at `rows` and keeps the best of them."""

    settings: Curate
    context: Context
    drafts: Sequence[Prompt]
    rows: np.ndarray

    def scores(self, phase: Phase, ask: Ask) -> np.ndarray:
        """The scores, NaN where there is none. Raises StageError if too many are missing."""
        settings, size = self.settings, self.settings.batch_prompts
        failures = Failures(self.context, settings.max_failed_share, len(self.rows), str(model_of(settings, phase)))
        found = array("d")

        def asked(number: int) -> list[Prompt]:
            rows = self.rows[number * size : (number + 1) * size]
            return _shown([self.drafts[row] for row in rows.tolist()], ask)

        for values in _units(settings, self.context, phase, -(-len(self.rows) // size), asked):
            wrong = [value for value in values if isinstance(value, str)]
            found.extend(math.nan if isinstance(value, str) else value for value in values)
            failures.note(len(wrong), next(iter(wrong), ""))
        failures.tell("their drafts are dropped")
        return np.asarray(found, dtype=np.float64)

    def best(self, scores: np.ndarray, told: str) -> Iterator[Batch]:
        """Yields the share with the highest scores, or all scores of at least the threshold, each with its score; ties
        go to the earlier draft. Drops the others, and those without a score."""
        failed = np.isnan(scores)
        self._drop(self.rows[failed], "failed")
        rows, scores = self.rows[~failed], scores[~failed]
        if not len(rows):
            return
        order = np.argsort(-scores, kind="stable")
        if self.settings.threshold is None:
            count = max(1, round(self.settings.keep_share * len(rows)))
        else:
            count = int((scores >= self.settings.threshold).sum())
        self._drop(rows[np.sort(order[count:])], "scored_low" if self.settings.method == "reward" else "judged_low")
        least = float(scores[order[count - 1]]) if count else None
        self.context.summary[told] = {"kept_min": least, "best": float(scores.max()), "worst": float(scores.min())}
        best, size = np.sort(order[:count]), self.settings.batch_prompts
        for first in range(0, count, size):
            yield [self._scored(int(rows[place]), float(scores[place])) for place in best[first : first + size]]

    def _scored(self, row: int, score: float) -> tuple[int, Prompt]:
        draft = self.drafts[row]
        return row, replace(draft, extra={**draft.extra, SCORE: score})

    def _drop(self, rows: np.ndarray, reason: str) -> None:
        for row in rows.tolist():
            self.context.drop(self.drafts[row], reason)


def _by_json(settings: Curate, context: Context, drafts: Sequence[Prompt]) -> Iterator[Batch]:
    """Asks for one JSON verdict per draft, again if it is broken; if that one is broken too, the draft is rejected."""
    kept = unchanged = first = 0
    for prompts, texts in _ask(settings, context, drafts, verdict_asker(settings), "verdict"):
        batch: Batch = []
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True), first):
            found = _corrected(settings, context, prompt, text)
            if isinstance(found, str):
                context.drop(prompt, found)
                continue
            batch.append((row, found))
            unchanged += found is prompt
        first += len(prompts)
        kept += len(batch)
        yield batch
    context.summary["corrected"] = kept - unchanged
    context.log(f"of {kept} kept drafts, {kept - unchanged} are corrected and {unchanged} are unchanged")


def _corrected(settings: Curate, context: Context, prompt: Prompt, text: str | None) -> Prompt | str:
    """Returns the draft with the verdict's corrections, or the drop reason. A draft without an answer gets none."""
    if text is None:
        return "failed"
    verdict = read_verdict(text)
    if verdict is None or not verdict.keep:
        return "broken_json" if verdict is None else "judged_low"
    question, answer = verdict.question.strip() or prompt.text, prompt.answer
    if first_failure(question, rules(settings)) is not None:
        return "bad_rewrite"
    if answer is not None:
        answer = verdict.answer.strip() or answer
    if (question, answer) == (prompt.text, prompt.answer):
        return prompt
    return replace(_rewritten(context, prompt, question), answer=answer)


def _rewrite(settings: Curate, context: Context, kept: Iterable[Batch]) -> Iterator[Batch]:
    """Rewrites each draft as plain text. A draft stays as it is if its rewrite failed or breaks a rule; the log counts
    these."""
    rows, held_to, count = array("q"), rules(settings), 0

    def noted() -> Iterator[list[Prompt]]:
        for batch in kept:
            rows.extend(row for row, _ in batch)
            yield [draft for _, draft in batch]

    drafts, first = records_aside(noted(), context.folder), 0
    if not drafts:
        return
    for prompts, texts in _ask(settings, context, drafts, plain_asker(settings.rewrite_prompt), "rewrite"):
        good = [text if text is not None and first_failure(text, held_to) is None else "" for text in texts]
        made = [_rewritten(context, draft, text) if text else draft for draft, text in zip(prompts, good, strict=True)]
        yield list(zip(rows[first : first + len(made)], made, strict=True))
        first += len(made)
        count += sum(map(bool, good))
    context.summary["rewritten"] = count
    if count < len(drafts):
        context.log(
            f"{count} of {len(drafts)} drafts are rewritten; the others stay as they are, because their rewrites "
            "failed or break a rule"
        )


def _rewritten(context: Context, prompt: Prompt, text: str) -> Prompt:
    """The prompt with its last question replaced; the other turns stay. The parent is the record of the input, also
    for a draft that this stage has already corrected."""
    corrected = prompt.id == make_id(context.folder.name, prompt.parents, 0)
    parents = prompt.parents if corrected else (prompt.id,)
    name = make_id(context.folder.name, parents, 0)
    last = max(i for i, message in enumerate(prompt.messages) if message.role == "user")
    asked = replace(prompt.messages[last], content=text.strip())
    messages = (*prompt.messages[:last], asked, *prompt.messages[last + 1 :])
    return replace(prompt, id=name, parents=parents, messages=messages)


def _ask(
    settings: Curate, context: Context, drafts: Sequence[Prompt], ask: Ask, phase: Phase
) -> Iterator[tuple[Sequence[Prompt], list[str | None]]]:
    """Yields batches of drafts with one greedy answer about each, None if the model failed. A broken verdict is asked
    for a second time."""
    size = settings.batch_prompts

    def asked(unit: int) -> list[Prompt]:
        return _shown(drafts[unit * size : (unit + 1) * size], ask)

    failures = Failures(context, settings.max_failed_share, len(drafts), f"{settings.model} ({phase})")
    for unit, texts in enumerate(_units(settings, context, phase, -(-len(drafts) // size), asked)):
        failures.note(texts.count(None))
        yield drafts[unit * size : (unit + 1) * size], texts
    failures.tell("their drafts stay as they were" if phase == "rewrite" else "their drafts are dropped")


# --- units ------------------------------------------------------------------------------------------------------------

USES: dict[Phase, str] = {"judge": "chooser", "score": "scorer", "verdict": "generator", "rewrite": "generator"}
"""How the model of each phase is asked, as in stages/endpoints.py."""


def _shown(drafts: Sequence[Prompt], ask: Ask) -> list[Prompt]:
    """The drafts with the turns with which a model is asked about them, and only what it needs."""
    return [Prompt(id=draft.id, messages=ask(draft), answer=draft.answer) for draft in drafts]


def _units(
    settings: Curate, context: Context, phase: Phase, count: int, asked: Callable[[int], list[Prompt]]
) -> Iterator[list[Any]]:
    """Yields what the model says in each of `count` units, here or in other processes; `asked` gives what it is asked
    in a unit."""
    ref = model_of(settings, phase)
    options = {"batch_rows": settings.batch_prompts} if USES[phase] == "generator" else {}
    if is_spread(context, ref):
        task = shard_task(STAGE, settings, context, None, 0, {"phase": phase})
        task = with_model(task, context, ref, USES[phase], **options)
        spread = asked_elsewhere(context, task, phase, count, "prompts", map(asked, range(count)))
        return context.stream_units(count, lambda _: next(spread), phase)
    opened: dict[str, Callable[..., Any]] = {"chooser": chooser, "scorer": scorer, "generator": generator}
    model = opened[USES[phase]](context, ref, **options)

    def make(unit: int) -> list[Any]:
        try:
            return said(settings, context.seed, phase, model, asked(unit))
        except RecipeError as error:
            raise RecipeError(f"stage {context.name}: {error}") from None

    return context.stream_units(count, make, phase)


JUDGES: dict[str, Callable[[Curate, Context, Sequence[Prompt]], Iterator[Batch]]] = {
    "logprob": _by_logprob,
    "json": _by_json,
    "reward": _by_reward,
}
"""For each method that asks a model: how it chooses among the drafts that pass the rules."""
