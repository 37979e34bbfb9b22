"""Runs the benchmark `chat_health`."""

from collections.abc import Iterator, Mapping, Sequence

from togi.core.records import Prompt
from togi.evaluate.benchmarks.chat_health import Reply, check_up
from togi.evaluate.benchmarks.table import Table, measured, paired
from togi.stages.evaluation.benchmarks.chat_health import ChatHealth
from togi.stages.evaluation.benchmarks.rehearsed_work import shown
from togi.stages.evaluation.benchmarks.room_work import Room, Said
from togi.stages.rehearsal_work import Rehearsed
from togi.text.language import detect

LISTED = 6
"""Leaked strings to report for each model, at most."""


def run(settings: ChatHealth, room: Room) -> Table:
    prompts: list[Prompt] = room.records(settings.prompts)
    params = settings.params(seed=room.seed if settings.seed is None else settings.seed, n=settings.samples)
    said = {name: room.answers(name, prompts, params) for name in room.subjects}
    room.count("no_answer", sum(one.failed for own in said.values() for group in own for one in group))
    room.note(language=settings.language)
    asked = [prompt.text for prompt in prompts]
    found = check_up(asked, {name: [_replies(group) for group in own] for name, own in said.items()}, detect,
                     settings.language)  # fmt: skip
    owners = [prompt.id for prompt in prompts for _ in range(settings.samples)]
    return Table(
        benchmark=room.name,
        columns=found.columns,
        cells=measured(found.columns, found.values, room.bootstrap, owners),
        rows=len(prompts),
        baseline=room.baseline,
        differences=paired(found.columns, found.values, room.baseline, room.bootstrap, owners)
        if room.baseline in found.values
        else {},
        items=[f"{name}.{place % settings.samples}" for place, name in enumerate(owners)],
        owners=owners,
        values=found.values,
        dropped=room.dropped,
        leaks=room.leaks(prompts),
        notes=_leaked(found.leaked),
        manifest=room.manifest(),
        level=room.level,
    )


def rehearse(settings: ChatHealth, room: Room) -> Iterator[Rehearsed]:
    prompts: list[Prompt] = room.records(settings.prompts)
    return shown(room, room.subjects, prompts, settings.max_tokens)


def _replies(group: Sequence[Said]) -> list[Reply | None]:
    return [
        None if one.failed else Reply(text=one.text, closed=one.closed, cut=one.stop == "length", tokens=one.tokens)
        for one in group
    ]


def _leaked(found: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Notes which chat-template strings leak into how many answers of each model, the most common first."""
    told = []
    for name, marks in found.items():
        first = sorted(marks.items(), key=lambda mark: -mark[1])[:LISTED]
        if first:
            told.append(f"answers of {name} leak " + ", ".join(f"{mark} ({count})" for mark, count in first))
    return told
