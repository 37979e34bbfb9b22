"""The methods of `synthesize` that let a model continue a text: few-shot drafts of a base model, and Magpie (arXiv
2406.08464). In Magpie an aligned model sees the beginning of a user turn and writes what a user might ask."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from togi.core.errors import InputError
from togi.core.records import Chat, Document, Message, Prompt, Record
from togi.core.seeds import make_id
from togi.data.prompts_fewshot import Draft, choose_shots, fewshot_text, parse_draft, stop_strings
from togi.model.load import LoadedModel
from togi.stages.context import Context
from togi.stages.data.harvest_work import Plan, continuing, questioning
from togi.stages.data.synthesize import Synthesize
from togi.stages.data.synthesize_rows import Continuing, Questions, Row
from togi.stages.data.synthesize_rules import Rules, unusable
from togi.stages.endpoints import reader
from togi.text.template import Template, leading_text


def _texts(size: int, text: Callable[[int], str]) -> Callable[[range], list[Document]]:
    """Returns a function that gives the texts, by their numbers, of which candidates are `size` continuations each."""
    return lambda numbers: [
        Document(id=str(group), text=text(group)) for group in range(numbers.start // size, -(-numbers.stop // size))
    ]


# --- few-shot ---------------------------------------------------------------------------------------------------------


def few_shot(settings: Synthesize, context: Context) -> Plan:
    """Shuffled examples, then an open question for the model to complete."""
    assert settings.examples is not None
    examples: list[Prompt] = context.records(settings.examples)
    parents = tuple(example.id for example in examples)
    rules = Rules(settings, examples, distinct=False)

    def name(number: int) -> str:
        return make_id(context.folder.name, parents, number)

    def read(number: int, row: Row) -> Prompt | str:
        if row["stop"] == "error":
            return "failed"
        draft = parse_draft(row["text"], settings.language, settings.style, row["stop"] != "length")
        if not isinstance(draft, Draft):
            return draft
        reason = rules.failure(draft.question, draft.answer)
        asked = (Message("user", draft.question),)
        return reason or Prompt(id=name(number), parents=parents, messages=asked, answer=draft.answer)

    how = Continuing(settings.samples_per_prompt, stop_strings(settings.language, settings.style))
    texts = _texts(how.samples, lambda group: _shown(settings, context, examples, group))
    make = continuing(settings, context, settings.most(0), how, texts)
    return Plan(settings.most(0), settings.batch * how.samples, make, read, name)


def _shown(settings: Synthesize, context: Context, examples: list[Prompt], group: int) -> str:
    shown = choose_shots(examples, settings.shots, context.seed, group)
    return fewshot_text(shown, settings.language, settings.style)


def rehearsed(settings: Synthesize, context: Context, model: LoadedModel) -> Iterator[tuple[str, str]]:
    """Yields names and texts of the first continuations that the model will be asked for."""
    if settings.method == "magpie":
        yield "magpie", pre_query(model.tokenizer, model.template, settings.system)
        return
    assert settings.examples is not None
    examples: list[Prompt] = context.records(settings.examples)
    for group in range(min(SHOWN, settings.most(0))):
        yield f"draft {group}", _shown(settings, context, examples, group)


SHOWN = 4
"""Number of few-shot prompts that `togi check` shows."""

# --- Magpie -----------------------------------------------------------------------------------------------------------

MARK = "Zq7kV"


def pre_query(tokenizer: Any, template: Template, system: str = "") -> str:
    """Returns the text that a model's chat template puts before a user's first words, without tokens that the tokenizer
    adds.

    Raises InputError for a template that changes or repeats the user's words.
    """
    template = template.bind(tokenizer)
    messages = [*([Message("system", system)] if system else []), Message("user", MARK)]
    text = template.prompt_text(messages)
    if text.count(MARK) != 1:
        raise InputError(
            f"template {template.name!r} does not render the user's words unchanged, which magpie needs; choose "
            "another template for the model, or another method"
        )
    return text.partition(MARK)[0].removeprefix(leading_text(tokenizer))


def magpie(settings: Synthesize, context: Context) -> Plan:
    """The text before a user's words, continued to the end of the user turn; then, if asked for, an answer."""
    words, template = reader(context, settings.model)
    begun = pre_query(words, template, settings.system)
    stops = (*template.turn_starts, *(("\n",) if settings.one_line else ()))
    ends = (template.terminator, *template.turn_starts, *stops)
    questions, rules = Questions(settings, context.folder.name, ends), Rules(settings)
    how = Continuing(settings.samples_per_prompt, stops)
    make = questioning(settings, context, how, _texts(how.samples, lambda group: begun), questions)

    def read(number: int, row: Row) -> Record | str:
        answer = row.get("answer")
        reason = unusable(row) or (unusable(answer) if answer else None)
        reason = reason or rules.failure(row["text"], answer["text"] if answer else None)
        if reason is not None:
            return reason
        made = questions.prompt(number, row["text"])
        return _answered(made, answer["text"], settings) if answer else made

    return Plan(settings.most(0), settings.batch * how.samples, make, read, questions.name)


def _answered(prompt: Prompt, answer: str, settings: Synthesize) -> Record:
    if settings.gives == "prompts":
        return replace(prompt, answer=answer)
    return Chat(id=prompt.id, messages=(*prompt.messages, Message("assistant", answer)))
