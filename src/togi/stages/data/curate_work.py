"""The work of `curate`: rules, then a model's judgement, then (where asked for) a rewrite."""

import re
from collections.abc import Iterator
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, ValidationError

from togi.core.errors import RecipeError, StageError
from togi.core.records import Message, Prompt, SamplingParams
from togi.core.seeds import make_id
from togi.core.settings import ModelRef
from togi.data.filters import first_failure, run_filters
from togi.stages.context import Context
from togi.stages.data.curate import STAGE, Curate
from togi.stages.data.curate_rows import rules
from togi.stages.data.rows import map_shards
from togi.stages.endpoints import chooser, generator
from togi.stages.rehearsal_work import Rehearsed, prompt_rows, weightless

JSON_QUESTION = (
    "Judge this draft of a question to an assistant.\n\n{text}\n\nAnswer with one JSON object and nothing else: "
    '{"keep": true or false, "reason": "...", "question": "the question, corrected", "answer": ""}'
)
JSON_BOTH = (
    "Judge this draft of a question to an assistant and of its answer.\n\n{text}\n\nIts answer:\n\n{answer}\n\n"
    'Answer with one JSON object and nothing else: {"keep": true or false, "reason": "...", '
    '"question": "the question, corrected", "answer": "the answer, corrected"}'
)

RETRY = "That was not one JSON object. Write the JSON object and nothing else."


class JsonVerdict(BaseModel):
    """What the JSON form asks for (docs/methods.md)."""

    model_config = ConfigDict(extra="ignore", strict=True)
    keep: bool
    reason: str = ""
    question: str = ""
    answer: str = ""


def run(settings: Curate, context: Context) -> None:
    shards = map_shards(STAGE, settings, context, settings.input, "prompts")
    if settings.model is None:
        with context.writer("prompts") as writer:
            for kept in shards:
                writer.write(kept)
            _look_at_harvest(settings, context, writer.count)
        return
    kept = [prompt for shard in shards for prompt in shard]
    if kept:
        judge = _by_logprob if settings.method == "logprob" else _by_json
        kept = judge(settings, context, settings.model, kept)
        if settings.rewrite and kept:
            kept = _rewrite(settings, context, settings.model, kept)
    _look_at_harvest(settings, context, len(kept))
    context.write("prompts", kept)


def _look_at_harvest(settings: Curate, context: Context, kept: int) -> None:
    """An alarm where few drafts are kept. Raises StageError where none is."""
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
    prompts, _ = run_filters(context.records(settings.input), rules(settings), stage=context.name)
    if settings.model is None:
        return
    question = settings.question if settings.method == "logprob" else JSON_QUESTION
    model, most = weightless(context, settings.model), 1 if settings.method == "logprob" else settings.max_tokens
    yield from prompt_rows(context, model, [(p.id, _asked(question, p)) for p in prompts], most)


def _asked(question: str, prompt: Prompt) -> tuple[Message, ...]:
    filled = {"{text}": prompt.text}
    if question == JSON_QUESTION and prompt.answer is not None:
        question, filled["{answer}"] = JSON_BOTH, prompt.answer
    pattern = "|".join(map(re.escape, filled))  # at once: what is put in may hold such a place itself
    return (Message("user", re.sub(pattern, lambda place: filled[place[0]], question)),)


def _batches(settings: Curate, prompts: list[Prompt]) -> list[list[Prompt]]:
    size = settings.batch_prompts
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


def _by_logprob(settings: Curate, context: Context, ref: ModelRef, prompts: list[Prompt]) -> list[Prompt]:
    """Keeps the share with the largest log p(yes) - log p(no), by the first token of each.

    A batch is one tree: what the questions share is computed once."""
    judge = chooser(context, ref)
    batches = _batches(settings, prompts)

    def ask(unit: int) -> list[float]:
        asked = [_asked(settings.question, prompt) for prompt in batches[unit]]
        try:
            return judge.margins(asked, settings.yes, settings.no)
        except RecipeError as error:
            raise RecipeError(f"stage {context.name}: {error}") from None

    scores = [score for unit in context.units(len(batches), ask, "judge") for score in unit]
    order = sorted(range(len(prompts)), key=lambda i: (-scores[i], i))
    chosen = sorted(order[: max(1, round(settings.keep_share * len(prompts)))])
    for i in sorted(order[len(chosen) :]):
        context.drop(prompts[i], "judged_low")
    margins = {"kept_min": min(scores[i] for i in chosen), "best": max(scores), "worst": min(scores)}
    context.summary["judge_margin"] = margins
    return [prompts[i] for i in chosen]


def _by_json(settings: Curate, context: Context, ref: ModelRef, prompts: list[Prompt]) -> list[Prompt]:
    """One JSON verdict a draft; a broken one is asked for once more, then the draft is rejected."""
    texts = _ask(settings, context, ref, prompts, JSON_QUESTION, "verdict")
    kept = []
    for prompt, text in zip(prompts, texts, strict=True):
        verdict = read_verdict(text)
        if verdict is None or not verdict.keep:
            context.drop(prompt, "broken_json" if verdict is None else "judged_low")
            continue
        kept.append(_corrected(settings, context, prompt, verdict))
    return kept


def _corrected(settings: Curate, context: Context, prompt: Prompt, verdict: JsonVerdict) -> Prompt:
    """The draft with what the verdict says anew; a draft without an answer gets none."""
    question, answer = verdict.question.strip(), prompt.answer
    if not question or first_failure(question, rules(settings)) is not None:
        question = prompt.text
    if answer is not None:
        answer = verdict.answer.strip() or answer
    if (question, answer) == (prompt.text, prompt.answer):
        return prompt
    return replace(_rewritten(context, prompt, question), answer=answer)


def _rewrite(settings: Curate, context: Context, ref: ModelRef, prompts: list[Prompt]) -> list[Prompt]:
    """Each draft once more, as plain text; a rewrite that breaks a rule leaves the draft as it was."""
    texts = _ask(settings, context, ref, prompts, settings.rewrite_prompt, "rewrite")
    held_to = rules(settings)
    good = [text if first_failure(text, held_to) is None else "" for text in texts]
    context.summary["rewritten"] = sum(bool(text) for text in good)
    return [_rewritten(context, p, text) if text else p for p, text in zip(prompts, good, strict=True)]


def _rewritten(context: Context, prompt: Prompt, text: str) -> Prompt:
    """The prompt with another question; what stands around it stays."""
    name = make_id(context.folder.name, (prompt.id,), 0)
    last = max(i for i, message in enumerate(prompt.messages) if message.role == "user")
    asked = replace(prompt.messages[last], content=text.strip())
    messages = (*prompt.messages[:last], asked, *prompt.messages[last + 1 :])
    return replace(prompt, id=name, parents=(prompt.id,), messages=messages)


def read_verdict(text: str) -> JsonVerdict | None:
    """The JSON object in an answer, between its first and last brace; None where there is none that fits."""
    start, end = text.find("{"), text.rfind("}")
    try:
        return JsonVerdict.model_validate_json(text[start : end + 1]) if 0 <= start < end else None
    except ValidationError:
        return None


def _ask(
    settings: Curate, context: Context, ref: ModelRef, prompts: list[Prompt], question: str, name: str
) -> list[str]:
    """One greedy answer to `question` about each draft; a broken verdict is asked for once more."""
    speaker = generator(context, ref, batch_rows=settings.batch_prompts)
    batches = _batches(settings, prompts)
    params = SamplingParams(temperature=0.0, max_tokens=settings.max_tokens, seed=context.seed)

    def generate(asked: list[Prompt]) -> list[str]:
        found = speaker.generate(asked, params)
        return [answers[0].text.partition(speaker.terminator)[0].strip() for answers in found]

    def answer(unit: int) -> list[str]:
        asked = [replace(prompt, messages=_asked(question, prompt)) for prompt in batches[unit]]
        texts = generate(asked)
        broken = [i for i, text in enumerate(texts) if name == "verdict" and read_verdict(text) is None]
        again = [
            replace(asked[i], messages=(*asked[i].messages, Message("assistant", texts[i]), Message("user", RETRY)))
            for i in broken
        ]
        for i, text in zip(broken, generate(again) if again else [], strict=True):
            texts[i] = text
        return texts

    return [text for unit in context.units(len(batches), answer, name) for text in unit]
