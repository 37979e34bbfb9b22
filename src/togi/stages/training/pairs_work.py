"""Preference pairs as examples: trees of one prompt and two answers, in which only the answers' tokens are scored.

A pair that does not fit is dropped with a reason or is an error, as the recipe specifies. All drops and cuts are
counted.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from togi.core.errors import InputError
from togi.core.records import Message, Pair
from togi.core.settings import refs_of
from togi.model.forest import Sequence as TokenSequence
from togi.model.load import LoadedModel
from togi.stages.base import MODEL_FOLDER
from togi.stages.context import Context
from togi.stages.models import keep_model
from togi.stages.refused import refused
from togi.stages.rehearsal_work import Rehearsed, data_rows
from togi.stages.spoken import Spoken
from togi.stages.training.chosen_guard import FallWatch
from togi.stages.training.dropped_work import dropped_warning, tell_dropped
from togi.stages.training.examples_work import Data, Example, Rendering, read, too_long
from togi.stages.training.fit_work import TokenTask, fit
from togi.stages.training.preference import PreferenceTraining
from togi.stages.training.reward import TrainReward
from togi.text.render import render_chat
from togi.text.turns import Unrendered

Sides = tuple[TokenSequence, TokenSequence]
REASONS = {
    "empty_answer": "one of its answers is empty",
    "equal_answers": "its answers are the same",
    "nothing_scored": "an answer has no message that is trained on",
    "two_bos": "it begins with the template's BOS twice",
}


@dataclass
class PairReader(Rendering, ABC):
    """Turns pairs into examples of two sequences, or gives the reason for dropping them. Shared by all training on
    pairs.

    Raises InputError for a pair that would be dropped, if the recipe does not allow drops.
    """

    settings: PreferenceTraining | TrainReward

    @property
    def key(self) -> dict[str, Any]:
        """The settings that determine a pair's example."""
        return {"longest": self.longest, **self.settings.model_dump(include={"on_bad_pair", "overflow"})}

    def __call__(self, pair: Pair, /) -> Example | str:
        """The example of a pair, or the reason for dropping it."""
        reason = _unusable(pair)
        if reason is not None:
            return self._bad(pair, reason)
        try:
            self.marks.check((*pair.prompt, *pair.chosen))  # a rejected answer may be bad for its marks
            sides = (self.sequence(pair, pair.chosen), self.sequence(pair, pair.rejected))
        except Unrendered as error:
            if self.settings.on_bad_pair == "drop":
                raise
            raise InputError(
                f"stage {self.context.name}: pair {pair.id}: {error}; fix it, or set on_bad_pair: drop"
            ) from None
        if self.bos and any(side.ids[: 2 * len(self.bos)] == self.bos * 2 for side in sides):
            return self._bad(pair, "two_bos")
        length = max(len(side.ids) for side in sides)
        if length > self.longest:
            if self.settings.overflow != "truncate":
                return too_long(self.settings, self.context, pair, length)
            sides = self.shortened(sides)
        if not self.teaches(sides):
            return self._bad(pair, "nothing_scored")
        if sides[0].ids == sides[1].ids:
            return self._bad(pair, "equal_answers")
        self.note_systems(pair.prompt)
        return Example(id=pair.id, prompt=pair.prompt, group=sides, margin=pair.margin)

    @abstractmethod
    def sequence(self, pair: Pair, side: Sequence[Message]) -> TokenSequence:
        """The tokens of a pair's prompt with one of its sides. Raises InputError that names stage and pair."""

    def shortened(self, sides: Sides) -> Sides:
        """Cuts sides that are too long; for training with overflow: truncate."""
        raise NotImplementedError

    def teaches(self, sides: Sides) -> bool:
        """Whether both sequences have something to train on."""
        return True

    def _bad(self, pair: Pair, reason: str) -> str:
        if self.settings.on_bad_pair == "error":
            raise InputError(
                f"stage {self.context.name}: pair {pair.id} cannot be trained on: {REASONS[reason]}; fix it, or set "
                "on_bad_pair: drop"
            )
        return reason


@dataclass
class PairToExample(PairReader):
    """Pairs whose answers' tokens are scored. `header` scores the assistant's header too; `second_bos` puts a scored
    BOS before it.

    `room` is the length of a truncated prompt in tokens; `counts` counts the cuts. Also raises InputError if
    `second_bos` is set but the template has no BOS.
    """

    settings: PreferenceTraining
    header: bool = False
    second_bos: bool = False
    room: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.room = self.settings.max_prompt_length or self.longest // 2
        if self.room >= self.longest:
            raise InputError(
                f"stage {self.context.name}: max_prompt_length is {self.room}, which leaves none of the model's "
                f"{self.longest} tokens for the answers: lower it"
            )
        if self.second_bos and not self.bos:
            raise InputError(
                f"stage {self.context.name}: second_bos is on, but template {self.model.template.name!r} begins with "
                "no BOS to repeat: switch it off, or use the template that the model was published with"
            )

    @property
    def key(self) -> dict[str, Any]:
        own = {"header": self.header, "second_bos": self.second_bos, "room": self.room}
        return {**super().key, **own}

    def teaches(self, sides: Sides) -> bool:
        return all(any(side.scored) for side in sides)

    def sequence(self, pair: Pair, side: Sequence[Message]) -> TokenSequence:
        asked = tuple(replace(m, train=False) for m in pair.prompt)
        try:
            found = render_chat(self.model.template, self.model.tokenizer, (*asked, *side), header=self.header)
        except Unrendered:
            raise
        except InputError as error:
            raise refused(self.context.name, "pair", pair.id, self.model.name, error) from None
        ids, scored = found.ids, found.mask
        if self.second_bos and any(scored):
            place = scored.index(True)
            ids = (*ids[:place], *self.bos, *ids[place:])
            scored = (*scored[:place], *(True,) * len(self.bos), *scored[place:])
        return TokenSequence(ids, scored)

    def shortened(self, sides: Sides) -> Sides:
        """Cuts the prompt to its last tokens, keeping its BOS, and then both answers to what is left."""
        prompt = min(side.first_scored for side in sides)
        gone = max(0, prompt - self.room)
        start = len(self.bos) if sides[0].ids[: len(self.bos)] == self.bos else 0
        stop = prompt - gone + self.longest - self.room
        shorter = [_without(side, start, start + gone) for side in sides]
        self.counts["cut_prompts"] += gone > 0
        self.counts["cut_answers"] += sum(len(side.ids) > stop for side in shorter)
        chosen, rejected = (_without(side, stop, len(side.ids)) for side in shorter)
        return chosen, rejected


def read_pairs(settings: PreferenceTraining, context: Context, border: PairToExample) -> Data:
    """The examples of a stage's pairs and of its validation. Cuts are counted and become warnings."""
    data = read(settings, context, refs_of(settings.pairs), border)
    context.counts.update(+border.counts)
    context.counts |= {"pairs": len(data.training), "held_out": len(data.validation)}
    for name, count in sorted((+border.counts).items()):
        what = name.removeprefix("cut_")
        data.warnings.append((name, f"{count} {what} were cut to fit max_length {border.longest}"))
    data.warnings += dropped_warning(settings, context, data.warnings)
    return data


def pair_rows(settings: PreferenceTraining, context: Context, border: PairToExample) -> list[Rehearsed]:
    """A stage's pairs as shown by `togi check`."""
    return data_rows(context, border.model, read_pairs(settings, context, border))


class PairTask(TokenTask):
    """A task over pairs that watches the chosen answers. `start` is the watched metric's value before training, if
    known."""

    watched = "logp_chosen"
    start: float | None = None

    def __init__(self, settings: PreferenceTraining, context: Context, model: LoadedModel, data: Data) -> None:
        super().__init__(data, model)
        self.settings = settings
        self.context = context
        self.watch = None if settings.falling_chosen is None else FallWatch(settings.falling_chosen, self.start)

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.watch is not None:
            self.watch.observe(step, metrics[self.watched], self.context)

    def state(self) -> dict[str, Any]:
        return {} if self.watch is None else self.watch.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        if self.watch is not None:
            self.watch.restore(state)


def train_and_save(settings: PreferenceTraining, context: Context, model: LoadedModel, task: PairTask) -> None:
    """Trains, saves the model, and records in the summary which step's weights it has and their validation metrics."""
    fitted = fit(settings, context, model, task)
    context.counts["out"] = context.counts["pairs"]
    context.summary |= {"step": fitted.step, "validation": fitted.validation}
    keep_model(context, model, context.folder / MODEL_FOLDER, settings, Spoken(task.data.system))
    tell_dropped(context)


def _unusable(pair: Pair) -> str | None:
    """Why a pair's messages cannot be trained on; None if they can."""
    sides = (pair.chosen, pair.rejected)
    if not all(any(m.role == "assistant" and not m.silent for m in side) for side in sides):
        return "empty_answer"
    chosen, rejected = ([replace(m, content=m.content.strip()) for m in side] for side in sides)
    return "equal_answers" if chosen == rejected else None


def _without(sequence: TokenSequence, start: int, stop: int) -> TokenSequence:
    """The sequence without tokens [start, stop)."""
    ids, scored = sequence.ids, sequence.scored
    return TokenSequence((*ids[:start], *ids[stop:]), (*scored[:start], *scored[stop:]))
