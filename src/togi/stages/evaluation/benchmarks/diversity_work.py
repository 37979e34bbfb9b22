"""Runs the benchmark `diversity`."""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence

from togi.core.errors import InputError
from togi.core.records import Prompt
from togi.core.seeds import derive
from togi.evaluate.benchmarks.diversity import Found, Measure, measure
from togi.evaluate.benchmarks.table import Part, Table, Values, measured, paired
from togi.evaluate.distinct import units_of
from togi.evaluate.statistics import Bootstrap, Floats
from togi.evaluate.table import Metric
from togi.stages.evaluation.benchmarks.diversity import Diversity
from togi.stages.evaluation.benchmarks.rehearsed_work import shown
from togi.stages.evaluation.benchmarks.room_work import Room, Said
from togi.stages.rehearsal_work import Rehearsed


def run(settings: Diversity, room: Room) -> Table:
    prompts: list[Prompt] = room.records(settings.prompts)
    params = settings.params(seed=room.seed if settings.seed is None else settings.seed, n=settings.samples)
    said = {name: room.answers(name, prompts, params) for name in room.subjects}
    kept = _answered(room, prompts, said)
    if not kept:
        raise InputError(f"{room.name}: no prompt was answered by every model, so nothing can be compared")
    read = [prompts[place] for place in kept]
    texts = {name: [one.text for place in kept for one in own[place]] for name, own in said.items()}
    found = measure(texts, _how(settings, room, read))
    room.count("empty", found.left_out)
    room.note(cut=settings.cut, embedder=_embedder(settings, room), units=units_of(settings.language))
    values = {name: {column: _values(own_P) for column, own_P in own.items()} for name, own in found.values.items()}
    columns = [column for column in found.columns if any(_any(own[column.name]) for own in values.values())]
    return Table(
        benchmark=room.name,
        columns=columns,
        cells=measured(columns, values, room.bootstrap),
        rows=len(read),
        baseline=room.baseline,
        differences=paired(columns, values, room.baseline, room.bootstrap) if room.baseline in values else {},
        parts=[_alike(found, list(texts), room.bootstrap)] if len(texts) > 1 else [],
        items=[prompt.id for prompt in read],
        values={name: {column.name: own[column.name] for column in columns} for name, own in values.items()},
        dropped=room.dropped,
        leaks=room.leaks(prompts),
        notes=_notes(settings, found, read),
        manifest=room.manifest(),
        level=room.level,
    )


def rehearse(settings: Diversity, room: Room) -> Iterator[Rehearsed]:
    prompts: list[Prompt] = room.records(settings.prompts)
    _questions(settings, prompts)
    return shown(room, room.subjects, prompts, settings.max_tokens)


def _answered(room: Room, prompts: Sequence[Prompt], said: Mapping[str, Sequence[Sequence[Said]]]) -> list[int]:
    """The indices of prompts without a failed answer; drops the others."""
    kept = []
    for place, prompt in enumerate(prompts):
        if any(one.failed for own in said.values() for one in own[place]):
            room.drop(prompt, "no_answer")
        else:
            kept.append(place)
    return kept


def _how(settings: Diversity, room: Room, prompts: Sequence[Prompt]) -> Measure:
    return Measure(
        samples=settings.samples,
        units=units_of(settings.language),
        embedder=room.embedder(settings.embedder),
        seed=derive(room.seed, "draw"),
        cut=settings.cut,
        draw=settings.draw,
        questions=_questions(settings, prompts),
    )


def _questions(settings: Diversity, prompts: Sequence[Prompt]) -> list[Hashable] | None:
    """The question that each prompt asks. Raises InputError for a prompt without the column."""
    if not settings.question:
        return None
    names: list[Hashable] = []
    for prompt in prompts:
        if settings.question not in prompt.extra:
            raise InputError(
                f"prompt {prompt.id} has no column {settings.question!r}, which `question` names; it has "
                f"{', '.join(prompt.extra) or 'no other columns'}"
            )
        names.append(str(prompt.extra[settings.question]))
    return names


def _embedder(settings: Diversity, room: Room) -> object:
    return room.identity(settings.embedder) if settings.embedder is not None else "hashed runs of characters"


def _values(values_P: Floats) -> list[float | None]:
    """One number for each prompt; None if it is not finite."""
    return [float(one) if math.isfinite(one) else None for one in values_P]


def _any(values: Sequence[float | None]) -> bool:
    return any(value is not None for value in values)


def _alike(found: Found, names: Sequence[str], bootstrap: Bootstrap) -> Part:
    """How similar two models' answers to one prompt are; on the diagonal, how similar a model's own answers are."""
    columns = [Metric(name=f"like {name}", least=-1.0, most=1.0) for name in names]
    values: Values = {one: {f"like {other}": _values(found.alike[one, other]) for other in names} for one in names}
    note = (
        "mean cosine similarity between the answers of two models to the same prompt; on the diagonal, between two "
        "answers of one model, which is the value for two models that answer alike"
    )
    return Part(title="likeness between models", columns=columns, cells=measured(columns, values, bootstrap), note=note)


def _notes(settings: Diversity, found: Found, prompts: Sequence[Prompt]) -> list[str]:
    cut = ", all models' answers to a prompt cut to the shortest of them" if settings.cut else ""
    told = [f"n-grams are made of {units_of(settings.language)}{cut}"]
    if found.draw < len(prompts):
        told.append(f"self-BLEU across prompts reads {found.draw} of {len(prompts)} prompts, drawn by the seed")
    if found.left_out:
        told.append(f"{found.left_out} answers are left out of the comparison because one model's answer is empty")
    return told
