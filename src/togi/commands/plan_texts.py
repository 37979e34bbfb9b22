"""The texts of a record whose tokens a plan counts: rendered with the model's template, without loading the model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from togi.core.errors import InputError
from togi.core.files import read_json
from togi.core.records import Chat, Document, Figure, Match, Message, Pair, Prompt, Record, Sample, Verdict
from togi.text.jinja import REFUSED, render_jinja
from togi.text.template import TEMPLATES
from togi.text.turns import Unrendered


def texts(record: Record, template: str | None, folder: Path) -> list[str] | None:
    """The texts that the model reads of a record; for a pair, the prompt with one answer, and the other answer alone.
    None for a record that stages drop, because the template cannot render it."""
    try:
        return [
            part if isinstance(part, str) else _written(part, template, folder, generation=type(record) is Prompt)
            for part in READ[type(record)](record)
        ]
    except Unrendered:
        return None


READ: dict[type[Record], Callable[[Any], list[str | Sequence[Message]]]] = {
    Prompt: lambda prompt: [prompt.messages],
    Chat: lambda chat: [chat.messages],
    Pair: lambda pair: [(*pair.prompt, *pair.chosen), "\n".join(message.content for message in pair.rejected)],
    Document: lambda document: [document.text],
    Sample: lambda sample: [],  # no stage trains on samples that are not chosen
    Verdict: lambda verdict: [],
    Figure: lambda figure: [],
    Match: lambda match: [],
}
"""The parts of a record that a model reads, by kind: conversations, and plain text."""


def _written(messages: Sequence[Message], template: str | None, folder: Path, *, generation: bool) -> str:
    """A conversation rendered with the named template, or with the tokenizer's own."""
    if template is not None and template in TEMPLATES:
        known = TEMPLATES[template]
        return known.prompt_text(messages) if generation else known.chat_text(messages)
    own = folder / "chat_template.jinja"
    if not own.exists():
        return "\n".join(message.content for message in messages)
    settings = read_json(folder / "tokenizer_config.json")
    specials = {key: value for key, value in settings.items() if key.endswith("_token") and isinstance(value, str)}
    rows = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return render_jinja(own.read_text(encoding="utf-8"), rows, specials, generation)
    except InputError as error:
        raise InputError(f"{error}{REFUSED}") from None
