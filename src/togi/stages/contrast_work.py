"""The work of `contrast`: the same question under two instructions (RLCD, arXiv 2307.12950)."""

from collections.abc import Sequence
from dataclasses import replace

from togi.core.records import Drop, Message, Pair, Prompt, SamplingParams
from togi.core.seeds import derive
from togi.core.settings import ModelRef
from togi.data.pairs import build_pair, cut_to_shorter
from togi.model.load import LoadedModel
from togi.rollout.generator import ModelGenerator
from togi.stages.base import Context
from togi.stages.contrast import Contrast
from togi.stages.models import load_model


def run(settings: Contrast, context: Context) -> None:
    prompts: list[Prompt] = context.records(settings.input)
    chosen = _answers(settings, context, "helpful", settings.model, prompts)
    rejected = _answers(settings, context, "careless", settings.careless_model or settings.model, prompts)
    model = load_model(context, settings.model)
    made = [_pair(settings, context, model, *sides) for sides in zip(prompts, chosen, rejected, strict=True)]
    context.drops += [item for item in made if isinstance(item, Drop)]
    context.write("pairs", [item for item in made if isinstance(item, Pair)])


def _answers(settings: Contrast, context: Context, side: str, ref: ModelRef, prompts: list[Prompt]) -> list[str]:
    """One answer to each prompt under one side's instruction, without terminator."""
    model = load_model(context, ref)
    size = settings.batch_prompts
    generator = ModelGenerator(model.net, model.tokenizer, model.template, batch_rows=size)
    ends = (model.template.terminator, *model.template.turn_starts)

    def answer(unit: int) -> list[str]:
        batch = [_instructed(settings, side, prompt) for prompt in prompts[unit * size : (unit + 1) * size]]
        return [group[0].text for group in generator.generate(batch, _params(settings, context))]

    texts = [text for unit in context.units(-(-len(prompts) // size), answer, side) for text in unit]
    return [_before(text, ends) for text in texts]


def _before(text: str, ends: Sequence[str]) -> str:
    """The text before the first of some strings."""
    for end in ends:
        text = text.partition(end)[0]
    return text.strip()


def _instructed(settings: Contrast, side: str, prompt: Prompt) -> Prompt:
    """The prompt under one side's instruction: in place of the question where it names {question}, else as system."""
    instruction = settings.helpful if side == "helpful" else settings.careless
    if "{question}" in instruction:
        messages = (Message("user", instruction.replace("{question}", prompt.text)),)
    else:
        messages = (Message("system", instruction), *(m for m in prompt.messages if m.role != "system"))
    return replace(prompt, id=f"{prompt.id}/{side}", messages=messages)


def _params(settings: Contrast, context: Context) -> SamplingParams:
    return SamplingParams(
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=settings.max_tokens,
        seed=derive(context.seed, "contrast"),
    )


def _pair(
    settings: Contrast, context: Context, model: LoadedModel, prompt: Prompt, chosen: str, rejected: str
) -> Pair | Drop:
    if settings.cut_to_shorter:
        ids = [list(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (chosen, rejected)]
        shorter = cut_to_shorter(*ids)
        if len(shorter[0]) < settings.min_tokens:
            return Drop(id=prompt.id, stage=context.name, reason="answer_too_short")
        chosen, rejected = (model.tokenizer.decode(side, skip_special_tokens=False) for side in shorter)
    return build_pair(prompt, chosen, rejected, stage=context.folder.name)
