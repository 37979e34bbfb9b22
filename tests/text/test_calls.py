"""Tool calls in chat templates: the form of their arguments, and the end of the answer that makes a call."""

from typing import Any

import pytest
from chat_forms import FORMS, made, scored, with_source

from togi.core.records import Message
from togi.text.render import render_chat, render_prompt
from togi.text.template import own_template

ASK = Message("user", "Weather?")
CALL = Message(
    "assistant",
    "",
    extra={"tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Kyōto"}}}]},
)
RESULT, SAID = Message("tool", "18 C"), Message("assistant", "It is 18 C.")
HEAD = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
TAIL = (
    "{{ m.content }}{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALLS = "{% for call in m.tool_calls or [] %}{{ '<call>' ~ call.function.name ~ (ARGUMENTS) ~ '</call>' }}{% endfor %}"
IM = ("<|im_start|>", "<|im_end|>")


def learnt(source: str, *messages: Message, tokens: tuple[str, ...] = IM) -> str:
    tokenizer = with_source(source, tokens)
    found = render_chat(own_template(tokenizer), tokenizer, messages)
    ids = [i for i, scored in zip(found.ids, found.mask, strict=True) if scored]
    return tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("form", "arguments"),
    [
        ("an object is asked for", "call.function.arguments | tojson"),
        ("an object's keys", "'{' ~ '\"city\": \"' ~ call.function.arguments['city'] ~ '\"}'"),
        ("text is written as it is", "call.function.arguments"),
        ("text is added to text", "'' + call.function.arguments"),
    ],
)
def test_arguments_are_json_in_every_form(form: str, arguments: str) -> None:
    source = HEAD + CALLS.replace("ARGUMENTS", arguments) + TAIL
    assert learnt(source, ASK, CALL) == '<call>weather{"city": "Kyōto"}</call><|im_end|>'


def test_a_template_that_fails_on_both_forms_says_the_first_failure() -> None:
    source = HEAD + CALLS.replace("ARGUMENTS", "raise_exception('no calls')") + TAIL
    with pytest.raises(Exception, match="no calls"):
        learnt(source, ASK, CALL)


def test_the_header_of_the_next_turn_is_no_part_of_a_call() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.tool_calls %}<act>"
        "{{ m.tool_calls[0].function | tojson }}</act><|end|><|start|><|bot|>{% else %}"
        "<|start|><|bot|><say>{{ m.content }}</say><|end|>{% endif %}{% else %}<|start|><|{{ m.role }}|>{{ m.content }}"
        "<|end|>{% if m.role == 'user' and not loop.last and messages[loop.index].tool_calls %}<|start|><|bot|>"
        "{% endif %}{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|><|bot|>{% endif %}"
    )
    marks = ("<|start|>", "<|end|>", "<|bot|>", "<|user|>", "<say>", "</say>")
    found = learnt(source, ASK, CALL, tokens=marks)
    assert found.startswith("<act>") and found.endswith("</act>")
    assert learnt(source, ASK, SAID, tokens=marks) == "<say>It is 18 C.</say>"


def test_a_call_that_a_template_leaves_open_ends_as_it_does_before_its_result() -> None:
    name = "the last answer stays open"
    tokenizer, template = made(name)
    found = render_chat(template, tokenizer, (ASK, CALL))
    assert scored(name, found.ids, found.mask).endswith("</call><|result|>")
    whole = render_chat(template, tokenizer, (ASK, SAID))
    assert scored(name, whole.ids, whole.mask) == "It is 18 C.<|bot_end|>" and FORMS[name].ends_open


def test_a_prompt_that_begins_a_thought_can_be_sampled_from_though_no_plain_answer_fits_it() -> None:
    source: Any = (
        HEAD + "{% if m.role == 'assistant' %}{% if m.reasoning_content %}{{ '<think>\\n' + m.reasoning_content + "
        "'\\n</think>\\n' }}{% else %}<think></think>{% endif %}{% endif %}"
        + TAIL.replace("assistant\n", "assistant\n<think>\n")
    )
    tokenizer = with_source(source, IM)
    template = own_template(tokenizer)
    assert tokenizer.decode(render_prompt(template, tokenizer, (ASK,))).endswith("<think>\n")
    thinking = Message("assistant", "18 C.", extra={"reasoning_content": "look"})
    assert learnt(source, ASK, thinking) == "look\n</think>\n18 C.<|im_end|>"
