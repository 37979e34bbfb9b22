"""The work of `train.sft`: turns chats into sequences whose answers carry loss, and trains on them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from togi.core.errors import InputError
from togi.core.records import Chat, Message, led_by_system
from togi.core.settings import refs_of
from togi.model.forest import Forest, plant
from togi.model.forest import Sequence as TokenSequence
from togi.model.load import LoadedModel
from togi.objectives.base import Batch
from togi.objectives.sft import SFT
from togi.stages.base import MODEL_FOLDER
from togi.stages.context import Context
from togi.stages.models import keep_model, load_trainable
from togi.stages.refused import refused
from togi.stages.rehearsal_work import Rehearsed, data_rows, weightless
from togi.stages.spoken import Spoken
from togi.stages.training.dropped_work import dropped_warning, tell_dropped
from togi.stages.training.examples_work import Data, Example, Rendering, read, too_long
from togi.stages.training.fit_work import TokenTask, fit
from togi.stages.training.sft import TrainSft
from togi.stages.training.token_files_work import Stored
from togi.stages.training.tokens_work import kept
from togi.text.render import Rendered, render_turns
from togi.text.turns import Unrendered

DECIDE = {"system", "system_when", "packing", "overflow", "rewritten_answers", "score_header"}
"""Settings that determine a chat's example."""
SHARED = 64  # tokens that chats must share at the start for these to be computed only once


def run(settings: TrainSft, context: Context) -> None:
    model = load_trainable(context, settings.init, settings, in_parts=True)
    data = read_chats(settings, context, model)
    fitted = fit(settings, context, model, SftTask(settings, data, model))
    context.counts["out"] = context.counts["chats"]
    context.summary |= {"step": fitted.step, "validation": fitted.validation}
    keep_model(context, model, context.folder / MODEL_FOLDER, settings, Spoken(data.system))
    tell_dropped(context)


def rehearse(settings: TrainSft, context: Context) -> list[Rehearsed]:
    model = weightless(context, settings.init)
    return data_rows(context, model, read_chats(settings, context, model))


def border(settings: TrainSft, context: Context, model: LoadedModel) -> "ChatToExample":
    """The converter from chats to examples."""
    return ChatToExample(settings, context, model)


def read_chats(settings: TrainSft, context: Context, model: LoadedModel) -> Data:
    """The stage's examples, counted. Raises InputError if a chat does not fit and the settings ask for an error, and if
    no examples are left."""
    to_example = border(settings, context, model)
    data = read(settings, context, refs_of(settings.chats), to_example)
    context.counts.update(to_example.counts)
    data.warnings += rewritten(settings, to_example)
    context.counts["chats"] = len(data.training)
    assert isinstance(data.training, Stored)
    context.counts["scored_tokens"] = int(data.training.column("scored").sum(dtype=np.int64))
    if settings.packing == "blocks":
        data = _in_blocks(data, data.training, to_example, context)
    context.counts["held_out"] = len(data.validation)
    data.warnings += dropped_warning(settings, context, data.warnings)
    return data


def rewritten(settings: TrainSft, border: "ChatToExample") -> list[tuple[str, str]]:
    """A warning that tells how chats with rewritten answers were treated, if there are any."""
    counts = border.counts
    if not counts["rewritten_chats"]:
        return []
    told = f"template {border.model.template.name!r} renders earlier answers differently in later turns"
    if settings.rewritten_answers == "last":
        what = f"{counts['answers_unlearnt']} answers carry no loss (rewritten_answers: split trains on them too)"
    else:
        what = f"{counts['sequences_split_off']} sequences were split off, each ending with such an answer"
    return [("rewritten_answers", f"{told}: in {counts['rewritten_chats']} chats {what}")]


@dataclass
class ChatToExample(Rendering):
    """Turns chats into examples, or into reasons for dropping them.

    Raises InputError if the template does not know a role, and for a long chat if the settings ask for an error.
    """

    settings: TrainSft

    @property
    def key(self) -> dict[str, Any]:
        """The settings that determine a chat's example."""
        return {"longest": self.longest, **self.settings.model_dump(include=DECIDE)}

    def __call__(self, chat: Chat, /) -> Example | str:
        messages = self._messages(chat)
        if any(m.role == "assistant" and m.train and m.silent for m in messages):
            return "empty_answer"
        self.marks.check(chat.messages)
        texts = self._rendered(chat, messages)
        if self.bos and texts[0].ids[: 2 * len(self.bos)] == self.bos * 2:
            return "two_bos"
        if not any(texts[0].mask):
            return "no_answer_to_learn"
        cut = [self._cut(chat, found) for found in texts]
        group = tuple(sequence for sequence in cut if not isinstance(sequence, str))
        if not group:
            return str(cut[0])
        self.counts["answers_too_long"] += len(cut) - len(group)
        self.note_systems(messages)
        return Example(id=chat.id, prompt=_prompt(messages), group=group)

    def _cut(self, chat: Chat, found: Rendered) -> TokenSequence | str:
        """A text cut to the limit, or the reason for dropping it."""
        stop = len(found.ids)
        if self.settings.packing == "apart" and stop > self.longest:
            if self.settings.overflow in ("drop", "error"):
                return too_long(self.settings, self.context, chat, stop)
            stop = self._stop(found)
            if not any(found.mask[:stop]):
                return "no_answer_after_truncation"
            self._count_cut(found, stop)
        self.counts["straddles"] += found.straddles
        return TokenSequence(found.ids[:stop], found.mask[:stop])

    def _messages(self, chat: Chat) -> tuple[Message, ...]:
        """The chat's messages with the recipe's system prompt."""
        system = self.settings.system
        has_one = chat.messages[0].role == "system"
        if system is None or (has_one and self.settings.system_when == "absent"):
            return chat.messages
        return led_by_system(system, chat.messages)

    def _rendered(self, chat: Chat, messages: Sequence[Message]) -> list[Rendered]:
        model = self.model
        try:
            found = render_turns(model.template, model.tokenizer, messages, header=self.settings.score_header)
        except Unrendered:
            raise
        except InputError as error:
            raise refused(self.context.name, "chat", chat.id, model.name, error) from None
        if len(found) == 1:
            return found
        self.counts["rewritten_chats"] += 1
        if self.settings.rewritten_answers == "last":
            self.counts["answers_unlearnt"] += sum(len(each.ends) for each in found[1:])
            return found[:1]
        self.counts["sequences_split_off"] += len(found) - 1
        return found

    def _stop(self, found: Rendered) -> int:
        """The end of a chat that is too long, in tokens."""
        if self.settings.overflow == "truncate":
            return self.longest
        return max((end for end in found.ends if end <= self.longest), default=0)

    def _count_cut(self, found: Rendered, stop: int) -> None:
        self.counts["truncated"] += 1
        unfinished = stop not in found.ends and found.mask[stop - 1]
        self.counts["terminators_cut"] += unfinished
        self.counts["answers_cut_away"] += sum(end > stop for end in found.ends) - unfinished


def _prompt(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages before the first answer that carries loss. Chats that share them stay on one side of a split."""
    first = next(i for i, m in enumerate(messages) if m.role == "assistant" and m.train)
    return tuple(messages[:first])


def _in_blocks(data: Data, chats: Stored, border: ChatToExample, context: Context) -> Data:
    """The data with its training chats as blocks. Raises InputError if they do not fill one block."""
    length, vocabulary = border.longest, len(border.model.tokenizer)
    held_out = _fitting(data.validation, length, context)
    training = kept(context, "blocks", chats, length, blocks(chats, length), vocabulary)
    context.counts["blocks"] = len(training)
    if not len(training):
        raise InputError(
            f"stage {context.name}: all chats together do not fill one block of {length} tokens; lower max_length, or "
            "set packing: apart"
        )
    return replace(data, training=training, validation=held_out)


def blocks(examples: Sequence[Example], length: int) -> Iterator[Example]:
    """Yields all examples concatenated and cut into blocks of `length` predicted tokens, as in some published recipes.

    Documents in a block attend to earlier ones, and positions run through the block. Blocks without loss and the
    incomplete last block are left out.
    """
    ids: list[int] = []
    scored: list[bool] = []
    number, size = 0, length + 1
    for sequence in (sequence for example in examples for sequence in example.group):
        ids += sequence.ids
        scored += sequence.scored
        while len(ids) >= size:
            marks, name = (False, *scored[1:size]), f"block-{number:06d}"
            if any(marks):
                yield Example(id=name, prompt=name, group=(TokenSequence(tuple(ids[:size]), marks),))
            ids, scored, number = ids[size:], scored[size:], number + 1


def _fitting(held_out: Sequence[Example], longest: int, context: Context) -> Sequence[Example]:
    """The validation chats that are not too long; only training chats are cut into blocks. Raises InputError if none
    are left."""
    if not isinstance(held_out, Stored):
        return held_out
    fits_N = np.zeros(len(held_out), bool)
    for number, example in enumerate(held_out):
        fits_N[number] = all(len(each.ids) <= longest for each in example.group)
        if not fits_N[number]:
            context.drop(example.id, "too_long")
    if not fits_N.any():
        raise InputError(
            f"stage {context.name}: none of the {len(held_out)} validation chats fits into {longest} tokens; raise "
            "max_length, or validate on shorter chats"
        )
    return held_out.among(fits_N)


class SftTask(TokenTask):
    """Cross entropy on chats. Chats of one micro-batch with a common prefix share its computation."""

    def __init__(self, settings: TrainSft, data: Data, model: LoadedModel) -> None:
        super().__init__(data, model)
        self.settings = settings

    def objective(self, step: int) -> SFT:
        return SFT(normalise=self.settings.normalise)

    def plant(self, examples: Sequence[Example]) -> Forest:
        return plant(_trees(examples))

    def batch(self, examples: Sequence[Example], inputs: Forest) -> Batch:
        batch = super().batch(examples, inputs)
        if all(len(example.group) == 1 for example in examples):
            return batch
        numbers = {id(sequence): n for n, example in enumerate(examples) for sequence in example.group}
        example_S = [numbers[id(sequence)] for tree in _trees(examples) for sequence in tree]
        return replace(batch, example_S=torch.tensor(example_S, device=self.device))


def _trees(examples: Sequence[Example]) -> list[list[TokenSequence]]:
    return grouped([sequence for example in examples for sequence in example.group], SHARED)


def grouped(sequences: Sequence[TokenSequence], least: int) -> list[list[TokenSequence]]:
    """Groups sequences with the same first `least` ids, such as a system prompt, into one tree; others form a group
    alone. Grouping does not change results.
    """
    together: dict[tuple[int, ...], list[TokenSequence]] = {}
    for number, sequence in enumerate(sequences):
        key = sequence.ids[:least] if len(sequence.ids) > least else (-1, number)
        together.setdefault(key, []).append(sequence)
    return list(together.values())
