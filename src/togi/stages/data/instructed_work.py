"""The methods of `synthesize` that ask an instruct model about a given question: `evolve` and `rewrite` derive another
question from it, `cot` answers it step by step."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from togi.core.records import Chat, Message, Prompt, Record, led_by_system
from togi.core.seeds import derive, make_id
from togi.data.filters import asks, first_failure
from togi.data.prompt_files import prompt_of
from togi.data.question_pairs import clean_reply, final_answer
from togi.stages.context import Context
from togi.stages.data.harvest_work import Plan, conversing, need_answers
from togi.stages.data.synthesize import Synthesize
from togi.stages.data.synthesize_rows import Row
from togi.stages.data.synthesize_rules import Rules, unusable
from togi.text.compare import same, same_answer
from togi.text.prompt_file import PromptFile


def instructed(settings: Synthesize, context: Context) -> Plan:
    """Asks about every prompt once, then starts again from the first one as long as candidates are needed."""
    assert settings.input is not None
    sources: Sequence[Prompt] = context.aside(settings.input)
    if settings.check_answer:
        need_answers(sources, context.name)
    rules, most = Rules(settings), settings.most(len(sources))
    template = prompt_of(settings.prompt, settings.method, settings.language)

    def asked(numbers: range) -> list[Prompt]:
        return [_asked(settings, context, template, sources[k % len(sources)], k) for k in numbers]

    def read(number: int, row: Row) -> Record | str:
        source = sources[number % len(sources)]
        reason = unusable(row)
        if reason is not None:
            return reason
        name = _name(context, source, number)
        if settings.method == "cot":
            return _reasoned(settings, rules, source, row["text"], name)
        return _reworded(settings, rules, source, row["text"], name)

    make = conversing(settings, context, most, asked)
    return Plan(most, settings.batch, make, read, lambda number: sources[number % len(sources)].id)


def rehearsed(settings: Synthesize, context: Context) -> Iterator[tuple[str, tuple[Message, ...]]]:
    """Yields what the model will be asked first about each prompt."""
    assert settings.input is not None
    template = prompt_of(settings.prompt, settings.method, settings.language)
    for number, source in enumerate(context.records(settings.input)):
        yield source.id, _asked(settings, context, template, source, number).messages


def _name(context: Context, source: Prompt, number: int) -> str:
    return make_id(context.folder.name, (source.id,), number)


def _asked(settings: Synthesize, context: Context, template: PromptFile, source: Prompt, number: int) -> Prompt:
    """The source with the rendered template in place of its question. `evolve` and `rewrite` see only the question."""
    name = _name(context, source, number)
    turn = derive(context.seed, "way", name) % 1_000_000
    text = template.render({"question": source.text, "answer": source.answer, "number": turn})
    messages = _with_question(source, text) if settings.method == "cot" else (Message("user", text),)
    if settings.system:
        messages = led_by_system(settings.system, [m for m in messages if m.role != "system"])
    return Prompt(id=name, messages=messages)


def _with_question(source: Prompt, text: str) -> tuple[Message, ...]:
    """The turns of a prompt, with its last question replaced."""
    last = max(i for i, message in enumerate(source.messages) if message.role == "user")
    asked = replace(source.messages[last], content=text)
    return (*source.messages[:last], asked, *source.messages[last + 1 :])


def _reworded(settings: Synthesize, rules: Rules, source: Prompt, text: str, name: str) -> Prompt | str:
    """Returns the new question or a drop reason. A rewritten question keeps the reference answer, which still fits; an
    evolved one has none. Small models often answer instead, so a text that asks nothing is dropped if the source asks
    something."""
    question = clean_reply(text, settings.language)
    if same(question, source.text):
        return "unchanged"
    if question and asks(source.text, settings.language) and not asks(question, settings.language):
        return "not_a_question"
    reason = rules.failure(question)
    answer = source.answer if settings.method == "rewrite" else None
    messages = _with_question(source, question)
    made = Prompt(id=name, parents=(source.id,), messages=messages, answer=answer, extra=source.extra)
    return reason or made


def _reasoned(settings: Synthesize, rules: Rules, source: Prompt, text: str, name: str) -> Record | str:
    """Returns a chat with the whole answer (reasoning and final line), a prompt with only the final answer, or a drop
    reason."""
    final = final_answer(text, settings.language)
    if not final:
        return "no_answer"
    reason = first_failure(text, rules.answer)
    if reason is None and settings.check_answer and not same_answer(final, source.answer or ""):
        reason = "wrong_answer"
    if reason is not None:
        return reason
    made = {"id": name, "parents": (source.id,), "extra": source.extra}
    if settings.gives == "prompts":
        return Prompt(**made, messages=source.messages, answer=final)
    messages = source.messages
    if settings.system:
        messages = led_by_system(settings.system, [m for m in messages if m.role != "system"])
    return Chat(**made, messages=(*messages, Message("assistant", text)))
