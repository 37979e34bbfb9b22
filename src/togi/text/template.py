"""Chat templates as data: which strings stand around each turn, and how an answer ends.

A `Template` is a frozen value. Most are tables of strings; the tokenizer's own template is kept as its jinja source.
Sources: ChatML as the first of the cards in docs/methods.md writes it, llm-jp as in its published tokenizer, sarashina
as in its instruct models, Llama 3 as published, with any role allowed (that is how a `documents` role works).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from typing import Any, NamedTuple

from togi.core.errors import InputError, RecipeError
from togi.core.protocols import Tokenizer
from togi.core.records import Message
from togi.text.jinja import render_jinja

TOKENIZER_BOS = "{bos}"  # stands for: what the tokenizer itself puts in front of a text, which may be nothing
OWN = "tokenizer"  # the name under which a recipe asks for the tokenizer's own template


class Segment(NamedTuple):
    """A stretch of rendered text. `answer`: assistant content with its terminator; `train`: it carries loss."""

    text: str
    answer: bool = False
    train: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """How a conversation becomes text.

    `roles` maps a role to the strings before and after its content; `free_role` holds the same for any other role, with
    {role} where its name goes. The assistant's entry starts with `generation` and goes on with `terminator`.
    `bos` is literal text, or TOKENIZER_BOS until `bind` has replaced it. `fixed_system` replaces whatever a system turn
    says; `default_system` is added where a conversation has none; `strip` trims the contents. `turn_starts` are strings
    that no answer may contain. With `jinja` set, it alone makes the text, from `specials` (bos_token and the like).
    """

    name: str
    terminator: str
    generation: str
    bos: str = ""
    roles: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    free_role: tuple[str, str] | None = None
    turn_starts: tuple[str, ...] = ()
    default_system: str | None = None
    fixed_system: str | None = None
    strip: bool = False
    jinja: str | None = None
    specials: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.terminator.strip():
            raise RecipeError(
                f"template {self.name!r} has no terminator, so that no answer would ever end: name the string that "
                f"closes an assistant turn, or choose one of {', '.join(TEMPLATE_NAMES)}"
            )
        if self.jinja is None:
            prefix, suffix = self.roles.get("assistant", ("", ""))
            if prefix != self.generation or not suffix.startswith(self.terminator):
                raise RecipeError(
                    f"template {self.name!r}: the assistant's turn must begin with the generation prompt "
                    f"{self.generation!r} and be closed by the terminator {self.terminator!r}; "
                    f"found {prefix!r} and {suffix!r}"
                )

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The conversation as text, ending with the generation prompt. An unbound BOS is left out."""
        return "".join(s.text for s in self.segments(messages, generation=True))

    def chat_text(self, messages: Sequence[Message]) -> str:
        """The whole conversation as text, without a generation prompt. An unbound BOS is left out."""
        return "".join(s.text for s in self.segments(messages))

    def segments(self, messages: Sequence[Message], generation: bool = False) -> list[Segment]:
        """The text cut at the borders of the assistant's contents, joined to nothing else: answers stand alone.

        Raises InputError on an empty conversation, on a role the template does not know, and where the tokenizer's own
        template does not keep what was said before when a turn is added.
        """
        if not messages:
            raise InputError(f"template {self.name!r}: a conversation without messages cannot be rendered")
        parts = self._own_segments(messages, generation) if self.jinja else self._table_segments(messages, generation)
        return _join_frames(parts)

    def bind(self, tokenizer: Tokenizer) -> "Template":
        """The same template with TOKENIZER_BOS replaced by what `tokenizer` puts in front of a text."""
        return replace(self, bos=leading_text(tokenizer)) if self.bos == TOKENIZER_BOS else self

    def to_json(self) -> dict[str, Any]:
        """A JSON-like value from which `from_json` makes the same template."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Template":
        """The template that `to_json` described. Raises RecipeError on keys that no template has."""
        unknown = [key for key in value if key not in cls.__slots__]
        if unknown:
            raise RecipeError(f"template: unknown key {unknown[0]!r}; allowed are {', '.join(cls.__slots__)}")
        given = dict(value)
        given["roles"] = {role: (a, b) for role, (a, b) in value.get("roles", {}).items()}
        given["turn_starts"] = tuple(value.get("turn_starts", ()))
        free = value.get("free_role")
        given["free_role"] = None if free is None else (free[0], free[1])
        return cls(**given)

    def to_jinja(self) -> str:
        """A jinja chat template that renders the same text, for the tokenizer_config of a saved model.

        Raises ValueError while the BOS is not bound to a tokenizer, since the two would differ silently.
        """
        if self.jinja is not None:
            return self.jinja
        if self.bos == TOKENIZER_BOS:
            raise ValueError(f"template {self.name!r}: call bind(tokenizer) before to_jinja()")
        return _jinja_source(self)

    def _table_segments(self, messages: Sequence[Message], generation: bool) -> list[Segment]:
        parts = [Segment("" if self.bos == TOKENIZER_BOS else self.bos)]
        if self.default_system is not None and messages[0].role != "system":
            messages = (Message("system", self.default_system), *messages)
        for message in messages:
            prefix, suffix = self._around(message.role)
            fixed = self.fixed_system if message.role == "system" else None
            content = message.content if fixed is None else fixed
            content = content.strip() if self.strip else content
            if message.role == "assistant":
                answer = Segment(content + self.terminator, True, message.train)
                parts += [Segment(prefix), answer, Segment(suffix[len(self.terminator) :])]
            else:
                parts.append(Segment(prefix + content + suffix))
        return [*parts, Segment(self.generation)] if generation else parts

    def _around(self, role: str) -> tuple[str, str]:
        if role in self.roles:
            return self.roles[role]
        if self.free_role is not None:
            prefix, suffix = self.free_role
            return prefix.replace("{role}", role), suffix
        raise InputError(
            f"template {self.name!r} has no role {role!r}; it knows {', '.join(self.roles)}: rename the role, "
            "or choose a template with free roles (llama3, llama3-text)"
        )

    def _own_segments(self, messages: Sequence[Message], generation: bool) -> list[Segment]:
        whole = self._own_text(messages, generation)
        parts, done = [], 0
        for k, message in enumerate(messages):
            if message.role != "assistant":
                continue
            head = (
                self._own_text(messages[:k], True) if k else whole[: whole.find(self.generation) + len(self.generation)]
            )
            turn = self._own_text(messages[: k + 1], False)
            end = turn.rfind(self.terminator) + len(self.terminator)
            if not (
                whole.startswith(head)
                and whole.startswith(turn[:end])
                and len(head) < end
                and head == turn[: len(head)]
            ):
                raise InputError(
                    f"the tokenizer's own template writes message {k + 1} (assistant) differently in a longer "
                    "conversation than where it is generated, so that it would be trained on text it never sees: "
                    f"use one of {', '.join(TEMPLATE_NAMES)}, or keep only the last answer"
                )
            parts += [Segment(whole[done : len(head)]), Segment(whole[len(head) : end], True, message.train)]
            done = end
        return [*parts, Segment(whole[done:])]

    def _own_text(self, messages: Sequence[Message], generation: bool) -> str:
        assert self.jinja is not None
        rows = [{"role": m.role, "content": m.content} for m in messages]
        return render_jinja(self.jinja, rows, self.specials, generation)


def _join_frames(parts: Sequence[Segment]) -> list[Segment]:
    """Neighbouring stretches that are no answers become one; empty ones go."""
    joined: list[Segment] = []
    for part in parts:
        if not part.text:
            continue
        if joined and not part.answer and not joined[-1].answer:
            joined[-1] = Segment(joined[-1].text + part.text)
        else:
            joined.append(part)
    return joined


def leading_text(tokenizer: Tokenizer) -> str:
    """What the tokenizer puts in front of a text of its own accord (usually BOS), as text; "" if nothing."""
    bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    dressed: list[int] = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(dressed) - len(bare) + 1):
        if dressed[start : start + len(bare)] == bare:
            return tokenizer.decode(dressed[:start], skip_special_tokens=False) if start else ""
    raise InputError("the tokenizer writes a text differently when special tokens are added; its BOS cannot be found")


def _jinja_source(t: Template) -> str:
    """The table of strings written as jinja; literals are JSON strings, which jinja reads alike."""
    content = "(message['content'] | trim)" if t.strip else "message['content']"
    parts = [_say(_quoted(t.bos))]
    if t.default_system is not None:
        system = t.segments([Message("system", t.default_system)])[0].text.removeprefix(t.bos)
        parts += [_do("if messages[0]['role'] != 'system'"), _say(_quoted(system)), _do("endif")]
    parts.append(_do("for message in messages"))
    word = "if"
    for role, (prefix, suffix) in t.roles.items():
        fixed = t.fixed_system if role == "system" else None
        said = content if fixed is None else _quoted(fixed)
        parts += [_do(f"{word} message['role'] == {_quoted(role)}"), _say(_quoted(prefix), said, _quoted(suffix))]
        word = "elif"
    parts.append(_do("else"))
    if t.free_role is not None:
        before, after = t.free_role[0].split("{role}")
        parts.append(_say(_quoted(before), "message['role']", _quoted(after), content, _quoted(t.free_role[1])))
    else:
        parts.append(_say("raise_exception('unknown role ' + message['role'])"))
    parts += [_do("endif"), _do("endfor")]
    return "".join([*parts, _do("if add_generation_prompt"), _say(_quoted(t.generation)), _do("endif")])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _say(*expressions: str) -> str:
    return "{{- " + " + ".join(expressions) + " }}"


def _do(statement: str) -> str:
    return "{%- " + statement + " %}"


def _chatml(name: str, bos: str) -> Template:
    turn = {r: (f"<|im_start|>{r}\n", "<|im_end|>\n") for r in ("system", "user", "assistant", "tool")}
    return Template(
        name=name,
        bos=bos,
        roles=turn,
        generation="<|im_start|>assistant\n",
        terminator="<|im_end|>",
        turn_starts=("<|im_start|>",),
    )


def _llama3(name: str, bos: str) -> Template:
    head = "<|start_header_id|>{role}<|end_header_id|>\n\n"
    answer = head.replace("{role}", "assistant")
    return Template(
        name=name,
        bos=bos,
        roles={"assistant": (answer, "<|eot_id|>")},
        free_role=(head, "<|eot_id|>"),
        generation=answer,
        terminator="<|eot_id|>",
        turn_starts=("<|start_header_id|>", "<|end_header_id|>"),
        strip=True,
    )


def _table() -> dict[str, Template]:
    llm_jp = Template(
        name="llm-jp",
        bos="<s>",
        roles={"system": ("", ""), "user": ("\n\n### 指示:\n", ""), "assistant": ("\n\n### 応答:\n", "</s>")},
        generation="\n\n### 応答:\n",
        terminator="</s>",
        turn_starts=("### 指示:", "### 応答:"),
        fixed_system="以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。",
    )
    sarashina = Template(
        name="sarashina",
        roles={role: (f"<|{role}|>", "</s>") for role in ("system", "user", "assistant")},
        generation="<|assistant|>",
        terminator="</s>",
        turn_starts=("<|system|>", "<|user|>", "<|assistant|>"),
    )
    templates = (
        _chatml("chatml", TOKENIZER_BOS),
        _chatml("chatml-nobos", ""),
        llm_jp,
        sarashina,
        _llama3("llama3", "<|begin_of_text|>"),
        _llama3("llama3-text", TOKENIZER_BOS),
    )
    return {t.name: t for t in templates}


TEMPLATE_NAMES = ("chatml", "chatml-nobos", "llm-jp", "sarashina", "llama3", "llama3-text", OWN)
TEMPLATES: Mapping[str, Template] = _table()


def get_template(name: str, tokenizer: Any = None) -> Template:
    """The template of that name, bound to `tokenizer` where one is given; "tokenizer" is the tokenizer's own.

    Raises RecipeError for an unknown name, and for "tokenizer" where there is no template of its own.
    """
    if name == OWN:
        return own_template(tokenizer)
    if name not in TEMPLATES:
        close = get_close_matches(name, TEMPLATE_NAMES, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise RecipeError(f"no template is called {name!r}; there are {', '.join(TEMPLATE_NAMES)}{hint}")
    return TEMPLATES[name] if tokenizer is None else TEMPLATES[name].bind(tokenizer)


def own_template(tokenizer: Any) -> Template:
    """The jinja template that a tokenizer brings, with the terminator and turn starts read off a probe conversation.

    Raises RecipeError where the tokenizer has none, or where it does not close the assistant's turn.
    """
    if tokenizer is None or not isinstance(tokenizer.chat_template, str) or not tokenizer.chat_template.strip():
        others = ", ".join(n for n in TEMPLATE_NAMES if n != OWN)
        raise RecipeError(f"the tokenizer has no chat template of its own; choose one of {others}")
    source: str = tokenizer.chat_template
    tokens: dict[str, str] = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
    known = [str(token) for token in tokenizer.all_special_tokens]
    turns = [{"role": r, "content": c} for r, c in (("user", "qqq"), ("assistant", "aaa"), ("user", "rrr"))]
    closed, asked = (render_jinja(source, turns[:n], tokens, False) for n in (2, 3))
    tail = closed[closed.rfind("aaa") + 3 :]
    between = asked[asked.rfind("aaa") + 3 : asked.rfind("rrr")]
    opening = render_jinja(source, turns[:1], tokens, True)[len(render_jinja(source, turns[:1], tokens, False)) :]
    starts = (_marker(between.removeprefix(tail), known), _marker(opening, known))
    return Template(
        name=OWN,
        jinja=source,
        specials=tokens,
        terminator=_marker(tail, known),
        generation=opening,
        turn_starts=tuple(dict.fromkeys(s for s in starts if s)),
    )


def _marker(text: str, known: Sequence[str]) -> str:
    """The special token that `text` begins with, or else all of it, trimmed."""
    text = text.strip()
    return max((k for k in known if text.startswith(k)), key=len, default=text)
