"""Untrusted templates: with bounds, a fixed date, the model library's own context, and tools if they have some."""

import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from chat_forms import FORMS, IM_TOKENS, made, scored, with_source

from togi.core.errors import InputError, RecipeError
from togi.core.records import Message
from togi.text.jinja import STEPS, render_jinja, with_date
from togi.text.render import render_chat, render_prompt, render_turns
from togi.text.template import TEMPLATES, Template, own_template
from togi.text.turns import Unrendered

ASK = [{"role": "user", "content": "Hi"}]
USER, CALLED = Message("user", "Weather in Paris?"), {"function": {"name": "weather", "arguments": {"city": "Paris"}}}
OFFER = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
CALL = Message("assistant", "", extra={"tool_calls": [CALLED]})


def rendered(source: str, **settings: Any) -> str:
    return render_jinja(source, ASK, {"bos_token": "<s>"}, False, **settings)


# --- bounds -----------------------------------------------------------------------------------------------------------

HANGS = {
    "loops": "{% for a in range(1000) %}{% for b in range(1000) %}{% for c in range(1000) %}{% endfor %}{% endfor %}"
    "{% endfor %}",
    "a loop in itself": "{% for a in range(1000) recursive %}{% if loop.depth < 4 %}{{ loop(range(1000)) }}{% endif %}"
    "{% endfor %}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
}


@pytest.mark.parametrize("name", HANGS)
def test_what_never_ends_is_an_error_within_seconds(name: str) -> None:
    start = time.process_time()
    with pytest.raises(InputError, match=f"more than {STEPS} steps"):
        rendered(HANGS[name])
    assert time.process_time() - start < 10


def test_a_thread_has_steps_of_its_own() -> None:
    found: list[str] = []
    worker = threading.Thread(target=lambda: found.append(rendered("{% for i in range(9) %}{{ i }}{% endfor %}")))
    worker.start()
    worker.join()
    assert found == ["012345678"]


def test_what_writes_without_end_is_an_error() -> None:
    with pytest.raises(InputError, match="writes more than 16777216 characters"):
        rendered("{% set a = 'a' * 100000 %}{% for i in range(1000) %}{{ a }}{% endfor %}")


FAULTS = {
    "a type": ("{{ 'a' + 1 }}", "TypeError"),
    "a division": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "a number too large": ("{{ 2.0 ** 10000 }}", "OverflowError"),
    "a range too large": ("{% for i in range(10 ** 9) %}{% endfor %}", "at once"),
    "a recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "a file": ("{% include '/etc/hosts' %}", "no loader"),
    "a class": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "a name with an underscore": ("{% set ns = namespace(_a=1) %}", "underscore"),
    "an undefined name": ("{{ nothing.at_all }}", "undefined"),
    "a broken block": ("{% for m in %}", "[Ee]xpected"),
    "its own complaint": ("{{ raise_exception('only cats') }}", "refuses a conversation of user: only cats"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_whatever_goes_wrong_inside_is_an_error_that_says_what(name: str) -> None:
    source, said = FAULTS[name]
    with pytest.raises(
        InputError, match=f"the chat template (fails on|refuses) a conversation of user: .*{said}|{said}"
    ):
        rendered(source)


@pytest.mark.parametrize("size", ["'a' * 10 ** 10", "'a'.center(10 ** 10)", "'%10000000000d' % 1"])
def test_memory_is_bounded_when_a_template_is_tried_first(size: str) -> None:
    with pytest.raises(InputError, match=r"MemoryError|more than 16777216"):
        own_template(with_source("{{ " + size + " }}"))


def test_a_template_that_no_loop_can_count_is_stopped_by_the_clock() -> None:
    source = (
        "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}"
    )
    with pytest.raises(InputError, match=r"takes more than 2 s|ended the process"):
        own_template(with_source(source))


# --- the library's context --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages | tojson }}{{ {'b': '日<', 'a': [1, none]} | tojson(indent=2, sort_keys=true) }}",
        "{{ {'a': 1} | tojson(separators=(',', ':'), ensure_ascii=true) }}{{ dict(a=1) }}{{ dict.fromkeys('ab', 1) }}",
        "{{ tools is none }}{{ documents is none }}{{ enable_thinking is defined }}{{ add_generation_prompt }}",
        "{{ messages[0] | length }}{{ messages[0].thinking }}{{ messages[0].reasoning_content }}{{ messages[0].gone }}",
        "{% for m in messages %}{{ loop.index }}{{ loop.length }}{{ loop.last }}{% if loop.first %}{% continue %}"
        "{% endif %}{% break %}{% endfor %}",
        "  {% if true %}\n  x\n  {% endif %}\n{%- generation -%} y {%- endgeneration %}\n",
        "{% for m in missing %}{{ m }}{% else %}none{% endfor %}{{ bos_token }}{{ eos_token }}{{ unk_token }}",
    ],
)
def test_the_context_is_the_librarys(source: str) -> None:
    rows = [{"role": "user", "content": "Hi", "thinking": "why", "gone": None}, {"role": "user", "content": "日<"}]
    tokenizer = with_source(source)
    served = tokenizer.apply_chat_template(rows, tokenize=False)
    assert render_jinja(source, rows, tokenizer.special_tokens_map, False) == served


def test_no_torch_for_a_template() -> None:
    """The process that tries a template first must start fast."""
    code = "import sys, togi.text.probe; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert run_python(code) == "False False"


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


# --- the date ---------------------------------------------------------------------------------------------------------


def test_the_date_is_fixed_and_saved() -> None:
    tokenizer, template = made("a date, asked for without asking")
    assert template.date == "2024-07-26"
    assert template.prompt_text([Message("user", "Hi")]).startswith("<s>[SYSTEM]Today is 2024-07-26.[/SYSTEM]")
    older = {k: v for k, v in template.to_json().items() if k not in ("date", "prefill", "closing", "parts")}
    assert Template.from_json(older).prompt_text([Message("user", "Hi")]) == template.prompt_text(
        [Message("user", "Hi")]
    )
    tokenizer = with_source(template.to_jinja(), like=tokenizer)
    again = own_template(tokenizer)
    assert again.to_jinja() == template.to_jinja()  # no second macro


@pytest.mark.parametrize(
    "source", ["\n\n a{{ strftime_now('%d %b %Y %H') }}", "  {% if strftime_now is defined %}b{% endif %}"]
)
def test_a_date_of_its_own_changes_nothing_else(source: str) -> None:
    tokenizer = with_source(with_date(source, "2001-02-03"))
    assert tokenizer.apply_chat_template(ASK, tokenize=False) == rendered(source, date="2001-02-03")


# --- several templates ------------------------------------------------------------------------------------------------


def test_of_several_templates_the_default_is_taken_and_that_for_tools_where_there_are_tools() -> None:
    plain, tools = FORMS["chatml"].source, FORMS["a default system turn and tools"].source + "\n"
    tokenizer = with_source({"rag": "{{ 1 / 0 }}", "tool_use": tools, "default": "\n" + plain}, IM_TOKENS)
    template = own_template(tokenizer)
    rows = [{"role": "user", "content": USER.content}]
    for offer in (None, OFFER):
        asked = Message("user", USER.content, extra={"tools": offer} if offer else {})
        served = tokenizer.apply_chat_template(rows, tools=offer, tokenize=False)
        saved = tokenizer.apply_chat_template(rows, tools=offer, tokenize=False, chat_template=template.to_jinja())
        assert template.chat_text([asked]) == served == saved


def test_several_templates_without_a_default() -> None:
    with pytest.raises(RecipeError, match="none of them called default: rag, sql"):
        own_template(with_source({"rag": "a", "sql": "b"}))


# --- tools ------------------------------------------------------------------------------------------------------------


def test_a_call_of_tools_is_learnt_as_it_is_generated() -> None:
    name = "a default system turn and tools"
    tokenizer, template = made(name)
    asked = Message("user", USER.content, extra={"tools": OFFER})
    said = Message("tool", "Sunny.", extra={"tool_call_id": "1", "name": "weather"})
    talk = (asked, CALL, said, Message("assistant", "It is sunny."))
    found = render_chat(template, tokenizer, talk)
    rows = [{**{k: v for k, v in m.extra.items() if k != "tools"}, "role": m.role, "content": m.content} for m in talk]
    assert list(found.ids) == tokenizer.apply_chat_template(rows, tools=OFFER, return_dict=False)
    called = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>'
    assert scored(name, found.ids, found.mask) == called + "It is sunny.<|im_end|>"


def test_a_call_may_end_in_its_own_way() -> None:
    name = "headers, a date if there is one, tools"
    tokenizer, template = made(name)
    found = render_turns(template, tokenizer, (USER, CALL))[0]
    assert scored(name, found.ids, found.mask).endswith('{"city": "Paris"}}<|eom_id|>')


def test_what_a_template_leaves_out_of_a_turn_is_refused() -> None:
    tokenizer, template = made("chatml")
    offered = Message("user", "Hi", extra={"tools": OFFER})
    for talk, said in (((USER, CALL), "tool_calls"), ((offered,), "tools")):
        with pytest.raises(Unrendered, match=f"the chat template does not render {said}"):
            render_chat(template, tokenizer, talk)
        with pytest.raises(Unrendered, match=f"has no place for {said}"):
            render_chat(TEMPLATES["chatml"], tokenizer, talk)
    with pytest.raises(Unrendered, match="does not render tools"):
        render_prompt(template, tokenizer, (offered,))
    named = Message("user", "Hi", extra={"name": "Ann"})  # a name is not trained on: it may be left out
    assert render_prompt(template, tokenizer, (named,)) == render_prompt(template, tokenizer, (Message("user", "Hi"),))


def test_an_error_for_one_answer_names_the_way_out() -> None:
    _, template = made("thoughts leave the history")
    talk = [Message("user", "Hi"), Message("assistant", "A."), Message("user", "So?"), Message("assistant", "B.")]
    with pytest.raises(InputError, match="give each answer a separate row"):
        template.segments(talk)
    assert [len(text) for text in template.texts(talk)] == [3, 3]
