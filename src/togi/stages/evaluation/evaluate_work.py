"""Runs `evaluate`. Without benchmarks, both models answer the same prompts from the same random streams, and all
measures are paired.

The held-out reward reads the text without terminator, with both answers cut to the shorter one's length, so that ending
properly or shorter answers alone cannot raise it.
"""

from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Any

from togi.core.errors import InputError, StageError
from togi.core.files import read_object
from togi.core.records import Completion, Prompt
from togi.core.seeds import derive
from togi.core.settings import ModelRef, ScorerRef
from togi.evaluate.benchmarks.answers import CHARACTERS, CLOSED, LENGTH, Diversity
from togi.evaluate.benchmarks.base import Answered, Benchmark, Compared, Subject
from togi.evaluate.benchmarks.reward_scores import Graded
from togi.evaluate.diversity import ALIKE, grown_alike
from togi.evaluate.statistics import Bootstrap
from togi.evaluate.table import Row, rows_to_json
from togi.rewards.base import Attempt
from togi.rewards.model import WithoutSystem
from togi.rewards.terminator import TerminatorCheck
from togi.stages.context import Context
from togi.stages.endpoints import generator, scorer
from togi.stages.evaluation.benchmarks.run_work import preflight_benchmarks, rehearse_benchmarks, run_benchmarks
from togi.stages.evaluation.evaluate import Evaluate
from togi.stages.failures import Failures
from togi.stages.held_against import held_against, told
from togi.stages.rehearsal_work import Rehearsed, asked, prompt_rows, weightless
from togi.stages.seen_prompts import learnt, mark

LEAST = 3
"""The fewest prompts that give an interval."""


def run(settings: Evaluate, context: Context) -> None:
    if settings.benchmarks:
        run_benchmarks(settings, context)
    else:
        compare_two(settings, context)


def compare_two(settings: Evaluate, context: Context) -> None:
    """Compares base and policy."""
    prompts = _prompts(settings, context)
    _warn_learnt(settings, context, prompts)
    _tell_held(settings, context)
    asked = [_answers(settings, context, ref, name, prompts) for name, ref in _two(settings).items()]
    prompts, subjects = _without_failed(settings, context, prompts, asked)
    owners = [prompt for prompt in prompts for _ in range(settings.samples)]
    bootstrap = Bootstrap(seed=derive(context.seed, "bootstrap"), level=settings.level, resamples=settings.bootstrap)
    answered = Answered(owners, settings.samples, bootstrap)
    tables: list[Compared] = []
    rows: list[Row] = []
    for benchmark, ref in _benchmarks(settings, context, subjects):
        table = benchmark.run(subjects, answered)
        _count_unscored(settings, context, table, len(owners))
        tables.append(table)
        rows += table.rows["policy"]
        if ref is not None:
            name, note = table.benchmark, table.rows["policy"][0].note
            rows += _accuracy(context, ref, name)
            whole = "; the answers are shown uncut" if table.manifest["cut"] else ""
            context.summary["answers_note"] = f"scores are the {name} of the {note}{whole}"
    context.write("tables", [figure for table in tables for figure in table.figures()])
    context.write("tables", [figure for table in tables for figure in table.items(answered)], "items")
    context.counts = {"in": context.counts["in"], "out": len(prompts)}
    _warn_alike(context, rows)
    context.summary["table"] = rows_to_json(rows)
    context.summary["answers"] = _examples(settings, prompts, subjects, tables)


def _two(settings: Evaluate) -> dict[str, ModelRef]:
    """The two models that are compared without benchmarks."""
    refs = {"base": settings.base, "policy": settings.policy}
    return {name: ref for name, ref in refs.items() if ref is not None}


def _benchmarks(
    settings: Evaluate, context: Context, subjects: Sequence[Subject]
) -> list[tuple[Benchmark, ScorerRef | None]]:
    """The measures in the order of the table, each with the reward model that it asks."""
    found: list[tuple[Benchmark, ScorerRef | None]] = [(CLOSED, None)]
    for ref, name, cut in ((settings.reward, "reward", False), (settings.held_out, "held-out reward", True)):
        if ref is not None:
            judge = scorer(context, ref)
            shown = WithoutSystem(judge) if name == "reward" and settings.reward_system == "drop" else judge
            found.append((Graded(name, shown, cut), ref))
    counted = all(
        tokens or not text for each in subjects for text, tokens in zip(each.texts, each.lengths, strict=True)
    )
    return [*found, (LENGTH if counted else CHARACTERS, None), (Diversity(settings.language), None)]


def preflight(settings: Evaluate) -> None:
    preflight_benchmarks(settings)


def rehearse(settings: Evaluate, context: Context) -> Iterator[Rehearsed]:
    if settings.benchmarks:
        yield from rehearse_benchmarks(settings, context)
        return
    prompts = asked(_prompts(settings, context))
    for ref in dict.fromkeys(_two(settings).values()):
        yield from prompt_rows(context, weightless(context, ref), prompts, settings.max_tokens)


def _prompts(settings: Evaluate, context: Context) -> list[Prompt]:
    assert settings.prompts is not None
    prompts: list[Prompt] = context.records(settings.prompts)
    context.count_in(len(prompts))
    if len(prompts) < LEAST:
        raise InputError(f"stage {context.name}: {len(prompts)} prompts; at least {LEAST} are needed for an interval")
    return prompts


def _warn_learnt(settings: Evaluate, context: Context, prompts: list[Prompt]) -> None:
    """Raises an alarm for each model and scorer that was trained on some of the prompts."""
    used = (settings.base, settings.policy, settings.reward, settings.held_out)
    for ref in dict.fromkeys(ref for ref in used if ref is not None):
        known = dict.fromkeys(learnt(context, ref) or ())
        shared = sum(mark(prompt.messages) in known for prompt in prompts)
        if shared:
            context.alarm(
                "evaluated_on_learnt",
                f"{ref} was trained on {shared} of {len(prompts)} prompts, so the figures do not hold for unseen "
                "prompts; keep training and evaluation apart with `select`",
                value=shared / len(prompts),
                threshold=0.0,
            )


def _warn_alike(context: Context, rows: Sequence[Row]) -> None:
    """Raises an alarm if the policy's answers have grown alike."""
    if (row := grown_alike(rows)) is not None and row.base is not None and row.difference is not None:
        context.alarm(
            "answers_alike",
            f"the policy's answers to different prompts resemble each other: self-BLEU rose from {row.base.mean:.1f} "
            f"to {row.policy.mean:.1f}. The policy may have found one form that its reward likes: read its answers. "
            "Fewer steps, a lower learning rate, `loss.beta` or a guard on `diversity` prevent it",
            value=row.difference.low,
            threshold=ALIKE,
        )


def _tell_held(settings: Evaluate, context: Context) -> None:
    """Notes in the summary which training data was decontaminated against these prompts, and how much was removed."""
    assert settings.prompts is not None
    for name, ref in _two(settings).items():
        if found := held_against(context, ref, settings.prompts):
            context.summary[f"decontaminated against these prompts: {name}"] = told(found)


def _answers(
    settings: Evaluate, context: Context, ref: ModelRef, name: str, prompts: list[Prompt]
) -> tuple[Subject, list[bool]]:
    """A model's answers, and which of them failed."""
    size = settings.batch_prompts
    speaker = generator(context, ref, batch_rows=size * settings.samples)
    params = settings.params(seed=derive(context.seed, "evaluate"), n=settings.samples)

    def answer(unit: int) -> list[dict[str, Any]]:
        batch = prompts[unit * size : (unit + 1) * size]
        found = speaker.generate(batch, params)
        return [{"text": c.text, "stop": c.stop, "tokens": len(c.token_ids)} for group in found for c in group]

    failures = Failures(context, settings.max_failed_share, len(prompts), str(ref))
    rows: list[dict[str, Any]] = []
    for unit in context.stream_units(-(-len(prompts) // size), answer, name, what=f"batches of {name}"):
        rows += unit
        failures.note(sum(row["stop"] == "error" for row in unit[:: settings.samples]))  # all of a prompt fail or none
    failures.tell("their prompts are left out for both models")
    check = TerminatorCheck(terminator=speaker.terminator, turn_starts=speaker.turn_starts)
    owners = [prompt for prompt in prompts for _ in range(settings.samples)]
    texts = [row["text"].partition(speaker.terminator)[0].strip() for row in rows]
    attempts = [
        Attempt(prompt=prompt, completion=Completion(text=row["text"], stop=row["stop"]), answer=text)
        for prompt, row, text in zip(owners, rows, texts, strict=True)
    ]
    closed = [check(attempt) is None for attempt in attempts]
    return Subject(name, texts, closed, [row["tokens"] for row in rows]), [row["stop"] == "error" for row in rows]


def _without_failed(
    settings: Evaluate, context: Context, prompts: list[Prompt], asked: Sequence[tuple[Subject, list[bool]]]
) -> tuple[list[Prompt], list[Subject]]:
    """The prompts that every model answered, and the answers to them. Raises StageError for fewer than three."""
    size = settings.samples
    whole = [not any(any(failed[i * size : (i + 1) * size]) for _, failed in asked) for i in range(len(prompts))]
    if all(whole):
        return prompts, [subject for subject, _ in asked]
    for prompt, kept in zip(prompts, whole, strict=True):
        if not kept:
            context.drop(prompt, "failed")
    if sum(whole) < LEAST:
        raise StageError(f"stage {context.name}: only {sum(whole)} of {len(prompts)} prompts have all their answers")
    return list(compress(prompts, whole)), [_at(subject, whole, size) for subject, _ in asked]


def _at(subject: Subject, whole: Sequence[bool], samples: int) -> Subject:
    """A subject with its answers to the kept prompts only."""
    kept = [each for each in whole for _ in range(samples)]
    return Subject(
        subject.name,
        texts=list(compress(subject.texts, kept)),
        closed=list(compress(subject.closed, kept)),
        lengths=list(compress(subject.lengths, kept)),
    )


def _count_unscored(settings: Evaluate, context: Context, table: Compared, owners: int) -> None:
    """Counts the answers without a score from the table's reward model. Raises StageError if they are too many."""
    missing = [score for scores in table.values.values() for score in scores if score is None]
    failures = Failures(context, settings.max_failed_share, owners * len(table.values), f"the {table.benchmark}")
    failures.note(len(missing), table.manifest.get("failed", {}).get("first", ""))
    failures.tell("their prompts are left out of its rows")


def _accuracy(context: Context, ref: ScorerRef, name: str) -> list[Row]:
    """The scorer's own accuracy rows, from the stage that trained it; empty if togi did not train it."""
    folder = context.inputs[ref].folder
    table = [] if folder is None else read_object(folder / "summary.json").get("table", [])
    return [Row.from_json({**row, "metric": f"{name}: {row['metric']}"}) for row in table]


def _examples(
    settings: Evaluate, prompts: list[Prompt], subjects: Sequence[Subject], tables: Sequence[Compared]
) -> list[dict[str, Any]]:
    """The first answer to each of the first prompts, with its score from the last reward model."""
    graded = [table.values for table in tables if "cut" in table.manifest]
    values = graded[-1] if graded else {}
    rows = []
    for place, prompt in enumerate(prompts[: settings.show]):
        at = place * settings.samples
        row: dict[str, Any] = {"question": prompt.text, **{each.name: each.texts[at] for each in subjects}}
        rows.append(row | {f"{name}_score": scores[at] for name, scores in values.items()})
    return rows
