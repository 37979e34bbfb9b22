"""The work of `evaluate`: both models answer the same prompts from the same random streams, then everything is paired.

The held-out reward is read on the text without terminator, both answers cut to the shorter one's length, so that
closing or shortening alone cannot raise it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from togi.core.errors import GraderError, InputError
from togi.core.files import read_object
from togi.core.protocols import Scorer
from togi.core.records import Completion, Prompt, SamplingParams
from togi.core.seeds import derive
from togi.core.settings import ModelRef, ScorerRef
from togi.data.features import HashedNgrams
from togi.evaluate.diversity import Texts, diversity_rows
from togi.evaluate.lengths import cut_characters
from togi.evaluate.statistics import Bootstrap, Floats, by_prompt
from togi.evaluate.table import Metric, Row, compare, rows_to_json
from togi.rewards.base import Attempt
from togi.rewards.terminator import TerminatorCheck
from togi.stages.context import Context
from togi.stages.endpoints import generator, scorer
from togi.stages.evaluation.evaluate import Evaluate
from togi.stages.rehearsal_work import Rehearsed, asked, prompt_rows, weightless
from togi.stages.seen_prompts import learnt, mark


@dataclass(frozen=True, slots=True)
class Side:
    """One model's answers, `samples` to each prompt, prompts in order. `text` is without terminator."""

    texts: list[str]
    closed: list[bool]
    lengths: list[int]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both sides' answers, whose prompts they answer, and how differences are resampled."""

    owners: list[Prompt]
    base: Side
    policy: Side
    bootstrap: Bootstrap


def run(settings: Evaluate, context: Context) -> None:
    prompts = _prompts(settings, context)
    _warn_learnt(settings, context, prompts)
    base = _answers(settings, context, settings.base, "base", prompts)
    policy = _answers(settings, context, settings.policy, "policy", prompts)
    owners = [prompt for prompt in prompts for _ in range(settings.samples)]
    bootstrap = Bootstrap(seed=derive(context.seed, "bootstrap"), level=settings.level, resamples=settings.bootstrap)
    rows = [
        _row(
            Metric(
                name="answers closed",
                higher_is_better=True,
                note="share that ends with the terminator, as its gate asks",
                share=True,
            ),
            base.closed,
            policy.closed,
            owners,
            bootstrap,
        ),
    ]
    shown: tuple[list[float], list[float]] | None = None
    for ref, name, cut in ((settings.reward, "reward", False), (settings.held_out, "held-out reward", True)):
        if ref is not None:
            both = Comparison(owners, base, policy, bootstrap)
            scores, found = _scored(both, scorer(context, ref), name, cut)
            rows += [*found, *_accuracy(context, ref, name)]
            shown = scores
            whole = ", while the answers shown are whole" if cut else ""
            context.summary["answers_note"] = f"scores are the {name} of the {found[0].note}{whole}"
    rows.append(_row(Metric(name="length (tokens)"), base.lengths, policy.lengths, owners, bootstrap))
    rows += _diversity(settings, prompts, base, policy, bootstrap)
    context.counts["out"] = len(prompts)
    context.summary["table"] = rows_to_json(rows)
    context.summary["answers"] = _examples(settings, prompts, base, policy, shown)


def rehearse(settings: Evaluate, context: Context) -> Iterator[Rehearsed]:
    prompts = asked(_prompts(settings, context))
    for ref in dict.fromkeys((settings.base, settings.policy)):
        yield from prompt_rows(context, weightless(context, ref), prompts, settings.max_tokens)


def _prompts(settings: Evaluate, context: Context) -> list[Prompt]:
    prompts: list[Prompt] = context.records(settings.prompts)
    context.count_in(len(prompts))
    if len(prompts) < 3:
        raise InputError(f"stage {context.name}: {len(prompts)} prompts; at least 3 are needed for an interval")
    return prompts


def _warn_learnt(settings: Evaluate, context: Context, prompts: list[Prompt]) -> None:
    """An alarm for each model and scorer that learnt from some of the prompts."""
    used = (settings.base, settings.policy, settings.reward, settings.held_out)
    for ref in dict.fromkeys(ref for ref in used if ref is not None):
        known = dict.fromkeys(learnt(context, ref))
        shared = sum(mark(prompt.messages) in known for prompt in prompts)
        if shared:
            context.alarm(
                "evaluated_on_learnt",
                f"{shared} of {len(prompts)} prompts are among those that {ref} learnt from, so the figures do not "
                "hold for prompts that it has not seen; keep them apart with `select`",
                value=shared / len(prompts),
                threshold=0.0,
            )


def _answers(settings: Evaluate, context: Context, ref: ModelRef, name: str, prompts: list[Prompt]) -> Side:
    size = settings.batch_prompts
    speaker = generator(context, ref, batch_rows=size * settings.samples)
    params = SamplingParams(
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=settings.max_tokens,
        n=settings.samples,
        seed=derive(context.seed, "evaluate"),
    )

    def answer(unit: int) -> list[dict[str, Any]]:
        batch = prompts[unit * size : (unit + 1) * size]
        found = speaker.generate(batch, params)
        return [{"text": c.text, "stop": c.stop, "tokens": len(c.token_ids)} for group in found for c in group]

    units = context.units(-(-len(prompts) // size), answer, name)
    rows = [row for unit in units for row in unit]
    check = TerminatorCheck(terminator=speaker.terminator, turn_starts=speaker.turn_starts)
    owners = [prompt for prompt in prompts for _ in range(settings.samples)]
    texts = [row["text"].partition(speaker.terminator)[0].strip() for row in rows]
    attempts = [
        Attempt(prompt=prompt, completion=Completion(text=row["text"], stop=row["stop"]), answer=text)
        for prompt, row, text in zip(owners, rows, texts, strict=True)
    ]
    return Side(texts, [check(attempt) is None for attempt in attempts], [row["tokens"] for row in rows])


def _row(metric: Metric, base: Any, policy: Any, owners: list[Prompt], bootstrap: Bootstrap) -> Row:
    ids = [prompt.id for prompt in owners]
    return compare(metric, _mean(base, ids), _mean(policy, ids), bootstrap)


def _mean(values: Any, ids: list[str]) -> Floats:
    return by_prompt([float(value) for value in values], ids)


def _scored(
    comparison: Comparison, judge: Scorer, name: str, cut: bool
) -> tuple[tuple[list[float], list[float]], list[Row]]:
    """Scores of both sides' answers, and the rows that compare them."""
    c = comparison
    pairs = list(zip(c.base.texts, c.policy.texts, strict=True))
    if cut:
        pairs = [cut_characters(*pair) for pair in pairs]
    base, policy = (_score(judge, c.owners, [pair[side] for pair in pairs]) for side in (0, 1))
    note = "text without terminator" + (", both answers cut to the shorter one's length" if cut else "")
    rows = [_row(Metric(name=name, higher_is_better=True, note=note), base, policy, c.owners, c.bootstrap)]
    if cut:
        short, long = ([len(pair[side]) for pair in pairs] for side in (0, 1))
        metric = Metric(name=f"{name}: length read", note="characters that it read of each answer")
        rows.append(_row(metric, short, long, c.owners, c.bootstrap))
    return (base, policy), rows


def _score(judge: Scorer, owners: list[Prompt], texts: list[str]) -> list[float]:
    """Both sides are compared answer by answer, so none may be missing. Raises InputError where one is."""
    scores = []
    found = judge.score([(prompt.messages, text) for prompt, text in zip(owners, texts, strict=True)])
    for prompt, score in zip(owners, found, strict=True):
        if isinstance(score, GraderError):
            raise InputError(f"prompt {prompt.id}: {score}; leave the prompt out or lower max_tokens")
        scores.append(score)
    return scores


def _accuracy(context: Context, ref: ScorerRef, name: str) -> list[Row]:
    """How far the scorer itself can be trusted: its rows from the stage that trained it; none of one from outside."""
    folder = context.inputs[ref].folder
    table = [] if folder is None else read_object(folder / "summary.json").get("table", [])
    return [Row.from_json({**row, "metric": f"{name}: {row['metric']}"}) for row in table]


def _diversity(settings: Evaluate, prompts: list[Prompt], base: Side, policy: Side, bootstrap: Bootstrap) -> list[Row]:
    """Of the first answer to each prompt, cut to one length."""
    first = slice(None, None, settings.samples)
    texts = Texts(base=base.texts[first], policy=policy.texts[first]).cut()
    embedder = HashedNgrams()
    vectors = (embedder.embed(texts.base), embedder.embed(texts.policy))
    return diversity_rows(texts, settings.language, bootstrap, vectors)


def _examples(
    settings: Evaluate, prompts: list[Prompt], base: Side, policy: Side, scores: tuple[list[float], list[float]] | None
) -> list[dict[str, Any]]:
    rows = []
    for place, prompt in enumerate(prompts[: settings.show]):
        at = place * settings.samples
        row: dict[str, Any] = {"question": prompt.text, "base": base.texts[at], "policy": policy.texts[at]}
        if scores is not None:
            row |= {"base_score": scores[0][at], "policy_score": scores[1][at]}
        rows.append(row)
    return rows
