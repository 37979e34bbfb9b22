"""Finds a template's own marks inside the text of turns: such text is already rendered, or would end a turn early."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from togi.core.protocols import Tokenizer
from togi.core.records import Message
from togi.text.template import Template
from togi.text.turns import Unrendered


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks of a template that no text of a turn contains by chance: one token, or of the form <|...|>. `ends` is
    what ends an answer, `starts` what begins a turn."""

    ends: tuple[str, ...]
    starts: tuple[str, ...]

    @classmethod
    def of(cls, template: Template, tokenizer: Tokenizer) -> "Marks":
        def clear(mark: str) -> bool:
            one = len(tokenizer(mark, add_special_tokens=False)["input_ids"]) == 1
            return bool(re.fullmatch(r"<[|｜].+[|｜]>", mark)) or (one and len(mark) > 2)

        starts = tuple(start.strip() for start in template.turn_starts if clear(start.strip()))
        return cls(tuple(end for end in (template.terminator.strip(),) if clear(end)), starts)

    def check(self, messages: Sequence[Message]) -> None:
        """Raises Unrendered if a turn contains the beginning of a turn, or an answer with loss its own end."""
        for number, message in enumerate(messages, 1):
            learnt = message.role == "assistant" and message.train
            for mark in (*self.starts, *(self.ends if learnt else ())):
                if mark in message.content:
                    raise Unrendered(
                        f"message {number} ({message.role}) contains {mark!r}, which the chat template writes itself, "
                        "as if the text were rendered already: give the bare text of the turn"
                    )
