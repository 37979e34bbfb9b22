"""The work of `contrast`: the same question under two instructions (RLCD, arXiv 2307.12950)."""

from dataclasses import replace

from togi.core.records import Drop, Message, Pair, Prompt, SamplingParams
from togi.core.seeds import derive
from togi.data.pairs import build_pair, cut_to_shorter
from togi.model.load import LoadedModel
from togi.rollout.generator import ModelGenerator
from togi.stages.base import Context
from togi.stages.contrast import Contrast
from togi.stages.models import load_model

SIDES = ("helpful", "careless")


def run(settings: Contrast, context: Context) -> None:
    prompts: list[Prompt] = context.records(settings.input)
    model = load_model(context, settings.model)
    generator = ModelGenerator(model.net, model.tokenizer, model.template, batch_rows=2 * settings.batch_prompts)
    size = settings.batch_prompts

    def answers(unit: int) -> list[list[str]]:
        batch = prompts[unit * size : (unit + 1) * size]
        asked = [_instructed(settings, side, prompt) for prompt in batch for side in SIDES]
        found = generator.generate(asked, _params(settings, context))
        texts = [group[0].text.partition(model.template.terminator)[0] for group in found]
        return [texts[i : i + 2] for i in range(0, len(texts), 2)]

    units = context.units(-(-len(prompts) // size), answers, "pairs")
    made = [_pair(settings, context, model, p, texts) for p, texts in zip(prompts, sum(units, []), strict=True)]
    context.drops += [item for item in made if isinstance(item, Drop)]
    context.write("pairs", [item for item in made if isinstance(item, Pair)])


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


def _pair(settings: Contrast, context: Context, model: LoadedModel, prompt: Prompt, texts: list[str]) -> Pair | Drop:
    chosen, rejected = texts
    if settings.cut_to_shorter:
        ids = [list(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        shorter = cut_to_shorter(*ids)
        if len(shorter[0]) < settings.min_tokens:
            return Drop(id=prompt.id, stage=context.name, reason="answer_too_short")
        chosen, rejected = (model.tokenizer.decode(side, skip_special_tokens=False) for side in shorter)
    return build_pair(prompt, chosen, rejected, stage=context.folder.name)
