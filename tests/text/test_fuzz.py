"""Untrusted chat templates: any content soon gives a text or one of togi's own errors."""

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from togi.core.errors import TogiError
from togi.text.jinja import LONGEST, render_jinja

SECONDS = 5.0  # of processor time, as a busy machine may delay any process; no case takes one second
TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
]
NAMES = ("messages", "message", "bos_token", "tools", "loop", "ns", "add_generation_prompt", "nothing", "x")
ATTRIBUTES = ("role", "content", "items", "__class__", "index", "0", "strip", "_private", "append")
FILTERS = (
    "tojson",
    "trim",
    "length",
    "list",
    "join",
    "upper",
    "int",
    "string",
    "sort",
    "first",
    "sum",
    "tojson(indent=2)",
    "center(10 ** 9)",
    "indent(3)",
)
CALLS = ("range(9)", "range(10 ** 9)", "namespace(n=0)", "raise_exception('no')", "strftime_now('%Y')", "dict(a=1)",
         "cycler()", "''.ljust(10 ** 9)", "lipsum()", "x()", "bos_token()", "self()", "caller()")  # fmt: skip
NUMBERS = ("0", "1", "-1", "2.5", "9 ** 9", "10 ** 10 ** 10", "'a' * 10 ** 10", "[0] * 10 ** 10", "'%999999999d' % 1")
TEXTS = ("", "<|im_start|>", "\n", "{", "{%", "}}", "日本", "{# a", "{% raw %}", "\x00")
STATEMENTS = (
    "set x = {}",
    "set ns.n = {}",
    "include {}",
    "import {} as y",
    "extends {}",
    "break",
    "continue",
    "endif",
    "do {}",
)


def expressions() -> st.SearchStrategy[str]:
    plain = st.sampled_from([*NAMES, *CALLS, *NUMBERS, "'text'", "[]", "{}", "none"])

    def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.builds("{}.{}".format, inner, st.sampled_from(ATTRIBUTES)),
            st.builds("{}[{}]".format, inner, inner),
            st.builds("({} | {})".format, inner, st.sampled_from(FILTERS)),
            st.builds("({} {} {})".format, inner, st.sampled_from(["+", "*", "/", "%", "~", "==", "in", "and"]), inner),
            st.builds("({} if {} else {})".format, inner, inner, inner),
        )

    return st.recursive(plain, larger, max_leaves=6)


def pieces(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    said = expressions()
    return st.one_of(
        st.builds("{{% for message in {} %}}{}{{% endfor %}}".format, st.one_of(st.just("messages"), said), inner),
        st.builds("{{% for message in messages recursive %}}{}{{{{ loop(messages) }}}}{{% endfor %}}".format, inner),
        st.builds("{{% if {} %}}{}{{% else %}}{}{{% endif %}}".format, said, inner, inner),
        st.builds("{{% macro x() %}}{}{{{{ x() }}}}{{% endmacro %}}{{{{ x() }}}}".format, inner),
        st.builds("{{% generation %}}{}{{% endgeneration %}}".format, inner),
        st.lists(inner, min_size=1, max_size=4).map("".join),
    )


def sources() -> st.SearchStrategy[str]:
    said = expressions()
    leaf = st.one_of(
        st.sampled_from(TEXTS),
        st.builds("{{{{ {} }}}}".format, said),
        st.builds(lambda statement, e: "{% " + statement.replace("{}", e) + " %}", st.sampled_from(STATEMENTS), said),
    )
    return st.recursive(leaf, pieces, max_leaves=12)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(source=sources(), generation=st.booleans())
def test_a_template_ends_in_a_text_or_in_an_error_of_ours(source, generation):
    began = time.process_time()
    try:
        text = render_jinja(source, TURNS, {"bos_token": "<s>"}, generation)
        assert isinstance(text, str) and len(text) <= LONGEST
    except TogiError as error:
        assert "the chat template" in str(error)
    assert time.process_time() - began < SECONDS, source
