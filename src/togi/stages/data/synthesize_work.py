"""The work of `synthesize`."""

from typing import Any

from togi.core.records import Message, Prompt, SamplingParams
from togi.core.seeds import derive, make_id
from togi.data.filters import Filter, copy_of_seed, first_failure, repeated_ngrams, too_long, too_short, wrong_script
from togi.data.prompts_fewshot import Draft, choose_shots, fewshot_text, parse_draft, stop_strings
from togi.stages.context import Context
from togi.stages.data.synthesize import Synthesize
from togi.stages.endpoints import completer


def run(settings: Synthesize, context: Context) -> None:
    examples: list[Prompt] = context.records(settings.examples)
    writer = completer(context, settings.model, batch_rows=settings.batch_prompts * settings.samples_per_prompt)
    num_prompts = -(-settings.count // settings.samples_per_prompt)

    def drafts(unit: int) -> list[list[dict[str, Any]]]:
        numbers = range(unit * settings.batch_prompts, min((unit + 1) * settings.batch_prompts, num_prompts))
        texts = [
            fewshot_text(
                choose_shots(examples, settings.shots, context.seed, number), settings.language, settings.style
            )
            for number in numbers
        ]
        size = settings.samples_per_prompt
        seeds = [[derive(context.seed, "draft", number, i) for i in range(size)] for number in numbers]
        found = writer.complete(texts, _params(settings), seeds)
        return [[{"text": c.text, "ended": c.stop != "length"} for c in answers] for answers in found]

    units = context.units(-(-num_prompts // settings.batch_prompts), drafts)
    flat = [draft for unit in units for group in unit for draft in group][: settings.count]
    context.write("prompts", _prompts(settings, context, examples, flat))


def _params(settings: Synthesize) -> SamplingParams:
    return SamplingParams(
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=settings.max_tokens,
        n=settings.samples_per_prompt,
        stop=stop_strings(settings.language, settings.style),
    )


def _prompts(
    settings: Synthesize, context: Context, examples: list[Prompt], drafts: list[dict[str, Any]]
) -> list[Prompt]:
    """Reads the drafts; what is no question, too short, too long, in another script, a copy of a seed or repeats itself
    is dropped."""
    context.count_in(len(drafts))
    parents = tuple(example.id for example in examples)
    filters: list[Filter] = [
        too_short(settings.min_chars),
        too_long(settings.max_chars),
        wrong_script(settings.language),
        copy_of_seed([example.text for example in examples]),
    ]
    repeats = repeated_ngrams(settings.max_repeated_ngrams)
    made = []
    for index, raw in enumerate(drafts):
        name = make_id(context.folder.name, parents, index)
        draft = parse_draft(raw["text"], settings.language, settings.style, raw["ended"])
        prompt = Prompt(id=name, parents=parents, messages=(Message("user", ""),))
        if not isinstance(draft, Draft):
            context.drop(prompt, draft)
            continue
        reason = first_failure(draft.question, [*filters, repeats]) or first_failure(draft.answer or "", [repeats])
        if reason is not None:
            context.drop(prompt, reason)
            continue
        made.append(Prompt(id=name, parents=parents, messages=(Message("user", draft.question),), answer=draft.answer))
    return made
