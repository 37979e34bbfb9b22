"""Examples of training on fixed data: reading records, splitting them, and the order in which steps take them.

What a step takes follows from the settings, the data and the step, so a run that was killed goes on with the same bits.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from togi.core.errors import InputError, StageError
from togi.core.records import Record
from togi.core.seeds import derive
from togi.core.settings import Ref
from togi.model.forest import Sequence as TokenSequence
from togi.model.inspect import context_of
from togi.model.load import LoadedModel
from togi.stages.context import Context
from togi.stages.seen_prompts import keep_learnt
from togi.stages.spoken import common_system
from togi.stages.training.epochs import Epochs
from togi.stages.training.optimisation import FixedTraining
from togi.text.turns import Unrendered


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """What is never cut: one tree of sequences (a chat has one, a pair two), and the numbers that go with it.

    `prompt` tells which examples must stay on one side of a split. `ref_logp` are the log-probabilities (nats) of the
    sequences under the initial model, each summed over its scored tokens.
    """

    id: str
    prompt: Any
    group: tuple[TokenSequence, ...]
    margin: float | None = None
    ref_logp: tuple[float, ...] | None = None


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Data:
    """Examples to train on and to validate on; `warnings` (name, message) become alarms when training begins. `system`
    is the system turn that nearly all examples to train on begin with."""

    training: list[Example]
    validation: list[Example] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    system: str | None = None


def read(
    settings: FixedTraining, context: Context, refs: Sequence[Ref], make: Callable[[Any], "Example | str"]
) -> Data:
    """The examples that `make` gives for the records of `refs`, and those of `validation`.

    `make` gives a short reason instead of an example for a record that must be dropped. Raises InputError where nothing
    is left to train on, or where the data cannot be split as asked for.
    """
    data = _read(settings, context, refs, make)
    data.system = common_system(example.prompt for example in data.training)
    keep_learnt(context, settings.init, (example.prompt for example in data.training))
    return data


def _read(
    settings: FixedTraining, context: Context, refs: Sequence[Ref], make: Callable[[Any], "Example | str"]
) -> Data:
    records = [record for ref in refs for record in context.records(ref)]
    context.count_in(len(records))
    data = build_examples(context, records, make)
    examples = data.training
    if not examples:
        raise InputError(f"stage {context.name}: every record was dropped: {context.drop_reasons()}{_why(data)}")
    validation = settings.validation
    if validation is None:
        return data
    if isinstance(validation, float):
        sides = split(examples, validation, derive(context.seed, "held_out"), context.name)
        return replace(data, training=sides[0], validation=sides[1])
    held_out_records = context.records(validation)
    context.count_in(len(held_out_records))
    held_out = build_examples(context, held_out_records, make)
    data = replace(data, validation=held_out.training, warnings=[*data.warnings, *held_out.warnings])
    if not data.validation:
        raise InputError(f"stage {context.name}: no record of {validation} is left to validate on")
    known = dict.fromkeys(example.prompt for example in examples)
    shared = sum(example.prompt in known for example in data.validation)
    if shared:
        message = f"{shared} of {len(data.validation)} validation examples have a prompt that is trained on"
        data.warnings.append(("validation_overlap", message))
    return data


def build_examples(context: Context, records: Sequence[Record], make: Callable[[Any], "Example | str"]) -> Data:
    """The examples of records; what gives none is dropped and counted. Records that the template cannot render whole
    (`Unrendered`) are a warning with the first one's reason."""
    data = Data([])
    unrendered: list[str] = []
    for record in records:
        try:
            example = make(record)
        except Unrendered as error:
            unrendered.append(f"{record.id}: {error}")
            example = "not_rendered"
        if isinstance(example, str):
            context.drop(record, example)
        else:
            data.training.append(example)
    if unrendered:
        told = f"{len(unrendered)} of {len(records)} records are dropped; the first is {unrendered[0]}"
        data.warnings.append(("not_rendered", told))
    return data


def _why(data: Data) -> str:
    return "".join(f"; {message}" for _, message in data.warnings)


def split(examples: Sequence[Example], share: float, seed: int, name: str) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples; those of one prompt stand on one side, and either side has two prompts.

    Raises InputError where there are too few prompts.
    """
    prompts = list(dict.fromkeys(example.prompt for example in examples))
    random.Random(seed).shuffle(prompts)
    count = max(2, round(share * len(prompts)))
    if count > len(prompts) - 2:
        raise InputError(
            f"stage {name}: examples of {len(prompts)} prompts cannot be split into training and validation with a "
            f"share of {share}; make at least 4, lower the share, or leave `validation` out"
        )
    held = dict.fromkeys(prompts[:count])
    return [e for e in examples if e.prompt not in held], [e for e in examples if e.prompt in held]


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
