"""Runs the benchmark `safety`."""

from collections.abc import Iterator, Mapping, Sequence

from togi.core.errors import InputError
from togi.core.records import Message, Prompt, Sample
from togi.evaluate.benchmarks import safety
from togi.evaluate.benchmarks.corrected import Pairing, corrected_part
from togi.evaluate.benchmarks.judgments import Judgment
from togi.evaluate.benchmarks.table import Part, Table
from togi.judge.prompts import JudgePrompt, safety_prompt
from togi.judge.published import llmjp_safety
from togi.stages.evaluation.benchmarks.judged_work import (
    Bench,
    Material,
    Speaking,
    Talk,
    frame,
    judge_prompts,
    measured,
    references_of,
)
from togi.stages.evaluation.benchmarks.room_work import Room
from togi.stages.evaluation.benchmarks.safety import Safety
from togi.stages.rehearsal_work import Rehearsed

SCALE = (safety.LOW, safety.HIGH)
Answer = tuple[tuple[tuple[str, str], ...], str]
"""The identity of an answer: the turns before it, without the system turn, and its text."""


def run(settings: Safety, room: Room) -> Table:
    questions: list[Prompt] = room.records(settings.questions)
    bench = _bench(settings, room, questions)
    talks = _talks(settings, room, questions)
    judged = bench.judge(talks)
    answers = {subject: _answers(own) for subject, own in talks.items()}
    refusals = {subject: [safety.refuses(text or "") for _, text in own] for subject, own in answers.items()}
    parts = [] if settings.labels is None else [_corrected(settings, room, judged, answers)]
    return safety.table(judged, refusals, frame(room, questions), parts)


def preflight(settings: Safety) -> None:
    _prompts(settings)


def rehearse(settings: Safety, room: Room) -> Iterator[Rehearsed]:
    questions: list[Prompt] = room.records(settings.questions)
    if settings.labels is not None:
        _labels(settings, room)
    return _bench(settings, room, questions).rehearse(questions)


def _bench(settings: Safety, room: Room, questions: Sequence[Prompt]) -> Bench:
    return Bench(
        settings=settings,
        room=room,
        prompts=_prompts(settings),
        material={q.id: Material(references=references_of(q) if settings.reference else ()) for q in questions},
        scale=SCALE,
        system=settings.spoken_system if settings.protocol == "llm-jp" else None,
        published=llmjp_safety,
    )


def _prompts(settings: Safety) -> dict[str, JudgePrompt]:
    return judge_prompts(settings, settings.prompt_name, safety_prompt(settings.language))


def _talks(settings: Safety, room: Room, questions: Sequence[Prompt]) -> dict[str, list[Talk]]:
    """The conversations of every model, without and with the safety prompt."""
    ways = {"": settings.spoken_system}
    if settings.safety_prompt is not None:
        before = f"{settings.spoken_system}\n\n" if settings.spoken_system else ""
        ways[" with safety prompt"] = f"{before}{settings.safety_prompt}"
    found = {}
    for subject in measured(room):
        for way, system in ways.items():
            speaking = Speaking(
                settings=settings,
                room=room,
                temperature=lambda question: settings.temperature,
                system=system,
                phase="safe-" if way else "",
            )
            found[f"{subject}{way}"] = speaking.hold(subject, questions)
    return found


def _answers(talks: Sequence[Talk]) -> list[tuple[tuple[Message, ...], str | None]]:
    """Every answer with the conversation before it, in the order of the judgments."""
    return [(talk.messages(turn), talk.answers[turn]) for talk in talks for turn in range(len(talk.turns))]


# --- people's labels --------------------------------------------------------------------------------------------------


def _corrected(
    settings: Safety,
    room: Room,
    judged: Mapping[str, Sequence[Judgment]],
    answers: Mapping[str, Sequence[tuple[tuple[Message, ...], str | None]]],
) -> Part:
    """The rates of every subject, corrected by human grades of some of its answers. Answers without a judge's grade are
    left out."""
    said = _labels(settings, room)
    pairings = {}
    for subject, own in judged.items():
        known = [
            (each, None if text is None else said.get(_answer(messages, text)))
            for each, (messages, text) in zip(safety.published_scores(own), answers[subject], strict=True)
            if each.score is not None
        ]
        pairings[subject] = {
            rate.column: Pairing(
                questions=[each.question for each, _ in known],
                judged=[float(rate.takes(each.score or 0.0)) for each, _ in known],
                human=[None if grade is None else float(rate.takes(grade)) for _, grade in known],
            )
            for rate in safety.RATES[:2]
        }
    return corrected_part(pairings, room.level)


def _labels(settings: Safety, room: Room) -> dict[Answer, float]:
    """Human grades by answer; the mean if an answer has several. Raises InputError for a label without a grade from 1
    to 5."""
    assert settings.labels is not None
    found: dict[Answer, list[float]] = {}
    samples: list[Sample] = room.records(settings.labels)
    for sample in samples:
        grade = sample.scores.get(settings.label_score)
        if grade is None or not safety.LOW <= grade <= safety.HIGH:
            known = ", ".join(f"{name} {score}" for name, score in sample.scores.items()) or "none"
            raise InputError(
                f"{room.name}: labels: sample {sample.id} has no grade from 1 to 5 in scores.{settings.label_score}; "
                f"its scores are {known}"
            )
        found.setdefault(_answer(sample.prompt.messages, sample.text), []).append(grade)
    return {answer: sum(grades) / len(grades) for answer, grades in found.items()}


def _answer(messages: Sequence[Message], text: str) -> Answer:
    return tuple((turn.role, turn.content.strip()) for turn in messages if turn.role != "system"), text.strip()
