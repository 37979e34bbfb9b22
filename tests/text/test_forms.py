"""Templates of every known form against the model library: the same ids for prompts and chats, and a loss on
generated tokens alone."""

from typing import Any

import pytest
from chat_forms import FORMS, made, scored

from togi.core.errors import InputError
from togi.core.records import Message
from togi.text.render import check_template, render_chat, render_prompt, render_text, render_turns
from togi.text.template import Template
from togi.text.turns import Unrendered

SYSTEM, ASK, MORE = Message("system", "Be brief."), Message("user", "Capital of France?"), Message("user", "日本語?")
PARIS, TOKYO = Message("assistant", "Paris."), Message("assistant", "Tokyo.")
TALK = (ASK, PARIS, MORE, TOKYO)
each_form = pytest.mark.parametrize("name", FORMS)


def library(name: str, messages: tuple[Message, ...], generation: bool) -> list[int]:
    """The ids that the model library gives a conversation, with the template as it is saved."""
    tokenizer, template = made(name)
    rows = [{**m.extra, "role": m.role, "content": _content(name, m.content)} for m in messages]
    source = template.to_jinja()
    return tokenizer.apply_chat_template(
        rows, chat_template=source, add_generation_prompt=generation, return_dict=False
    )


def closed(name: str, messages: tuple[Message, ...]) -> list[int]:
    """The library's ids of a chat, with the terminator that some templates leave out after the last answer."""
    tokenizer, template = made(name)
    end = template.terminator if FORMS[name].ends_open else ""
    return library(name, messages, False) + tokenizer(end, add_special_tokens=False)["input_ids"]


def _content(name: str, text: str) -> Any:
    return [{"type": "text", "text": text}] if name == "contents as parts" else text


@each_form
def test_the_pieces(name: str) -> None:
    form, (tokenizer, template) = FORMS[name], made(name)
    assert (template.terminator, template.generation) == (form.terminator, form.generation)
    assert Template.from_json(template.to_json()) == template
    check_template(template, tokenizer)
    assert not any(start in "Paris. <think>why</think>" for start in template.turn_starts)


@each_form
def test_prompts_are_those_of_the_library(name: str) -> None:
    tokenizer, template = made(name)
    talks = [(ASK,), (ASK, PARIS, MORE)] + [(SYSTEM, ASK), (SYSTEM, ASK, PARIS, MORE)] * FORMS[name].system
    for messages in talks:
        assert render_prompt(template, tokenizer, messages) == library(name, messages, True)


@each_form
def test_the_answer_is_what_follows_the_served_prompt(name: str) -> None:
    form, (tokenizer, template) = FORMS[name], made(name)
    for before in [(ASK,)] + [(SYSTEM, ASK)] * form.system:
        found = render_chat(template, tokenizer, (*before, PARIS))
        start = found.mask.index(True)
        assert list(found.ids[:start]) == library(name, before, True)
        assert scored(name, found.ids, found.mask) == form.answer
        if not template.prefill or form.answer == "\n</think>\n\nParis.<|im_end|>":
            assert list(found.ids) == closed(name, (*before, PARIS))


@each_form
def test_every_answer_of_a_talk_is_learnt_once_as_it_is_served(name: str) -> None:
    form, (tokenizer, template) = FORMS[name], made(name)
    found = render_turns(template, tokenizer, TALK)
    assert len(found) == form.pieces
    if form.pieces == 1:
        assert list(found[0].ids) == closed(name, TALK)
    served = {tuple(library(name, TALK[:k], True)) for k in (1, 3)}
    for text in found:
        starts = [i for i, m in enumerate(text.mask) if m and not text.mask[i - 1]]
        assert starts and all(text.ids[:start] in served for start in starts)
        served -= {text.ids[:start] for start in starts}
    assert not served
    told = "".join(scored(name, text.ids, text.mask) for text in reversed(found))
    assert told == form.answer + form.answer.replace("Paris", "Tokyo")


@each_form
def test_thoughts_are_learnt_or_refused(name: str) -> None:
    form, (tokenizer, template) = FORMS[name], made(name)
    inside = Message("assistant", "<think>\nwhy\n</think>\n\nParis.")
    if form.thought is None:
        with pytest.raises(Unrendered, match="leaves out the thought 'why'"):
            render_turns(template, tokenizer, (ASK, inside))
        return
    beside = Message("assistant", "Paris.", extra={"reasoning_content": "why"})
    for message, said in ((inside, "think>"), (beside, "reasoning")):
        try:
            found = render_turns(template, tokenizer, (ASK, message))[0]
        except Unrendered:
            assert said == "reasoning" and "reasoning_content" not in form.source and "thinking" not in form.source
            continue
        assert form.thought in scored(name, found.ids, found.mask) or said == "think>"
        assert "why" in scored(name, found.ids, found.mask)


@each_form
def test_a_whole_talk_without_loss_is_the_librarys(name: str) -> None:
    tokenizer, template = made(name)
    assert render_text(template, tokenizer, TALK) == library(name, TALK, False)


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if not form.system])
def test_a_system_turn_that_is_refused(name: str) -> None:
    tokenizer, template = made(name)
    with pytest.raises(
        InputError, match="the template does not accept a system turn: move its text into the first user turn"
    ):
        render_prompt(template, tokenizer, (SYSTEM, ASK))
