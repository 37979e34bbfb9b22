"""Runs the benchmark `answers`."""

from collections.abc import Iterator, Sequence

from togi.core.errors import GraderError
from togi.core.records import Prompt
from togi.evaluate.benchmarks.table import Table, measured, paired
from togi.evaluate.table import Metric
from togi.stages.evaluation.benchmarks.answers import Answers
from togi.stages.evaluation.benchmarks.rehearsed_work import shown
from togi.stages.evaluation.benchmarks.room_work import Room, Said
from togi.stages.rehearsal_work import Rehearsed

CLOSED = Metric(
    name="ended properly", higher_is_better=True, note="share of answers that pass the terminator gate", share=True
)
LENGTH = Metric(name="length (tokens)")
CHARACTERS = Metric(name="length (characters)")
REWARD = Metric(name="reward", higher_is_better=True, note="text without terminator")


def run(settings: Answers, room: Room) -> Table:
    prompts: list[Prompt] = room.records(settings.prompts)
    params = settings.params(seed=room.seed if settings.seed is None else settings.seed, n=settings.samples)
    given = {name: _flat(room.answers(name, prompts, params)) for name in room.subjects}
    owners = [prompt for prompt in prompts for _ in range(settings.samples)]
    counted = all(said.tokens or not said.text for answers in given.values() for said in answers)
    length = LENGTH if counted else CHARACTERS
    columns = [CLOSED, length, *([REWARD] if settings.reward is not None else [])]
    values = {
        name: {
            CLOSED.name: [None if said.failed else float(said.closed) for said in answers],
            length.name: [None if said.failed else _length(said, counted) for said in answers],
            **({REWARD.name: _rewards(settings, room, name, owners, answers)} if settings.reward is not None else {}),
        }
        for name, answers in given.items()
    }
    room.count("no_answer", sum(said.failed for answers in given.values() for said in answers))
    names = [prompt.id for prompt in owners]
    return Table(
        benchmark=room.name,
        columns=columns,
        cells=measured(columns, values, room.bootstrap, names),
        rows=len(prompts),
        baseline=room.baseline,
        differences=paired(columns, values, room.baseline, room.bootstrap, names) if room.baseline in values else {},
        items=[f"{name}.{place % settings.samples}" for place, name in enumerate(names)],
        owners=names,
        values=values,
        dropped=room.dropped,
        leaks=room.leaks(prompts),
        manifest=room.manifest(),
        level=room.level,
    )


def rehearse(settings: Answers, room: Room) -> Iterator[Rehearsed]:
    prompts: list[Prompt] = room.records(settings.prompts)
    return shown(room, room.subjects, prompts, settings.max_tokens)


def _flat(groups: Sequence[Sequence[Said]]) -> list[Said]:
    return [said for group in groups for said in group]


def _length(said: Said, counted: bool) -> float:
    return float(said.tokens if counted else len(said.text))


def _rewards(
    settings: Answers, room: Room, name: str, owners: Sequence[Prompt], answers: Sequence[Said]
) -> list[float | None]:
    """The score of each answer; None for an answer without one."""
    assert settings.reward is not None
    asked = [(prompt.messages, said.text) for prompt, said in zip(owners, answers, strict=True) if not said.failed]
    found = iter(room.scores(settings.reward, asked, f"reward-{name}"))
    scores = [None if said.failed else next(found) for said in answers]
    room.count("no_score", sum(isinstance(score, GraderError) for score in scores))
    return [None if isinstance(score, GraderError) else score for score in scores]
