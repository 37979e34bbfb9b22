"""Examples of training on fixed data: reading records, splitting them, and the order in which steps use them.

The examples of a step depend only on the settings, the data and the step, so a killed run resumes with bit-identical
results.
"""

import random
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from togi.core.errors import InputError, StageError
from togi.core.records import Message, Record
from togi.core.seeds import derive
from togi.core.settings import Ref
from togi.model.inspect import context_of
from togi.model.load import LoadedModel
from togi.stages.context import Context
from togi.stages.seen_prompts import keep_marks
from togi.stages.spoken import NEARLY_ALL
from togi.stages.system_turns import REPLACED, replaced_warning, replacing
from togi.stages.training.dropped_work import remedy
from togi.stages.training.epochs import Epochs
from togi.stages.training.example_work import Example
from togi.stages.training.optimisation import FixedTraining
from togi.stages.training.token_files_work import Stored
from togi.stages.training.tokens_work import Border, tokenised, unrendered_warning
from togi.text.marks import Marks
from togi.text.render import check_template

# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Data:
    """Examples for training and validation. `warnings` (name, message) become alarms when training begins. `system` is
    the system turn that nearly all training examples begin with."""

    training: Sequence[Example]
    validation: Sequence[Example] = ()
    warnings: list[tuple[str, str]] = field(default_factory=list)
    system: str | None = None


def read(settings: FixedTraining, context: Context, refs: Sequence[Ref], border: Border) -> Data:
    """The examples that `border` makes of the records of `refs` and of `validation`, stored as tokens on disk.

    Raises InputError if nothing is left to train on, or if the data cannot be split as requested.
    """
    stored, told = _stored(settings, context, refs, border)
    if not len(stored):
        why = f"{context.drop_reasons()}{_why(told)}; {remedy(settings, context.drop_counts())}"
        raise InputError(f"stage {context.name}: every record was dropped: {why}")
    held: Stored | None = None
    if isinstance(settings.validation, float):
        stored, held = split_stored(stored, settings.validation, derive(context.seed, "held_out"), context.name)
    elif settings.validation is not None:
        held, more = _stored(settings, context, [settings.validation], border)
        told += more
        if not len(held):
            raise InputError(f"stage {context.name}: no record of {settings.validation} is left for validation")
        told += _overlap(stored, held)
    told += told_replaced(context, border)
    keep_marks(context, settings.init, stored.column("mark"))
    return Data(stored, () if held is None else held, told, stored.common_system(NEARLY_ALL))


def _stored(
    settings: FixedTraining, context: Context, refs: Sequence[Ref], border: Border
) -> tuple[Stored, list[tuple[str, str]]]:
    """The examples of the records of `refs`, and warnings. Counts the records."""
    files = [tokenised(settings, context, ref, border) for ref in refs]
    context.count_in(sum(file.more["records"] for file in files))
    return Stored(files), unrendered_warning(files)


def told_replaced(context: Context, border: Border) -> list[tuple[str, str]]:
    """A warning if the template does not write the system turns of some records, which are counted."""
    count = border.counts.pop(REPLACED, 0)
    if count:
        context.counts[REPLACED] = count
    return replaced_warning(border.model.template, count)


def _overlap(training: Stored, held_out: Stored) -> list[tuple[str, str]]:
    """A warning if validation examples have prompts that also occur in training."""
    shared = int(np.isin(held_out.column("prompt"), training.column("prompt")).sum())
    message = f"{shared} of {len(held_out)} validation examples have a prompt that is also trained on"
    return [("validation_overlap", message)] if shared else []


def _why(told: Sequence[tuple[str, str]]) -> str:
    """The warnings as parts of a sentence that has said how many records were dropped."""
    return "".join(f"; {message.rpartition(' records are dropped; ')[2]}" for _, message in told)


def split(examples: Sequence[Example], share: float, seed: int, name: str) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples. Those of one prompt stay on one side, and each side has at least two prompts.

    Raises InputError if there are too few prompts.
    """
    prompts = list(dict.fromkeys(example.prompt for example in examples))
    held = {prompts[number]: None for number in _held_out(len(prompts), share, seed, name)}
    return [e for e in examples if e.prompt not in held], [e for e in examples if e.prompt in held]


def split_stored(examples: Stored, share: float, seed: int, name: str) -> tuple[Stored, Stored]:
    """`split` for examples on disk."""
    _, first_P, prompt_N = np.unique(examples.column("prompt"), return_index=True, return_inverse=True)
    held_P = np.zeros(len(first_P), bool)
    held_P[np.argsort(first_P)[_held_out(len(first_P), share, seed, name)]] = True
    held_N = held_P[prompt_N]
    return examples.among(~held_N), examples.among(held_N)


def _held_out(prompts: int, share: float, seed: int, name: str) -> "array[int]":
    """The held-out prompts, as indices in order of first occurrence."""
    order = array("q", range(prompts))
    random.Random(seed).shuffle(order)
    count = max(2, round(share * prompts))
    if prompts < 4:
        raise InputError(
            f"stage {name}: its data has {prompts} different prompt{'' if prompts == 1 else 's'}, but training and "
            f"validation need 2 each; provide at least 4, or remove `validation` (now {share})"
        )
    if (left := prompts - count) < 2:
        raise InputError(
            f"stage {name}: a share of {share} of {prompts} different prompts leaves {left} to train on, which needs "
            "2; lower the share, provide more prompts, or remove `validation`"
        )
    return order[:count]


def too_long(settings: FixedTraining, context: Context, record: Record, length: int) -> str:
    """The reason for dropping a record of `length` tokens. Raises InputError if `overflow` is error."""
    if settings.overflow == "error":
        raise InputError(
            f"stage {context.name}: record {record.id} has {length} tokens, max_length is {settings.max_length}; raise "
            "max_length, or choose another overflow"
        )
    return "too_long"


@dataclass
class Rendering:
    """What turns records of turns into examples shares: the template's marks and its BOS, and `longest`, the largest
    number of tokens of a sequence. `counts` counts cuts, and records whose system turn the template replaces.

    Raises InputError if the template cannot be trained with, or if a length exceeds the model's context.
    """

    settings: FixedTraining
    context: Context
    model: LoadedModel
    bos: tuple[int, ...] = field(init=False)
    longest: int = field(init=False)
    marks: Marks = field(init=False)
    replaces: Callable[[Sequence[Message]], bool] = field(init=False)
    counts: Counter[str] = field(default_factory=Counter, init=False)

    def __post_init__(self) -> None:
        self.bos = check_template(self.model.template, self.model.tokenizer).bos
        self.longest = length_limit(self.settings, self.context, self.model)
        self.marks = Marks.of(self.model.template, self.model.tokenizer)
        self.replaces = replacing(self.model.template)

    def note_systems(self, messages: Sequence[Message]) -> None:
        """Counts a record if the template does not write one of its system turns."""
        if self.replaces(messages):
            self.counts[REPLACED] += 1


def length_limit(settings: FixedTraining, context: Context, model: LoadedModel) -> int:
    """`max_length`, or the model's context. Raises InputError if it exceeds the context."""
    return window_of(settings.max_length, context, model)


def window_of(max_length: int | None, context: Context, model: LoadedModel) -> int:
    """The longest sequence, in tokens: `max_length`, or the model's context. Raises InputError if `max_length` exceeds
    the context, or if neither is known."""
    window = context_of(model.net.config.get_text_config().to_dict())
    if max_length is None and window is not None:
        return window
    if max_length is None:
        raise InputError(
            f"stage {context.name}: max_length is not set, and {model.name} does not specify its context (its "
            "config.json has no max_position_embeddings): set max_length to the longest text, in tokens, that it was "
            "trained on"
        )
    if window is not None and max_length > window:
        raise InputError(
            f"stage {context.name}: max_length is {max_length}, but the model's context is {window} tokens"
        )
    return max_length


def check_fits(context: Context, longest: int, setting: str) -> None:
    """Raises StageError if the longest example, which is never cut, is larger than the micro-batch that fits into
    memory according to `micro_batch_tokens: auto`. `setting` is the setting that limits its length."""
    if context.fits is not None and longest > context.fits:
        raise StageError(
            f"stage {context.name}: the longest example has {longest} tokens, but the available memory only fits a "
            f"micro-batch of {context.fits} tokens. Lower {setting}, or set activation_checkpointing: true, lora, or "
            "optimizer: adamw-8bit"
        )


def inner(context: Context, name: str) -> Context:
    """The context of a training inside a stage, such as a control: its own folder, with the stage's log and seed."""
    folder = context.folder / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    return replace(context, folder=folder)


# --- order ------------------------------------------------------------------------------------------------------------


class BatchSource(Protocol):
    """Selects the examples of each step. `take` is called once per step, in order. `state` is what does not follow from
    the step alone. `metrics` are logged with the step taken last."""

    @property
    def total_steps(self) -> int: ...
    def take(self, step: int) -> Sequence[Example]: ...
    def metrics(self) -> dict[str, float]: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...


class ShuffledEpochs:
    """Shuffled epochs in a row, cut into batches. Only the last batch may be smaller."""

    def __init__(self, settings: FixedTraining, examples: Sequence[Example], seed: int) -> None:
        self.examples = Epochs(examples, seed)
        self.size = settings.batch_size
        exact = (settings.epochs or 1.0) * len(examples)
        self.end = max(1, round(exact)) if settings.steps is None else settings.steps * self.size
        self.seen = 0

    @property
    def total_steps(self) -> int:
        return -(-self.end // self.size)

    def used(self) -> Collection[int]:
        """The places of all examples that training takes."""
        return self.examples.used(self.end)

    def take(self, step: int) -> list[Example]:
        places = range(step * self.size, min((step + 1) * self.size, self.end))
        self.seen = places.stop
        return self.examples.take(places)

    def metrics(self) -> dict[str, float]:
        return {"epoch": self.seen / len(self.examples.items)}

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Does nothing: everything follows from the step."""
