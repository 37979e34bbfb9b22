"""Renders Jinja chat templates like the model library, but independent of the date, and within limits.

The context equals that of `apply_chat_template`: the same filters and globals; `tools` and `documents` always defined;
no null keys; thoughts under every name that templates use. Two things differ. `strftime_now` returns a fixed date, so
that training and serving see the same ids. And a template with too many loops, calls or characters is an error.
"""

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import StrictUndefined, TemplateError, Undefined
from jinja2 import Template as JinjaTemplate
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Filter, For, Node
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from togi.core.errors import InputError
from togi.core.strangers import run_stranger

DATE = "2024-07-26"
"""The date that `strftime_now` returns, which is the default date of Llama 3's templates."""

STEPS = 500_000
"""Maximum loop turns and calls per rendering: hundreds of times more than a conversation needs, and under a second."""

LONGEST = 2**24
"""Maximum characters per rendering, and of a template's source."""

THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Keys of a turn that may contain its thoughts; the first is the one that most templates read."""


REFUSED = "; change the conversation, or choose another template for the model (template: chatml)"
"""Advice on a conversation that a model's own template refuses."""


class _Left(threading.local):
    """The remaining steps of this thread's rendering."""

    steps = 0


_LEFT = _Left()


CALL = 10  # steps per call, in proportion to its time


def _step(cost: int = 1) -> None:
    _LEFT.steps -= cost
    if _LEFT.steps < 0:
        raise TemplateError(f"it takes more than {STEPS} steps")


def _stepped(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _step()
        yield item


class _Environment(ImmutableSandboxedEnvironment):
    """The library's sandbox, with step counting and results of at most LONGEST characters."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            _check_size(_size(left) * _size(right) if isinstance(left, int) != isinstance(right, int) else 0)
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_size(left.bit_length() * abs(right))
        if operator == "%" and isinstance(left, str):
            _check_size(sum(int(width) for width in re.findall(r"\d{1,18}", left)))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _step(CALL)
        _check_size(max((value for value in (*args, *kwargs.values()) if isinstance(value, int)), default=0))
        if isinstance(__obj, LoopContext) and args:
            args = (_stepped(args[0]), *args[1:])
        return super().call(__context, __obj, *args, **kwargs)

    def concat(self, pieces: Iterable[str]) -> str:  # type: ignore[override] - a class variable of jinja's
        found = list(pieces)
        if sum(map(len, found)) > LONGEST:
            raise TemplateError(f"it writes more than {LONGEST} characters")
        return "".join(found)


def _size(value: Any) -> int:
    """The value of a number, or the length of a sequence."""
    return value if isinstance(value, int) else len(value) if hasattr(value, "__len__") else 0


def _sized(call: Callable[..., str]) -> Callable[..., str]:
    """A filter whose width is limited to LONGEST."""

    def held(text: str, *given: Any, **named: Any) -> str:
        width = given[0] if given else named.get("width")
        _check_size(width if isinstance(width, int) else 0)
        return call(text, *given, **named)

    return held


def _check_size(size: int) -> None:
    if size > LONGEST:
        raise TemplateError(f"it asks for more than {LONGEST} characters at once")


class _GenerationBlock(Extension):
    """Accepts {% generation %}...{% endgeneration %}, which marks answers, and renders its contents."""

    tags = {"generation"}  # noqa: RUF012 - the name and kind are jinja's

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Any) -> str:
        return caller()


class _Dict:
    """The template global `dict`, without access to the class behind it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(Namespace):
    """The template global `namespace`; rejects names with a leading underscore, as the library does."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a name in a namespace must not begin with an underscore, found {name!r}")


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=16)
def _compiled(source: str, strict: bool = False) -> JinjaTemplate:
    """Compiles a template. With `strict`, an undefined name is an error instead of empty text."""
    if len(source) > LONGEST:
        raise TemplateError(f"it is longer than {LONGEST} characters")
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, loopcontrols],
        undefined=StrictUndefined if strict else Undefined,
    )
    environment.filters |= {"tojson": _tojson, "togi_steps": _stepped}
    environment.filters |= {name: _sized(environment.filters[name]) for name in ("center", "indent")}
    environment.globals |= {"raise_exception": _refuse, "dict": _Dict(), "namespace": _Namespace}
    tree = environment.parse(source)
    for loop in tree.find_all(For):
        loop.iter = Filter(loop.iter, "togi_steps", [], [], None, None, lineno=loop.lineno, environment=environment)
    return environment.from_string(tree)


def render_jinja(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    specials: Mapping[str, str],
    generation: bool,
    *,
    tools: Any = None,
    date: str = DATE,
) -> str:
    """Renders a conversation with a Jinja chat template, like `apply_chat_template`. `strftime_now` returns `date`
    (YYYY-MM-DD).

    Raises InputError with the template's own message, or with the error inside it.
    """
    told = f"a conversation of {_roles(messages)}"
    context = {"messages": [_as_templates_read(message) for message in messages], "tools": tools, **specials}
    found = run_stranger(
        lambda: _attempt(source, context, generation, date), InputError, f"the chat template fails on {told}"
    )
    if isinstance(found, TemplateError):
        raise InputError(f"the chat template refuses {told}: {found.message}") from found
    return found


def _attempt(source: str, context: Mapping[str, Any], generation: bool, date: str) -> str | TemplateError:
    """The rendered text, or the error of the template or of Jinja."""
    _LEFT.steps = STEPS
    today = datetime.fromisoformat(date).strftime
    try:
        return _compiled(source).render(context, documents=None, add_generation_prompt=generation, strftime_now=today)
    except TemplateError as error:
        return error


def render_values(source: str, values: Mapping[str, Any]) -> str | TemplateError:
    """Renders any Jinja text, within the same limits; a name that is not in `values` is an error. Returns the error of
    the template or of Jinja instead of the text; raises any other exception of the template's code."""
    _LEFT.steps = STEPS
    try:
        return _compiled(source, True).render(values)
    except TemplateError as error:
        return error


def _roles(messages: Sequence[Mapping[str, Any]]) -> str:
    roles = [str(message["role"]) for message in messages]
    return ", ".join(roles if len(roles) <= 8 else [*roles[:8], "…"])


def _as_templates_read(message: Mapping[str, Any]) -> dict[str, Any]:
    """A turn without its null keys, with its thoughts under the names that templates read."""
    kept = {key: value for key, value in message.items() if value is not None}
    thought = next((kept[key] for key in THOUGHTS if key in kept), None)
    return kept if thought is None else {"thinking": thought, **kept, "reasoning_content": thought}


# --- a fixed date in a source that other programs render --------------------------------------------------------------

_DATED = "{%- macro strftime_now(format) -%}"
_DIRECTIVES = "aAwdbBmyYHIpMSfjUWcxXGuVhDFTReCnt"


def with_date(source: str, date: str) -> str:
    """Adds a `strftime_now` to `source` that returns `date`, in every program that renders it."""
    if not asks_for_date(source) or source.startswith(_DATED):
        return source
    day = datetime.fromisoformat(date)
    told = {f"%{flag}{letter}": day.strftime(f"%{flag}{letter}") for flag in ("", "-") for letter in _DIRECTIVES}
    replaced = "".join(f" | replace({json.dumps(k)}, {json.dumps(v)})" for k, v in told.items() if k != v)
    return f"{_DATED}{{{{ format{replaced} }}}}{{%- endmacro %}}\n{source}"  # Jinja drops the line end after a block


def asks_for_date(source: str) -> bool:
    """Whether a template calls `strftime_now`."""
    return re.search(r"\bstrftime_now\b", source) is not None
