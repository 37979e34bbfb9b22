"""Chat templates as data: the strings around each turn, and the terminator, the string that ends an assistant turn.

A `Template` is a frozen value. Most are tables of strings; a tokenizer's own template is kept as Jinja source. Sources:
ChatML is that of the first model card of docs/methods.md, llm-jp that of its published tokenizer. llm-jp-system is how
its makers write training data: a chat keeps its own system turn. sarashina is that of its instruct models, Llama 3 as
published, with any role allowed (for `documents`). Vikhr-Nemo is Llama 3 on Mistral's tokenizer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from togi.core.errors import InputError, RecipeError, TogiError
from togi.core.protocols import Tokenizer
from togi.core.records import CALLS, TOOLS, Message
from togi.text.calls import as_text, printed
from togi.text.jinja import DATE, REFUSED, THOUGHTS, asks_for_date, render_jinja, with_date
from togi.text.probe import find_pieces
from togi.text.turns import Ends, Segment, Unrendered, check_tools, cut
from togi.text.write import jinja_source

TOKENIZER_BOS = "{bos}"  # placeholder for the text that the tokenizer puts in front of a text, which may be empty
OWN = "tokenizer"  # a recipe's name for the tokenizer's own template


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """How a conversation becomes text.

    `roles` maps a role to the strings before and after its content; `free_role` does so for any other role, with {role}
    in place of its name. The assistant's strings are `generation` and then `terminator`. `bos` is literal text, or
    TOKENIZER_BOS until `bind` replaces it. `fixed_system` replaces every system turn; `default_system` is added to
    conversations without one; `strip` trims contents. No answer may contain one of `turn_starts`.

    If `jinja` is set, it alone makes the text, from `specials` (bos_token and the like) and `date`, if it uses the
    date. `prefill` is the end of `generation` that a written turn lacks, `closing` the text after a last answer,
    `missing` the end of a last answer that the template leaves open.
    `parts`: the template reads contents as lists of parts.
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
    date: str = ""
    prefill: str = ""
    closing: str = ""
    missing: str = ""
    parts: bool = False

    def __post_init__(self) -> None:
        if not self.terminator.strip():
            others = ", ".join(name for name in TEMPLATE_NAMES if name not in (OWN, self.name))
            raise RecipeError(
                f"template {self.name!r} has no terminator, so no answer would ever end: put it in a file and name the "
                "string that ends an answer, with template: {file: FILE, terminator: STRING}, or choose one of "
                f"{others}"
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
        """The conversation as text that ends with the generation prompt. Leaves out an unbound BOS."""
        return self._text(messages, True)

    def chat_text(self, messages: Sequence[Message]) -> str:
        """The whole conversation as text, without a generation prompt. Leaves out an unbound BOS."""
        return self._text(messages, False)

    def segments(self, messages: Sequence[Message], generation: bool = False) -> list[Segment]:
        """The text, split so that each answer is a separate segment.

        Raises InputError for an empty conversation, for an unknown role, and if the template writes an answer that
        carries loss differently once the conversation goes on.
        """
        found = self.texts(messages, generation)
        if len(found) > 1:
            raise InputError(
                "the chat template writes an earlier answer differently once the conversation goes on (for example, it "
                "removes thoughts from the history). Training would use text that is never served: keep only the last "
                "answer, give each answer a separate row, or choose another template for the model"
            )
        return found[0]

    def texts(self, messages: Sequence[Message], generation: bool = False) -> list[list[Segment]]:
        """The segments of one or several texts. Each answer that carries loss is in one of them, exactly as served.

        Raises InputError as `segments` does, and Unrendered if the template leaves out a part of a turn.
        """
        if not messages:
            raise InputError(f"template {self.name!r}: a conversation without messages cannot be rendered")
        if self.jinja is None:
            found = [self._table_segments(messages, generation)]
        else:
            ends = Ends(self.generation, self.terminator, self.prefill, self.closing, self.missing)
            found = cut(self._own_text, ends, messages, generation)
        return [_join_frames(parts) for parts in found]

    def writes_system(self, content: str) -> bool:
        """Whether a system turn is in the text. False if the template writes another text, or none, in its place."""
        text = self._opening(content)
        return text is None or content.strip() in text or text != self._opening(f"{content} too")

    def _opening(self, system: str) -> str | None:
        """A short prompt with a system turn; None if the template refuses it."""
        try:
            return self.prompt_text([Message("system", system), Message("user", "a")])
        except InputError:
            return None

    def bind(self, tokenizer: Tokenizer) -> "Template":
        """The same template, with TOKENIZER_BOS replaced by the text that `tokenizer` puts in front."""
        return replace(self, bos=leading_text(tokenizer)) if self.bos == TOKENIZER_BOS else self

    def to_json(self) -> dict[str, Any]:
        """The template as a JSON-like value, for `from_json`."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Template":
        """The template of a value from `to_json`. Raises RecipeError for unknown keys."""
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
        """A Jinja chat template that renders the same text, for the tokenizer_config of a saved model.

        Raises ValueError while the BOS is unbound, because the two templates would differ silently.
        """
        if self.jinja is not None:
            return with_date(self.jinja, self.date) if self.date else self.jinja
        if self.bos == TOKENIZER_BOS:
            raise ValueError(f"template {self.name!r}: call bind(tokenizer) before to_jinja()")
        return jinja_source(self)

    def _text(self, messages: Sequence[Message], generation: bool) -> str:
        if self.jinja is None or not messages:
            return "".join(s.text for s in self.segments(messages, generation))
        check_tools(self._own_text, messages, generation)
        return self._own_text(messages, generation)

    def _table_segments(self, messages: Sequence[Message], generation: bool) -> list[Segment]:
        parts = [Segment("" if self.bos == TOKENIZER_BOS else self.bos)]
        if self.default_system is not None and messages[0].role != "system":
            messages = (Message("system", self.default_system), *messages)
        for message in messages:
            self._check_extra(message, generation)
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
            "or choose a template with free roles (llama3, llama3-text, vikhr-nemo)"
        )

    def _check_extra(self, message: Message, generation: bool) -> None:
        """Raises Unrendered for tools, tool calls and thoughts, which a table of strings cannot write."""
        learnt = () if generation or message.role != "assistant" or not message.train else THOUGHTS
        for key in (TOOLS, *CALLS, *learnt):
            if message.extra.get(key):
                raise Unrendered(
                    f"template {self.name!r} has no place for {key}, like every built-in one: use the model's own "
                    f"(template: {OWN}) or one in a file (template: {{file: chat_template.jinja}}), or remove such "
                    "conversations from the data"
                )

    def _own_text(self, messages: Sequence[Message], generation: bool) -> str:
        try:
            return self._written(messages, generation)
        except InputError as error:
            named, hint = "" if self.name == OWN else f"{self.name}: ", self._advice(messages, generation)
            raise InputError(f"{named}{error}{hint}") from error

    def _written(self, messages: Sequence[Message], generation: bool) -> str:
        """The text. If the template fails on arguments of tool calls as objects, or prints them as Python does, they
        are JSON text."""
        rows: list[dict[str, Any]] = [
            {**m.extra, "role": m.role, "content": [{"type": "text", "text": m.content}] if self.parts else m.content}
            for m in messages
        ]
        tools = rows[0].pop(TOOLS, None) if rows else None
        spelt = as_text(rows)
        try:
            text = self._rendered(rows, tools, generation)
        except InputError:
            if spelt is None:
                raise
            return self._rendered(spelt, tools, generation)
        return self._rendered(spelt, tools, generation) if spelt is not None and printed(rows, text) else text

    def _rendered(self, rows: Sequence[Mapping[str, Any]], tools: Any, generation: bool) -> str:
        assert self.jinja is not None
        return render_jinja(self.jinja, rows, self.specials, generation, tools=tools, date=self.date or DATE)

    def _advice(self, messages: Sequence[Message], generation: bool) -> str:
        """Advice on a conversation that the template refuses: whether only its system turn is the cause."""
        if len(messages) < 2 or messages[0].role != "system":
            return REFUSED
        try:
            self._written(messages[1:], generation)
        except InputError:
            return REFUSED
        return (
            "; the template does not accept a system turn: move its text into the first user turn, remove it, or "
            "choose another template for the model (template: chatml)"
        )


def _join_frames(parts: Sequence[Segment]) -> list[Segment]:
    """Joins neighbouring segments that are not answers, and removes empty ones."""
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
    """The text that the tokenizer itself puts in front of a text, usually BOS; "" if none."""
    bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    dressed: list[int] = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(dressed) - len(bare) + 1):
        if dressed[start : start + len(bare)] == bare:
            return tokenizer.decode(dressed[:start], skip_special_tokens=False) if start else ""
    raise InputError("the tokenizer writes a text differently when special tokens are added; its BOS cannot be found")


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


def _llama3(name: str, bos: str, end: str = "<|eot_id|>") -> Template:
    head = "<|start_header_id|>{role}<|end_header_id|>\n\n"
    answer = head.replace("{role}", "assistant")
    return Template(
        name=name,
        bos=bos,
        roles={"assistant": (answer, end)},
        free_role=(head, end),
        generation=answer,
        terminator=end,
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
        replace(llm_jp, fixed_system="以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"),
        replace(llm_jp, name="llm-jp-system"),
        sarashina,
        _llama3("llama3", "<|begin_of_text|>"),
        _llama3("llama3-text", TOKENIZER_BOS),
        _llama3("vikhr-nemo", "<s>", "</s>"),
    )
    return {t.name: t for t in templates}


TEMPLATES: Mapping[str, Template] = _table()
TEMPLATE_NAMES = (*TEMPLATES, OWN)


def get_template(name: str, tokenizer: Any = None) -> Template:
    """The template `name`, bound to `tokenizer` if one is given. The name "tokenizer" means the tokenizer's own.

    Raises RecipeError for an unknown name, and for "tokenizer" if the tokenizer has no template.
    """
    if name == OWN:
        return own_template(tokenizer)
    if name not in TEMPLATES:
        close = get_close_matches(name, TEMPLATE_NAMES, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise RecipeError(f"no template is called {name!r}; there are {', '.join(TEMPLATE_NAMES)}{hint}")
    return TEMPLATES[name] if tokenizer is None else TEMPLATES[name].bind(tokenizer)


def own_template(tokenizer: Any) -> Template:
    """A tokenizer's own Jinja template; of several, the default one, and the one for tools in conversations with tools.

    Raises as `jinja_template` does, with the tokenizer's folder, and RecipeError if the tokenizer has none.
    """
    source = None if tokenizer is None else tokenizer.chat_template
    if isinstance(source, Mapping):
        source = _one_of(source)
    if not isinstance(source, str) or not source.strip():
        others = ", ".join(n for n in TEMPLATE_NAMES if n != OWN)
        raise RecipeError(f"the tokenizer has no chat template; choose one of {others}")
    try:
        return jinja_template(OWN, source, tokenizer)
    except TogiError as error:
        folder = getattr(tokenizer, "name_or_path", "")
        raise type(error)(f"{folder}: {error}" if folder else str(error)) from error


def file_template(path: Path, tokenizer: Any, terminator: str | None = None) -> Template:
    """The Jinja template in a file. Raises InputError if it cannot be read, and as `jinja_template` does."""
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the chat template cannot be read: {error}") from error
    try:
        return jinja_template(path.name, source, tokenizer, terminator)
    except TogiError as error:
        raise type(error)(f"{path}: {error}") from error


def jinja_template(name: str, source: str, tokenizer: Any, terminator: str | None = None) -> Template:
    """A template from Jinja source. Probe conversations show its pieces; `terminator` overrides the detected one.

    Raises InputError if the source fails, takes too long or rejects a question and an answer; RecipeError if it does
    not end the assistant's turn.
    """
    specials: dict[str, str] = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
    known = dict.fromkeys([*map(str, tokenizer.all_special_tokens), *tokenizer.get_added_vocab()])
    date = DATE if asks_for_date(source) else ""
    pieces = find_pieces(source, specials, tuple(known), date or DATE, terminator)
    return Template(name=name, jinja=source, specials=specials, date=date, **pieces._asdict())


def _one_of(named: Mapping[str, str]) -> str:
    """Joins a tokenizer's several templates into one source. Raises RecipeError if none of them is the default."""
    source = named.get("default") or (next(iter(named.values())) if len(named) == 1 else None)
    if source is None:
        raise RecipeError(
            f"the tokenizer has several chat templates, none of them called default: {', '.join(named)}; save one of "
            "them in a file, and name it with template: {file: ...}"
        )
    tools = named.get("tool_use")
    if not tools or tools == source:
        return source
    first, second = (text.removesuffix("\n") for text in (tools, source))  # Jinja drops the last line end
    test = "{%- if tools is defined and tools is not none %}\n"
    return f"{test}{first}{{%+ else %}}\n{second}{{%+ endif %}}"
