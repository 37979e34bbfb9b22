"""Shared by the rehearsals of benchmarks: what `togi check` does of each.

A benchmark's `rehearse(settings, room)` reads its questions, renders what it would ask, and raises the errors that
`run` would raise before it asks. Its `preflight(settings)`, if there is one, reads files that need no questions.
"""

from collections.abc import Iterable, Iterator, Sequence

from togi.core.errors import InputError
from togi.core.records import Prompt
from togi.core.settings import Ref
from togi.core.sources import ModelSource
from togi.stages.evaluation.benchmarks.room_work import Room
from togi.stages.rehearsal_work import Rehearsed, asked, prompt_rows, weightless

ANSWER = "<answer>"
"""Stands for an answer that does not exist yet."""


def shown(room: Room, names: Iterable[str], prompts: Sequence[Prompt], max_tokens: int) -> Iterator[Rehearsed]:
    """The prompts as each model with a known tokenizer reads them, once for models that read alike. Raises InputError
    if none leaves a model room for an answer, and for one that a template refuses."""
    read: list[ModelSource] = []
    for name in names:
        source = room.context.model(subject(room, name))
        if source in read or (source.kind == "endpoint" and not source.tokenizer):
            continue
        read.append(source)
        yield from _rows(room, name, prompts, max_tokens)


def subject(room: Room, name: str) -> Ref:
    """The reference to a measured model or the baseline."""
    if name in room.subjects:
        return room.subjects[name]
    assert room.baseline_ref is not None
    return room.baseline_ref


def _rows(room: Room, name: str, prompts: Sequence[Prompt], max_tokens: int) -> list[Rehearsed]:
    overlong: list[str] = []
    model = weightless(room.context, subject(room, name))
    rows = list(prompt_rows(room.context, model, asked(prompts), max_tokens, overlong.append))
    if not rows:
        raise InputError(
            f"stage {room.context.name}: {room.name}: none of {len(prompts)} questions leaves {name} room for "
            f"max_tokens {max_tokens} in its context; lower max_tokens, or use a model with a longer context"
        )
    if overlong:
        room.alarm("prompts_too_long", f"{len(overlong)} prompts leave {name} no room for max_tokens {max_tokens}")
    return rows
