"""Finds stages that would refuse the answers of earlier stages, by what is known of these answers before they exist."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from togi.core.errors import InputError
from togi.core.records import Record
from togi.core.settings import MAIN, Ref
from togi.stages.base import StageSettings, StageType
from togi.stages.known_answers import Answers, AnswersOf, answers_in


@dataclass(slots=True)
class KnownAnswers:
    """`known` is by node and output, for samples that do not exist yet; `made(node, output)` gives the records of those
    that do. `read` are the outputs that stages of the recipe read."""

    made: Callable[[str, str], Sequence[Record] | None]
    known: dict[tuple[str, str], Answers] = field(default_factory=dict)
    read: set[tuple[str, str]] = field(default_factory=set)

    def take(self, kind: StageType, name: str, settings: StageSettings, inputs: Mapping[str, Any]) -> None:
        """Registers what is known of a stage's outputs. Raises InputError for inputs that the stage's work would
        refuse, or from which it would make no records. Does nothing for a finished stage."""
        if self.made(name, MAIN) is not None:
            return
        of = self._of(inputs)
        if kind.answers is not None:
            self.known[name, MAIN] = kind.answers(settings, of)
        elif kind.chooses is not None:
            self.known |= dict.fromkeys(
                [(name, output) for output in kind.outputs(settings)], of(kind.chooses(settings))
            )
        if wrong := self._wrong(kind, name, settings, of):
            raise InputError(f"stage {name}: {wrong}")

    def _wrong(self, kind: StageType, name: str, settings: StageSettings, of: AnswersOf) -> str:
        if kind.refuses is not None and (wrong := kind.refuses(settings, of)):
            return wrong
        named = any(node == name and output != MAIN for node, output in self.read)
        if kind.empties is None or (named and (name, MAIN) not in self.read):  # it is there for its named outputs
            return ""
        return kind.empties(settings, of)

    def _of(self, inputs: Mapping[str, Any]) -> AnswersOf:
        def of(ref: Ref) -> Answers:
            place = str(inputs[ref]), ref.output
            return self.known[place] if place in self.known else answers_in(self.made(*place) or ())

        return of
