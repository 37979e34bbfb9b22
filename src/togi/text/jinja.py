"""Rendering of a tokenizer's own chat template, as the model library does it, but the same on every day.

`strftime_now` is left undefined on purpose: templates that know it fall back on a fixed date, so that the ids a model
was trained on are those it is served.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template as JinjaTemplate
from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from togi.core.errors import InputError


class _GenerationBlock(Extension):
    """Accepts {% generation %}...{% endgeneration %}, which marks answers, and renders what is inside."""

    tags = {"generation"}  # noqa: RUF012 - the name and kind are jinja's

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Any) -> str:
        return caller()


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


@lru_cache(maxsize=8)
def _compiled(source: str) -> JinjaTemplate:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(source)


def render_jinja(
    source: str, messages: Sequence[Mapping[str, Any]], specials: Mapping[str, str], generation: bool
) -> str:
    """The text of a conversation under a jinja chat template. Raises InputError with the template's own complaint."""
    try:
        return _compiled(source).render(messages=list(messages), add_generation_prompt=generation, **specials)
    except TemplateError as error:
        roles = ", ".join(str(m["role"]) for m in messages)
        raise InputError(f"the tokenizer's own template refuses a conversation of {roles}: {error}") from error
