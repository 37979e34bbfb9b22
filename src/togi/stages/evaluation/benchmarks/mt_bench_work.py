"""Runs the benchmark `mt_bench`."""

from collections.abc import Iterator, Sequence

from togi.core.errors import InputError
from togi.core.records import Prompt
from togi.data.question_files import question_name, reference_answers, turns_of
from togi.evaluate.benchmarks import grades
from togi.evaluate.benchmarks.table import Table
from togi.stages.evaluation.benchmarks.judged_work import (
    Bench,
    Material,
    Speaking,
    frame,
    judge_prompts,
    measured,
)
from togi.stages.evaluation.benchmarks.mt_bench import MtBench
from togi.stages.evaluation.benchmarks.room_work import Room
from togi.stages.rehearsal_work import Rehearsed

SCALE = (1, 10)


def run(settings: MtBench, room: Room) -> Table:
    questions: list[Prompt] = room.records(settings.questions)
    material, empty = _material(settings, room, questions)
    speaking = Speaking(
        settings=settings,
        room=room,
        temperature=lambda question: settings.temperatures.get(_category(question), settings.temperature),
        system=settings.spoken_system,
    )
    bench = Bench(settings=settings, room=room, prompts=judge_prompts(settings, None), material=material, scale=SCALE)
    judged = bench.judge({subject: speaking.hold(subject, questions) for subject in measured(room)})
    notes = [f"{empty} reference answers are empty"] if empty else []
    return grades.table(judged, frame(room, questions, notes))


def preflight(settings: MtBench) -> None:
    judge_prompts(settings, None)


def rehearse(settings: MtBench, room: Room) -> Iterator[Rehearsed]:
    questions: list[Prompt] = room.records(settings.questions)
    material, _ = _material(settings, room, questions)
    bench = Bench(settings=settings, room=room, prompts=judge_prompts(settings, None), material=material, scale=SCALE)
    return bench.rehearse(questions)


def _category(question: Prompt) -> str:
    return str(question.extra.get("category") or "")


def _material(settings: MtBench, room: Room, questions: Sequence[Prompt]) -> tuple[dict[str, Material], int]:
    """The reference answers that the judge is shown, by question id, and how many of them are empty. Raises InputError
    for a question of such a category that lacks them."""
    known = {} if settings.references is None else reference_answers(room.records(settings.references))
    found: dict[str, Material] = {}
    for question in questions:
        if _category(question) not in settings.reference_categories:
            continue
        own, turns = known.get(question_name(question), ()), len(turns_of(question))
        if len(own) < turns:
            what = f"{len(own)} reference answers for {turns} turns" if own else "no reference answer"
            cure = f"add it to {settings.references}" if settings.references else "set `references` to their file"
            raise InputError(
                f"{room.name}: question {question_name(question)} ({_category(question)}) has {what}: {cure}, or "
                f"remove {_category(question)} from `reference_categories`"
            )
        found[question.id] = Material(references=own[:turns])
    return found, sum(not text.strip() for each in found.values() for text in each.references)
