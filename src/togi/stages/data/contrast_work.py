"""The work of `contrast`: the same question under two instructions (RLCD, arXiv 2307.12950)."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from togi.core.errors import InputError
from togi.core.protocols import Tokenizer
from togi.core.records import Completion, Drop, Message, Pair, Prompt, SamplingParams
from togi.core.seeds import derive
from togi.core.settings import ModelRef
from togi.data.pairs import build_pair, cut_to_shorter
from togi.data.prompts_fewshot import choose_shots, open_answer
from togi.stages.context import Context
from togi.stages.data.contrast import Careless, Contrast
from togi.stages.endpoints import completer, generator, tokenizer
from togi.stages.failures import Failures
from togi.stages.rehearsal_work import Rehearsed, asked, prompt_rows, weightless

Text = str | None
"""An answer; None if its request failed."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Two answers to a prompt, None for one that failed; `number` is the index of the rejected side."""

    prompt: Prompt
    chosen: Text
    rejected: Text
    number: int


def run(settings: Contrast, context: Context) -> None:
    prompts: list[Prompt] = context.records(settings.input)
    context.count_in(len(prompts))
    if settings.examples is None:
        chosen = _answers(settings, context, "helpful", Careless(instruction=settings.helpful), prompts)
    else:
        chosen = by_examples(settings, context, prompts, context.records(settings.examples))
    sides = [_answers(settings, context, f"careless-{n}", way, prompts) for n, way in enumerate(settings.careless)]
    if settings.off_topic:
        sides.append(of_others(chosen, derive(context.seed, "off_topic")))
    if settings.questions:
        sides.append(of_others([prompt.text for prompt in prompts], derive(context.seed, "questions")))
    words = tokenizer(context, settings.model)
    made = [
        pair_of(settings, context, words, Answers(prompt, good, bad, number))
        for number, rejected in enumerate(sides)
        for prompt, good, bad in zip(prompts, chosen, rejected, strict=True)
    ]
    context.drop_all(item for item in made if isinstance(item, Drop))
    context.write("pairs", [item for item in made if isinstance(item, Pair)])


def rehearse(settings: Contrast, context: Context) -> Iterator[Rehearsed]:
    prompts: list[Prompt] = context.records(settings.input)
    ways = [("careless", way) for way in settings.careless]
    if settings.examples is None:
        ways = [("helpful", Careless(instruction=settings.helpful)), *ways]
    for name, way in ways:
        model = weightless(context, way.model or settings.model)
        under = [instructed(way.instruction, name, prompt) for prompt in prompts]
        try:
            yield from prompt_rows(context, model, asked(under), settings.max_tokens)
        except InputError as error:
            system = "{question}" not in way.instruction
            hint = ". This instruction is a system turn; if it contains {question}, it becomes the user turn"
            raise InputError(f"{error} (under the {name} instruction){hint if system else ''}") from None


def by_examples(settings: Contrast, context: Context, prompts: list[Prompt], examples: list[Prompt]) -> list[Text]:
    """Returns one answer to each prompt: the model continues a list of answered questions up to the end of the line."""
    size = settings.batch_prompts
    writer = completer(context, settings.model, batch_rows=size)
    params = replace(_params(settings, context), stop=("\n",))

    def answer(unit: int) -> list[Text]:
        batch = prompts[unit * size : (unit + 1) * size]
        texts = [
            open_answer(choose_shots(examples, settings.shots, context.seed, prompt.id), prompt.text, settings.language)
            for prompt in batch
        ]
        seeds = [[derive(params.seed, prompt.id)] for prompt in batch]
        found = writer.complete(texts, params, seeds)
        return [_text(group[0]) for group in found]

    texts = _asked(settings, context, answer, "helpful", len(prompts), settings.model)
    return [text and text.strip() for text in texts]


def of_others(texts: Sequence[Text], seed: int) -> list[Text]:
    """Returns for each prompt the text of another one, from a shuffled ring, so that none gets its own."""
    ring = list(range(len(texts)))
    random.Random(seed).shuffle(ring)
    given = dict(zip(ring, [*ring[1:], ring[0]], strict=True))
    return [texts[given[i]] for i in range(len(texts))]


def _answers(settings: Contrast, context: Context, name: str, way: Careless, prompts: list[Prompt]) -> list[Text]:
    """Returns one answer to each prompt under one instruction, without terminator; `name` names the units."""
    size = settings.batch_prompts
    speaker = generator(context, way.model or settings.model, batch_rows=size)
    ends = (speaker.terminator, *speaker.turn_starts)

    def answer(unit: int) -> list[Text]:
        batch = [instructed(way.instruction, name, prompt) for prompt in prompts[unit * size : (unit + 1) * size]]
        found = speaker.generate(batch, _params(settings, context))
        return [_text(group[0]) for group in found]

    texts = _asked(settings, context, answer, name, len(prompts), way.model or settings.model)
    return [text and _before(text, ends) for text in texts]


def _text(completion: Completion) -> Text:
    return None if completion.stop == "error" else completion.text


def _asked(
    settings: Contrast, context: Context, answer: Callable[[int], list[Text]], name: str, count: int, model: ModelRef
) -> list[Text]:
    """Returns the answers of all units, a few of which may have failed."""
    failures = Failures(context, settings.max_failed_share, count, f"{model} ({name})")
    texts: list[Text] = []
    for found in context.stream_units(-(-count // settings.batch_prompts), answer, name):
        texts += found
        failures.note(found.count(None))
    failures.tell("their pairs are dropped")
    return texts


def _before(text: str, ends: Sequence[str]) -> str:
    """The text before the first of the strings `ends`."""
    for end in ends:
        text = text.partition(end)[0]
    return text.strip()


def instructed(instruction: str, name: str, prompt: Prompt) -> Prompt:
    """The prompt under an instruction, which replaces the question if it contains {question}, else becomes the system
    turn."""
    if "{question}" in instruction:
        messages = (Message("user", instruction.replace("{question}", prompt.text)),)
    else:
        messages = (Message("system", instruction), *(m for m in prompt.messages if m.role != "system"))
    return replace(prompt, id=f"{prompt.id}/{name}", messages=messages)


def _params(settings: Contrast, context: Context) -> SamplingParams:
    return SamplingParams(
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=settings.max_tokens,
        seed=derive(context.seed, "contrast"),
    )


def pair_of(settings: Contrast, context: Context, words: Tokenizer, answers: Answers) -> Pair | Drop:
    chosen, rejected = answers.chosen, answers.rejected
    if chosen is None or rejected is None:
        return Drop(id=answers.prompt.id, stage=context.name, reason="failed")
    ids = [list(words(text, add_special_tokens=False)["input_ids"]) for text in (chosen, rejected)]
    shorter = cut_to_shorter(*ids)
    if len(shorter[0]) < settings.min_tokens:
        return Drop(id=answers.prompt.id, stage=context.name, reason="answer_too_short")
    if settings.cut_to_shorter:
        chosen, rejected = (words.decode(side, skip_special_tokens=False) for side in shorter)
    return build_pair(answers.prompt, chosen, rejected, stage=context.folder.name, index=answers.number)
