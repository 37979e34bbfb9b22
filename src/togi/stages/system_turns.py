"""Finds system turns that a chat template does not write: some templates replace them by a text of their own, or drop
them."""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from togi.core.records import Message
from togi.stages.context import Context
from togi.text.template import TEMPLATES, Template

REPLACED = "system_replaced"
"""The name of a count and of an alarm: records whose system turn the template does not write."""
KEPT = 64
"""Different system turns of which is remembered whether the template writes them."""
PROBE = "Answer briefly."
"""A system turn, for templates that write any or none."""

Turns = Sequence[Message]


def replacing(template: Template) -> Callable[[Turns], bool]:
    """Returns a predicate: whether the template leaves out one of a conversation's system turns."""
    written = lru_cache(KEPT)(template.writes_system)

    def replaces(messages: Turns) -> bool:
        systems = [m.content for m in messages if m.role == "system" and m.content.strip()]
        return not all(map(written, systems))

    return replaces


def replaced_warning(
    template: Template, count: int, effect: str = "training does not see it; to train on it"
) -> list[tuple[str, str]]:
    """A warning (name, message) if the template does not write the system turn of `count` records. `effect` says who
    does not see it, and what another template is for."""
    if not count:
        return []
    variant = f"{template.name}-system"
    other = f"template: {variant}" if variant in TEMPLATES else "another template for the model"
    return [
        (
            REPLACED,
            f"template {template.name!r} does not write the system turn of {count} records, but its own text or none, "
            f"so {effect}, choose {other}",
        )
    ]


def tell_replaced(context: Context, template: Template, conversations: Iterable[Turns], effect: str) -> None:
    """Raises an alarm if the template does not write the system turns of some conversations. Reads them only if the
    template replaces system turns at all."""
    if template.writes_system(PROBE):
        return
    count = sum(map(replacing(template), conversations))
    for name, message in replaced_warning(template, count, effect):
        context.alarm(name, message, value=count)
