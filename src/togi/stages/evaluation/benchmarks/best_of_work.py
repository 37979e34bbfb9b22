"""Best-of-k rows for `reward_accuracy`: joins the pairs of one row, and gives each of its answers a score. A reward
model's scores are its own; a judge grades each answer alone, as the ratings of RewardBench 2."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from togi.core.errors import GraderError, InputError
from togi.core.records import Message, Pair, Prompt, SamplingParams
from togi.core.seeds import content_id, digest
from togi.core.settings import ModelRef, Ref
from togi.evaluate.benchmarks.best_of import Question, Ranked, Ties, best_of, with_ties
from togi.evaluate.benchmarks.reward_accuracy import Labelled, accuracy_table
from togi.evaluate.benchmarks.table import Table
from togi.judge.prompts import Case, JudgePrompt, load_prompt, own_prompt
from togi.judge.reading import read_grade
from togi.rewards.model import without_system
from togi.stages.evaluation.benchmarks.asking_work import Asking
from togi.stages.evaluation.benchmarks.reward_accuracy import RewardAccuracy
from togi.stages.evaluation.benchmarks.room_work import Room
from togi.stages.judging_work import questioned

SCALE = (1, 10)
UNREADABLE = -1.0
"""The score of an answer whose grade cannot be read, as in RewardBench 2: below all grades."""
TIES_ROW = re.compile(r"(ref|tied):(\d+)")
Answer = tuple[tuple[Message, ...], tuple[Message, ...]]
"""A prompt and an answer to it."""


@dataclass(frozen=True, slots=True)
class Row:
    """The pairs of one row, with what the table needs to know of the first one. `mark` is what `best_of` names."""

    mark: str
    pairs: Sequence[Pair]
    told: Labelled

    @property
    def right(self) -> list[Answer]:
        return [(tuple(pair.prompt), tuple(pair.chosen)) for pair in self.pairs]

    @property
    def wrong(self) -> list[Answer]:
        return [(tuple(pair.prompt), tuple(pair.rejected)) for pair in self.pairs]

    def ranked(self, scores: Mapping[Answer, float | None]) -> Ranked | None:
        """Its scores; None if one is missing."""
        right = [scores[answer] for answer in dict.fromkeys(self.right)]
        wrong = [scores[answer] for answer in self.wrong]
        known = Ranked([one for one in right if one is not None], [one for one in wrong if one is not None])
        return known if (len(known.right), len(known.wrong)) == (len(right), len(wrong)) else None


def run(settings: RewardAccuracy, room: Room, rows: Sequence[Row]) -> tuple[Table, float]:
    """(the table, the accuracy of a subject that chooses by chance)."""
    plain = check(settings, room, rows)
    answers = list(dict.fromkeys(chain.from_iterable((*row.right, *row.wrong) for row in rows)))
    scores = {name: _scores(settings, room, name, ref, answers) for name, ref in room.subjects.items()}
    told = [replace(row.told, chosen=0, rejected=0) for row in plain]  # lengths of such rows are not compared
    readings = {name: [best_of(row.ranked(own)) for row in plain] for name, own in scores.items()}
    found = accuracy_table(room.name, told, readings, room.bootstrap, room.baseline or "")
    if len(plain) < len(rows):
        found = with_ties(found, _ties(rows, scores), told, readings, room.bootstrap)
    chance = [1 / (1 + len(row.wrong)) for row in plain]
    return found, sum(chance) / max(len(chance), 1)


def check(settings: RewardAccuracy, room: Room, rows: Sequence[Row]) -> list[Row]:
    """The rows that are not of the subset Ties. Raises InputError if one has several right answers."""
    plain = [row for row in rows if not TIES_ROW.fullmatch(row.mark)]
    for row in plain:
        _check(settings, room, row)
    return plain


def joined(marked: Sequence[tuple[Ref, str, Pair, Labelled]]) -> list[Row]:
    """The rows of pairs, each with its set, the text that marks its row, and what the table needs to know of it."""
    rows: dict[tuple[Ref, str], list[tuple[Pair, Labelled]]] = {}
    for ref, mark, pair, told in marked:
        rows.setdefault((ref, mark), []).append((pair, told))
    return [Row(mark, [pair for pair, _ in own], own[0][1]) for (_, mark), own in rows.items()]


def _check(settings: RewardAccuracy, room: Room, row: Row) -> None:
    count = len(dict.fromkeys(row.right))
    if count > 1:
        raise InputError(
            f"{room.name}: best_of: the pairs of ${row.told.split} with {settings.best_of} {row.mark!r} have {count} "
            "different right answers or prompts; name a column that marks the pairs of one prompt with one right "
            "answer (rows of the subset Ties of RewardBench 2 are marked ref:N and tied:N), or remove best_of"
        )


def _ties(rows: Sequence[Row], scores: Mapping[str, Mapping[Answer, float | None]]) -> Ties:
    """The questions of Ties, in the order in which they first appear."""
    found: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        if (own := TIES_ROW.fullmatch(row.mark)) is not None:
            found.setdefault((row.told.split, int(own[2])), {})[own[1]] = row
    firsts = [next(iter(own.values())).told for own in found.values()]
    categories = list(dict.fromkeys(row.told.category for own in found.values() for row in own.values()))

    def question(own: Mapping[str, Row], of: Mapping[Answer, float | None]) -> Question:
        ref, tied = (None if (row := own.get(kind)) is None else row.ranked(of) for kind in ("ref", "tied"))
        return Question(ref, tied)

    return Ties(
        names=[first.id for first in firsts],
        prompts=[first.prompt for first in firsts],
        category=categories[0] if len(categories) == 1 else "",
        questions={name: [question(own, of) for own in found.values()] for name, of in scores.items()},
    )


# --- scores -----------------------------------------------------------------------------------------------------------


def _scores(
    settings: RewardAccuracy, room: Room, name: str, ref: Ref, answers: Sequence[Answer]
) -> dict[Answer, float | None]:
    """The score of each answer; None for one that has none."""
    if room.kind(ref) == "scorer":
        scores = talk_scores(settings, room, name, ref, [(*prompt, *answer) for prompt, answer in answers])
        room.count("no_score", scores.count(None))
    else:
        scores = _grades(settings, room, name, ModelRef(ref), answers)
    return dict(zip(answers, scores, strict=True))


def talk_scores(
    settings: RewardAccuracy, room: Room, name: str, ref: Ref, talks: Sequence[tuple[Message, ...]]
) -> list[float | None]:
    """A reward model's score of the last turn of each conversation; None for one that cannot be scored."""
    shown = without_system if settings.system == "drop" else tuple
    found = room.scores(ref, [(shown(talk[:-1]), talk[-1].content) for talk in talks], f"scores-{name}")
    return [None if isinstance(score, GraderError) else score for score in found]


def _grades(
    settings: RewardAccuracy, room: Room, name: str, ref: ModelRef, answers: Sequence[Answer]
) -> list[float | None]:
    """A judge's grade of each answer; None if the request failed."""
    prompt = own_prompt("graded", settings.language)
    if settings.prompt is not None:
        prompt = load_prompt(Path(settings.prompt), "graded", settings.prompt_name)
    questions = [_question(prompt, *answer) for answer in answers]
    room.note(judge_prompt=digest([prompt.system, prompt.source])[:16], read="grades", scale=list(SCALE))
    params = SamplingParams(temperature=settings.temperature, max_tokens=settings.max_tokens, seed=room.seed)
    how = Asking(params, f"grades-{name}", retries=settings.retries, judge=ref)
    found = room.ask(questions, lambda text: _read(prompt, text), how)
    gone = [each.failed and not each.values for each in found]
    room.count("failed", sum(gone))
    room.count("no_verdict", sum(not (lost or each.values) for lost, each in zip(gone, found, strict=True)))
    return [
        None if lost else each.values[0] if each.values else UNREADABLE for lost, each in zip(gone, found, strict=True)
    ]


def _question(prompt: JudgePrompt, asked: tuple[Message, ...], answer: tuple[Message, ...]) -> Prompt:
    low, high = SCALE
    text = "\n".join(message.content for message in answer if message.role == "assistant")
    turns = [[turn.role, turn.content] for turn in (*asked, *answer)]
    case = Case(messages=asked, answers=(text,), low=low, high=high)
    return questioned(prompt, case, content_id([turns, "grade"]))


def _read(prompt: JudgePrompt, text: str) -> float | None:
    """A grade on the scale, with the method of the prompt's file if it has one."""
    low, high = SCALE
    grade = read_grade(text, low, high) if prompt.read is None else prompt.read(text)
    return grade if grade is not None and low <= grade <= high else None
