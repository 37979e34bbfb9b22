"""The work of `curate`: rules, then the judgement of a model or a reward model, then an optional rewrite."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from togi.core.errors import GraderError, RecipeError, StageError
from togi.core.records import Chat, Message, Prompt, Record, SamplingParams
from togi.core.seeds import make_id
from togi.core.settings import ModelRef
from togi.data.filters import first_failure, run_filters
from togi.data.prompt_files import prompt_of
from togi.stages.context import Context
from togi.stages.data.curate import STAGE, Curate
from togi.stages.data.curate_rows import question_of, rules
from togi.stages.data.rows import map_shards
from togi.stages.endpoints import chooser, generator, scorer
from togi.stages.failures import Failures
from togi.stages.rehearsal_work import Rehearsed, prompt_rows, weightless

Ask = Callable[[Prompt], tuple[Message, ...]]
"""How a model is asked about a draft."""

RETRY = "That was not one JSON object. Write the JSON object and nothing else."


class JsonVerdict(BaseModel):
    """The JSON object that the judge is asked for (docs/methods.md)."""

    model_config = ConfigDict(extra="ignore", strict=True)
    keep: bool
    reason: str = ""
    question: str = ""
    answer: str = ""


def run(settings: Curate, context: Context) -> None:
    kind = context.inputs[settings.input].kind
    shards = map_shards(STAGE, settings, context, settings.input, kind)
    if settings.method == "rules":
        with context.writer(kind) as writer:
            for kept in shards:
                writer.write(kept)
            _look_at_harvest(settings, context, writer.count)
        return
    records = [record for shard in shards for record in shard]
    kept = [as_draft(record) for record in records]
    if kept:
        kept = JUDGES[settings.method](settings, context, kept)
        if settings.rewrite and kept:
            kept = _rewrite(settings, context, kept)
    _look_at_harvest(settings, context, len(kept))
    context.write(kind, kept if kind == "prompts" else as_chats(records, kept))


def as_draft(record: Prompt | Chat) -> Prompt:
    """Returns the part to judge: of a chat, its last answer and everything before it."""
    if isinstance(record, Prompt):
        return record
    *before, last = record.messages
    answered = last.role == "assistant"
    messages = tuple(before) if answered else record.messages
    answer = last.content if answered else None
    return Prompt(**_common(record), messages=messages, answer=answer)


def as_chats(records: Sequence[Chat], kept: Sequence[Prompt]) -> list[Chat]:
    """Turns the drafts back into chats, each with the last turn of its original chat."""
    last = {record.id: record.messages[-1] for record in records}
    found = []
    for draft in kept:
        turn = last[draft.id if draft.id in last else draft.parents[0]]
        answer = () if draft.answer is None else (replace(turn, content=draft.answer),)
        found.append(Chat(**_common(draft), messages=(*draft.messages, *answer)))
    return found


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
    records, _ = run_filters(context.records(settings.input), rules(settings), stage=context.name, text=question_of)
    prompts = [as_draft(record) for record in records]
    if settings.model is None:
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


def _batches(settings: Curate, prompts: list[Prompt]) -> list[list[Prompt]]:
    size = settings.batch_prompts
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


def _by_logprob(settings: Curate, context: Context, prompts: list[Prompt]) -> list[Prompt]:
    """Keeps the share with the largest log p(yes) - log p(no), read at the first token of each word.

    A batch is one tree, so the shared beginning of its questions is computed only once.
    """
    judge, asker = chooser(context, _model(settings)), plain_asker(settings.question)
    batches = _batches(settings, prompts)

    def ask(unit: int) -> list[float | str]:
        asked = [asker(prompt) for prompt in batches[unit]]
        try:
            return _scores_or_why(judge.margins(asked, settings.yes, settings.no))
        except RecipeError as error:
            raise RecipeError(f"stage {context.name}: {error}") from None

    units = context.stream_units(len(batches), ask, "judge")
    scored = _scored(settings, context, prompts, units, str(settings.model))
    return _best(settings, context, scored, "judge_margin") if scored else []


def _scores_or_why(found: Sequence[float | GraderError]) -> list[float | str]:
    """Scores as stored by a unit; a missing one is replaced by the reason."""
    return [str(score) if isinstance(score, GraderError) else score for score in found]


def _scored(
    settings: Curate, context: Context, prompts: list[Prompt], units: Iterator[list[float | str]], what: str
) -> list[tuple[Prompt, float]]:
    """Drafts with their scores; drafts without one are dropped. Raises StageError if too many are missing."""
    failures = Failures(context, settings.max_failed_share, len(prompts), what)
    scores: list[float | str] = []
    for unit in units:
        scores += unit
        wrong = [score for score in unit if isinstance(score, str)]
        failures.note(len(wrong), next(iter(wrong), ""))
    failures.tell("their drafts are dropped")
    pairs = list(zip(prompts, scores, strict=True))
    for prompt in [prompt for prompt, score in pairs if isinstance(score, str)]:
        context.drop(prompt, "failed")
    return [(prompt, score) for prompt, score in pairs if not isinstance(score, str)]


def _best(settings: Curate, context: Context, scored: Sequence[tuple[Prompt, float]], told: str) -> list[Prompt]:
    """The share with the highest scores, or all scores of at least the threshold; ties go to the earlier draft."""
    prompts, scores = [prompt for prompt, _ in scored], [score for _, score in scored]
    order = sorted(range(len(prompts)), key=lambda i: (-scores[i], i))
    if settings.threshold is None:
        count = max(1, round(settings.keep_share * len(prompts)))
    else:
        count = sum(score >= settings.threshold for score in scores)
    chosen = sorted(order[:count])
    for i in sorted(order[count:]):
        context.drop(prompts[i], "scored_low" if settings.method == "reward" else "judged_low")
    least = min((scores[i] for i in chosen), default=None)
    context.summary[told] = {"kept_min": least, "best": max(scores), "worst": min(scores)}
    return [prompts[i] for i in chosen]


def _by_reward(settings: Curate, context: Context, prompts: list[Prompt]) -> list[Prompt]:
    """Scores each draft's answer; drops drafts without an answer or without a score."""
    assert settings.scorer is not None
    grader = scorer(context, settings.scorer)
    for prompt in prompts:
        if prompt.answer is None:
            context.drop(prompt, "no_answer")
    answered = [prompt for prompt in prompts if prompt.answer is not None]
    batches = _batches(settings, answered)

    def grade(unit: int) -> list[float | str]:
        return _scores_or_why(grader.score([(prompt.messages, prompt.answer or "") for prompt in batches[unit]]))

    units = context.stream_units(len(batches), grade, "score")
    scored = _scored(settings, context, answered, units, str(settings.scorer))
    return _best(settings, context, scored, "score") if scored else []


def _by_json(settings: Curate, context: Context, prompts: list[Prompt]) -> list[Prompt]:
    """Asks for one JSON verdict per draft, again if it is broken; if that one is broken too, the draft is rejected."""
    texts = _ask(settings, context, prompts, verdict_asker(settings), "verdict")
    kept, unchanged = [], 0
    for prompt, text in zip(prompts, texts, strict=True):
        found = _corrected(settings, context, prompt, text)
        if isinstance(found, str):
            context.drop(prompt, found)
            continue
        kept.append(found)
        unchanged += found is prompt
    context.summary["corrected"] = len(kept) - unchanged
    context.log(f"of {len(kept)} kept drafts, {len(kept) - unchanged} are corrected and {unchanged} are unchanged")
    return kept


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


def _rewrite(settings: Curate, context: Context, prompts: list[Prompt]) -> list[Prompt]:
    """Rewrites each draft as plain text. A draft stays as it is if its rewrite failed or breaks a rule; the log counts
    these."""
    texts = _ask(settings, context, prompts, plain_asker(settings.rewrite_prompt), "rewrite")
    held_to = rules(settings)
    good = [text if text is not None and first_failure(text, held_to) is None else "" for text in texts]
    count = sum(bool(text) for text in good)
    context.summary["rewritten"] = count
    if count < len(prompts):
        context.log(
            f"{count} of {len(prompts)} drafts are rewritten; the others stay as they are, because their rewrites "
            "failed or break a rule"
        )
    return [_rewritten(context, p, text) if text else p for p, text in zip(prompts, good, strict=True)]


def _rewritten(context: Context, prompt: Prompt, text: str) -> Prompt:
    """The prompt with its last question replaced; the other turns stay."""
    name = make_id(context.folder.name, (prompt.id,), 0)
    last = max(i for i, message in enumerate(prompt.messages) if message.role == "user")
    asked = replace(prompt.messages[last], content=text.strip())
    messages = (*prompt.messages[:last], asked, *prompt.messages[last + 1 :])
    return replace(prompt, id=name, parents=(prompt.id,), messages=messages)


def read_verdict(text: str) -> JsonVerdict | None:
    """Reads the JSON object between the first and the last brace of an answer; None if there is no valid one."""
    start, end = text.find("{"), text.rfind("}")
    try:
        return JsonVerdict.model_validate_json(text[start : end + 1]) if 0 <= start < end else None
    except ValidationError:
        return None


def _model(settings: Curate) -> ModelRef:
    assert settings.model is not None, "the settings ask for one"
    return settings.model


def _ask(settings: Curate, context: Context, prompts: list[Prompt], ask: Ask, name: str) -> list[str | None]:
    """Returns one greedy answer about each draft, None if the model failed. A broken verdict is asked for a second
    time."""
    speaker = generator(context, _model(settings), batch_rows=settings.batch_prompts)
    batches = _batches(settings, prompts)
    params = SamplingParams(temperature=0.0, max_tokens=settings.max_tokens, seed=context.seed)

    def generate(asked: list[Prompt]) -> list[str | None]:
        found = [answers[0] for answers in speaker.generate(asked, params)]
        return [None if c.stop == "error" else c.text.partition(speaker.terminator)[0].strip() for c in found]

    def answer(unit: int) -> list[str | None]:
        asked = [replace(prompt, messages=ask(prompt)) for prompt in batches[unit]]
        texts = generate(asked)
        broken = {
            i: text for i, text in enumerate(texts) if name == "verdict" and text is not None and not read_verdict(text)
        }
        again = [
            replace(asked[i], messages=(*asked[i].messages, Message("assistant", text), Message("user", RETRY)))
            for i, text in broken.items()
        ]
        for i, text in zip(broken, generate(again) if again else [], strict=True):
            texts[i] = text
        return texts

    failures = Failures(context, settings.max_failed_share, len(prompts), f"{settings.model} ({name})")
    found: list[str | None] = []
    for unit in context.stream_units(len(batches), answer, name):
        found += unit
        failures.note(unit.count(None))
    failures.tell("their drafts stay as they were" if name == "rewrite" else "their drafts are dropped")
    return found


JUDGES: dict[str, Callable[[Curate, Context, list[Prompt]], list[Prompt]]] = {
    "logprob": _by_logprob,
    "json": _by_json,
    "reward": _by_reward,
}
"""For each method that asks a model: how it chooses among the drafts that pass the rules."""
