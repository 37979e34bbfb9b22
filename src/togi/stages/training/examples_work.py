"""Examples of training on fixed data: reading records, splitting them, and the order in which steps take them.

What a step takes follows from the settings, the data and the step, so a run that was killed goes on with the same bits.
"""

import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from togi.core.errors import InputError, StageError
from togi.core.records import Record
from togi.core.seeds import derive
from togi.core.settings import Ref
from togi.model.inspect import context_of
from togi.model.load import LoadedModel
from togi.stages.context import Context
from togi.stages.seen_prompts import keep_marks
from togi.stages.spoken import NEARLY_ALL
from togi.stages.training.epochs import Epochs
from togi.stages.training.example_work import Example
from togi.stages.training.optimisation import FixedTraining
from togi.stages.training.token_files_work import Stored
from togi.stages.training.tokens_work import Border, tokenised, unrendered_warning

# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Data:
    """Examples to train on and to validate on; `warnings` (name, message) become alarms when training begins. `system`
    is the system turn that nearly all examples to train on begin with."""

    training: Sequence[Example]
    validation: Sequence[Example] = ()
    warnings: list[tuple[str, str]] = field(default_factory=list)
    system: str | None = None


def read(settings: FixedTraining, context: Context, refs: Sequence[Ref], border: Border) -> Data:
    """The examples that `border` makes of the records of `refs`, and those of `validation`: as tokens on the disk.

    Raises InputError where nothing is left to train on, or where the data cannot be split as asked for.
    """
    stored, told = _stored(settings, context, refs, border)
    if not len(stored):
        raise InputError(f"stage {context.name}: every record was dropped: {context.drop_reasons()}{_why(told)}")
    held: Stored | None = None
    if isinstance(settings.validation, float):
        stored, held = split_stored(stored, settings.validation, derive(context.seed, "held_out"), context.name)
    elif settings.validation is not None:
        held, more = _stored(settings, context, [settings.validation], border)
        told += more
        if not len(held):
            raise InputError(f"stage {context.name}: no record of {settings.validation} is left to validate on")
        told += _overlap(stored, held)
    keep_marks(context, settings.init, stored.column("mark"))
    return Data(stored, () if held is None else held, told, stored.common_system(NEARLY_ALL))


def _stored(
    settings: FixedTraining, context: Context, refs: Sequence[Ref], border: Border
) -> tuple[Stored, list[tuple[str, str]]]:
    """The examples of the records of `refs`, which are counted, and warnings."""
    files = [tokenised(settings, context, ref, border) for ref in refs]
    context.count_in(sum(file.more["records"] for file in files))
    return Stored(files), unrendered_warning(files)


def _overlap(training: Stored, held_out: Stored) -> list[tuple[str, str]]:
    """A warning where examples to validate on have a prompt that is trained on."""
    shared = int(np.isin(held_out.column("prompt"), training.column("prompt")).sum())
    message = f"{shared} of {len(held_out)} validation examples have a prompt that is trained on"
    return [("validation_overlap", message)] if shared else []


def _why(told: Sequence[tuple[str, str]]) -> str:
    return "".join(f"; {message}" for _, message in told)


def split(examples: Sequence[Example], share: float, seed: int, name: str) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples; those of one prompt stand on one side, and either side has two prompts.

    Raises InputError where there are too few prompts.
    """
    prompts = list(dict.fromkeys(example.prompt for example in examples))
    held = {prompts[number]: None for number in _held_out(len(prompts), share, seed, name)}
    return [e for e in examples if e.prompt not in held], [e for e in examples if e.prompt in held]


def split_stored(examples: Stored, share: float, seed: int, name: str) -> tuple[Stored, Stored]:
    """`split`, of examples on the disk."""
    _, first_P, prompt_N = np.unique(examples.column("prompt"), return_index=True, return_inverse=True)
    held_P = np.zeros(len(first_P), bool)
    held_P[np.argsort(first_P)[_held_out(len(first_P), share, seed, name)]] = True
    held_N = held_P[prompt_N]
    return examples.among(~held_N), examples.among(held_N)


def _held_out(prompts: int, share: float, seed: int, name: str) -> "array[int]":
    """Which prompts are held out, by their numbers in the order in which they first come."""
    order = array("q", range(prompts))
    random.Random(seed).shuffle(order)
    count = max(2, round(share * prompts))
    if count > prompts - 2:
        raise InputError(
            f"stage {name}: examples of {prompts} prompts cannot be split into training and validation with a "
            f"share of {share}; make at least 4, lower the share, or leave `validation` out"
        )
    return order[:count]


def too_long(settings: FixedTraining, context: Context, record: Record, length: int) -> str:
    """The reason for dropping a record of `length` tokens. Raises InputError where the settings want an error."""
    if settings.overflow == "error":
        raise InputError(
            f"stage {context.name}: record {record.id} has {length} tokens, max_length is {settings.max_length}; raise "
            "max_length or set overflow to what should happen"
        )
    return "too_long"


def length_limit(settings: FixedTraining, context: Context, model: LoadedModel) -> int:
    """`max_length`, or the model's context. Raises InputError where it is more than the context."""
    return window_of(settings.max_length, context, model)


def window_of(max_length: int | None, context: Context, model: LoadedModel) -> int:
    """The longest sequence, in tokens: `max_length`, or the model's context. Raises InputError where it is more, and
    where neither is known."""
    window = context_of(model.net.config.get_text_config().to_dict())
    if max_length is None and window is not None:
        return window
    if max_length is None:
        raise InputError(
            f"stage {context.name}: max_length is not set, and {model.name} does not say how long a text it takes (its "
            "config.json has no max_position_embeddings): set max_length to the longest text, in tokens, that it was "
            "trained on"
        )
    if window is not None and max_length > window:
        raise InputError(
            f"stage {context.name}: max_length is {max_length}, but the model's context is {window} tokens"
        )
    return max_length


def check_fits(context: Context, longest: int, setting: str) -> None:
    """Raises StageError where `micro_batch_tokens: auto` found no room for the longest example, which is never cut;
    `setting` is what bounds its length."""
    if context.fits is not None and longest > context.fits:
        raise StageError(
            f"stage {context.name}: the longest example has {longest} tokens, but the memory at hand has room for a "
            f"micro-batch of {context.fits} tokens. Lower {setting}, or set activation_checkpointing: true, lora, or "
            "optimizer: adamw-8bit"
        )


def inner(context: Context, name: str) -> Context:
    """The context of a training inside a stage, such as a control: a folder of its own, the same voice and seed."""
    folder = context.folder / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    return replace(context, folder=folder)


# --- order ------------------------------------------------------------------------------------------------------------


class BatchSource(Protocol):
    """Which examples each step trains on. `take` is called once a step, in order; `state` is what does not follow from
    the step alone; `metrics` are logged with the step that was taken last."""

    @property
    def total_steps(self) -> int: ...
    def take(self, step: int) -> Sequence[Example]: ...
    def metrics(self) -> dict[str, float]: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...


class ShuffledEpochs:
    """Shuffled epochs laid end to end and cut into batches; only the last batch may be smaller."""

    def __init__(self, settings: FixedTraining, examples: Sequence[Example], seed: int) -> None:
        self.examples = Epochs(examples, seed)
        self.size = settings.batch_size
        exact = (settings.epochs or 1.0) * len(examples)
        self.end = max(1, round(exact)) if settings.steps is None else settings.steps * self.size
        self.seen = 0

    @property
    def total_steps(self) -> int:
        return -(-self.end // self.size)

    def take(self, step: int) -> list[Example]:
        places = range(step * self.size, min((step + 1) * self.size, self.end))
        self.seen = places.stop
        return self.examples.take(places)

    def metrics(self) -> dict[str, float]:
        return {"epoch": self.seen / len(self.examples.items)}

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to take up: everything follows from the step."""
