"""Reads a judge's log-probabilities of A and B instead of its text: small judges write no clear verdict."""

from collections.abc import Sequence

from togi.core.errors import GraderError
from togi.core.records import Prompt
from togi.core.settings import ModelRef
from togi.judge.contests import Weighed, weigh
from togi.stages.evaluation.benchmarks.room_work import Room

LETTERS = ("A", "B")


def weighed(room: Room, judge: ModelRef, questions: Sequence[Prompt], phase: str) -> list[Weighed | None]:
    """The judge's preference for each pair of consecutive questions, which show the same two choices in both orders;
    None if a request failed, which counts as `failed`."""
    found = room.choices(judge, questions, LETTERS, phase)
    room.count("failed", sum(isinstance(margin, GraderError) for margin in found))
    return [
        None if isinstance(first, GraderError) or isinstance(second, GraderError) else weigh(first, second)
        for first, second in zip(found[::2], found[1::2], strict=True)
    ]
