"""Runs the benchmark `graded`."""

from collections.abc import Iterator, Sequence

from togi.core.errors import InputError
from togi.core.records import Prompt
from togi.evaluate.benchmarks import grades
from togi.evaluate.benchmarks.table import Table
from togi.stages.evaluation.benchmarks.graded import GradedSet
from togi.stages.evaluation.benchmarks.judged_work import (
    Bench,
    Material,
    Speaking,
    frame,
    judge_prompts,
    measured,
    references_of,
)
from togi.stages.evaluation.benchmarks.room_work import Room
from togi.stages.rehearsal_work import Rehearsed


def run(settings: GradedSet, room: Room) -> Table:
    questions: list[Prompt] = room.records(settings.questions)
    bench = _bench(settings, room, questions)
    speaking = Speaking(
        settings=settings,
        room=room,
        temperature=lambda question: settings.temperature,
        system=settings.spoken_system,
    )
    judged = bench.judge({subject: speaking.hold(subject, questions) for subject in measured(room)})
    return grades.table(judged, frame(room, questions))


def preflight(settings: GradedSet) -> None:
    judge_prompts(settings, settings.prompt_name)


def rehearse(settings: GradedSet, room: Room) -> Iterator[Rehearsed]:
    questions: list[Prompt] = room.records(settings.questions)
    return _bench(settings, room, questions).rehearse(questions)


def _bench(settings: GradedSet, room: Room, questions: Sequence[Prompt]) -> Bench:
    return Bench(
        settings=settings,
        room=room,
        prompts=judge_prompts(settings, settings.prompt_name),
        material=_material(settings, room, questions),
        scale=settings.scale,
        category=settings.category,
    )


def _material(settings: GradedSet, room: Room, questions: Sequence[Prompt]) -> dict[str, Material]:
    """What the judge is shown with each question. Raises InputError if a question has no text in the rubric column."""
    rubrics = {question.id: question.extra.get(settings.rubric) for question in questions} if settings.rubric else {}
    wrong = [name for name, rubric in rubrics.items() if not isinstance(rubric, str)]
    if wrong:
        columns = ", ".join(dict.fromkeys(name for question in questions for name in question.extra)) or "none"
        raise InputError(
            f"{room.name}: rubric: {len(wrong)} of {len(questions)} questions have no text in column "
            f"{settings.rubric!r}; their other columns are {columns}"
        )
    return {
        question.id: Material(
            references=references_of(question) if settings.reference else (), rubric=rubrics.get(question.id)
        )
        for question in questions
    }
