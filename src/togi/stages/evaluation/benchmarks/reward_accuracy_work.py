"""Runs the benchmark `reward_accuracy`: scorers score both answers of a pair, judges read them in both orders."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from togi.core.errors import InputError
from togi.core.files import read_object
from togi.core.records import Message, Pair, Prompt, SamplingParams
from togi.core.seeds import content_id, digest
from togi.core.settings import ModelRef, Ref, ScorerRef, refs_of
from togi.evaluate.benchmarks.reward_accuracy import (
    Labelled,
    Reading,
    accuracy_table,
    judged,
    near_chance,
    scored,
)
from togi.evaluate.benchmarks.table import Table
from togi.judge.asking import Answered
from togi.judge.contests import preference
from togi.judge.prompts import Case, JudgePrompt, load_prompt, own_prompt
from togi.judge.reading import Choice, read_choice
from togi.stages.evaluation.benchmarks import best_of_work
from togi.stages.evaluation.benchmarks.asking_work import Asking
from togi.stages.evaluation.benchmarks.reward_accuracy import RewardAccuracy
from togi.stages.evaluation.benchmarks.room_work import Room
from togi.stages.evaluation.benchmarks.weighed_work import weighed
from togi.stages.rehearsal_work import Rehearsed

SECOND_BENCH = "allenai/reward-bench-2"
CARD = {"llm-jp/llm-jp-chatbot-arena-conversations": 448, "nvidia/HelpSteer3": 283}
"""Counts of pairs on the card of ca-reward-3b-ja: single-turn, Japanese, without ties."""


def run(settings: RewardAccuracy, room: Room) -> Table:
    _check_system(settings, room)
    kept = _kept(settings, room)
    pairs = [pair for _, pair in kept]
    rows = [_labelled(settings, ref, pair) for ref, pair in kept]
    room.note(pairs=digest([row.id for row in rows])[:16], **({"system": "drop"} if settings.system == "drop" else {}))
    if settings.best_of:
        found, chance = best_of_work.run(settings, room, _joined(settings, kept, rows))
    else:
        readings = {name: _read(settings, room, name, ref, pairs) for name, ref in room.subjects.items()}
        found, chance = accuracy_table(room.name, rows, readings, room.bootstrap, room.baseline or ""), 0.5
    return replace(
        found,
        dropped=room.dropped,
        leaks=room.leaks([Prompt(id=pair.id, messages=pair.prompt) for pair in pairs]),
        notes=[*near_chance(found, chance), *_notes(settings, room)],
        manifest=room.manifest(),
    )


def preflight(settings: RewardAccuracy) -> None:
    if settings.prompt is not None:
        load_prompt(Path(settings.prompt), "graded" if settings.best_of else "pairwise", settings.prompt_name)


def rehearse(settings: RewardAccuracy, room: Room) -> Iterator[Rehearsed]:
    """Yields no rows: scorers and judges read pairs in forms of their own."""
    _check_system(settings, room)
    kept = _kept(settings, room)
    rows = [_labelled(settings, ref, pair) for ref, pair in kept]
    if settings.best_of:
        best_of_work.check(settings, room, _joined(settings, kept, rows))
    elif any(not isinstance(ref, ScorerRef) for ref in room.subjects.values()):
        prompt = _prompt(settings)
        for _, pair in kept:
            _question(prompt, pair, False, settings.read == "text")
    return iter(())


def _check_system(settings: RewardAccuracy, room: Room) -> None:
    """Raises InputError if nothing reads `system`."""
    if settings.system == "drop" and not any(isinstance(ref, ScorerRef) for ref in room.subjects.values()):
        raise InputError(
            f"{room.name}: system: drop is read by reward models, and the models here are judges, which read whole "
            "conversations; remove it"
        )


def _kept(settings: RewardAccuracy, room: Room) -> list[tuple[Ref, Pair]]:
    """The usable pairs with their sets; drops the others. Raises InputError if none is left."""
    kept = [(ref, pair) for ref in refs_of(settings.pairs) for pair in room.records(ref) if _usable(room, pair)]
    if not kept:
        raise InputError(
            f"{room.name}: no pair is left: {room.dropped}; at least one pair with a human preference is needed"
        )
    return kept


def _joined(
    settings: RewardAccuracy, kept: Sequence[tuple[Ref, Pair]], rows: Sequence[Labelled]
) -> list[best_of_work.Row]:
    """The pairs, joined by the column `best_of`."""
    marks = [_column(ref, pair, settings.best_of, "best_of") for ref, pair in kept]
    marked = [(ref, mark, pair, row) for (ref, pair), mark, row in zip(kept, marks, rows, strict=True)]
    return best_of_work.joined(marked)


def _usable(room: Room, pair: Pair) -> bool:
    """Whether people prefer one of two different answers; drops the pair otherwise."""
    if pair.margin == 0:
        room.drop(pair, "tie")
        return False
    if _text(pair.chosen) == _text(pair.rejected):
        room.drop(pair, "same_text")
        return False
    return True


def _text(side: Sequence[Message]) -> str:
    return "\n".join(message.content for message in side if message.role == "assistant")


def _labelled(settings: RewardAccuracy, ref: Ref, pair: Pair) -> Labelled:
    return Labelled(
        id=pair.id,
        prompt=content_id([[turn.role, turn.content] for turn in pair.prompt]),
        split=ref.name,
        category=_column(ref, pair, settings.by, "by") if settings.by else "",
        chosen=len(_text(pair.chosen)),
        rejected=len(_text(pair.rejected)),
    )


def _column(ref: Ref, pair: Pair, name: str, setting: str) -> str:
    """The value of a column as text. Raises InputError for a pair without it."""
    value = pair.extra.get(name)
    if value is None:
        raise InputError(
            f"pair {pair.id} of {ref} has no column {name!r}, which `{setting}` names; it has "
            f"{', '.join(pair.extra) or 'no other columns'}"
        )
    return str(value)


def _read(settings: RewardAccuracy, room: Room, name: str, ref: Ref, pairs: Sequence[Pair]) -> list[Reading]:
    if room.kind(ref) == "scorer":
        return _scored(settings, room, name, ref, pairs)
    return _judged(settings, room, name, ModelRef(ref), pairs)


def _scored(settings: RewardAccuracy, room: Room, name: str, ref: Ref, pairs: Sequence[Pair]) -> list[Reading]:
    sides = [(*pair.prompt, *side) for pair in pairs for side in (pair.chosen, pair.rejected)]
    scores = best_of_work.talk_scores(settings, room, name, ref, sides)
    readings = [scored(one, other) for one, other in zip(scores[::2], scores[1::2], strict=True)]
    room.count("no_score", sum(reading.credit is None for reading in readings))
    return readings


def _judged(settings: RewardAccuracy, room: Room, name: str, ref: ModelRef, pairs: Sequence[Pair]) -> list[Reading]:
    prompt, explain = _prompt(settings), settings.read == "text"
    questions = [_question(prompt, pair, swapped, explain) for pair in pairs for swapped in (False, True)]
    room.note(judge_prompt=_prompt_mark(prompt), read=settings.read)
    verdicts, gone = (_written if explain else _chosen)(settings, room, name, ref, questions)
    return [
        judged(verdicts[place : place + 2], failed=any(gone[place : place + 2])) for place in range(0, len(verdicts), 2)
    ]


def _prompt(settings: RewardAccuracy) -> JudgePrompt:
    if settings.prompt is None:
        return own_prompt("pairwise", settings.language)
    return load_prompt(Path(settings.prompt), "pairwise", settings.prompt_name)


def _written(
    settings: RewardAccuracy, room: Room, name: str, ref: ModelRef, questions: Sequence[Prompt]
) -> tuple[list[float | None], list[bool]]:
    """A judge's preferences for the human choice, read from its texts (None without a verdict), and which requests
    failed. Every second question shows the human choice second."""
    params = SamplingParams(temperature=settings.temperature, max_tokens=settings.max_tokens, seed=room.seed)
    how = Asking(params, f"verdicts-{name}", retries=settings.retries, judge=ref)
    answered = room.ask(questions, read_choice, how)
    verdicts = [_verdict(room, each, bool(place % 2)) for place, each in enumerate(answered)]
    return verdicts, [each.failed and not each.values for each in answered]


def _chosen(
    settings: RewardAccuracy, room: Room, name: str, ref: ModelRef, questions: Sequence[Prompt]
) -> tuple[list[float | None], list[bool]]:
    """The same from a judge's log-probabilities of A and B. Both orders together decide its preference, so that a judge
    with position bias still gives usable verdicts."""
    found = [one for one in weighed(room, ref, questions, f"choices-{name}") for _ in range(2)]
    preferred: list[float | None] = [0.5 if one is None else one.preference for one in found]
    return preferred, [one is None for one in found]


def _question(prompt: JudgePrompt, pair: Pair, swapped: bool, explain: bool) -> Prompt:
    """The pair as the judge reads it: the human choice first, or second if `swapped`."""
    sides = (pair.rejected, pair.chosen) if swapped else (pair.chosen, pair.rejected)
    case = Case(messages=pair.prompt, answers=(_text(sides[0]), _text(sides[1])), explain=explain)
    return Prompt(id=content_id([pair.id, swapped, *([] if explain else ["choice"])]), messages=prompt.messages(case))


def _verdict(room: Room, answered: Answered[Choice], swapped: bool) -> float | None:
    if answered.values:
        return preference(answered.values[0], swapped)
    room.count("failed" if answered.failed else "no_verdict")
    return None


def _prompt_mark(prompt: JudgePrompt) -> str:
    """The hash of a judge's prompt, taken of its text for a case of placeholders."""
    case = Case(messages=(Message("user", "<question>"),), answers=("<first>", "<second>"))
    return digest([[turn.role, turn.content] for turn in prompt.messages(case)])[:16]


def _notes(settings: RewardAccuracy, room: Room) -> list[str]:
    joined = [
        "a row is right if its right answer has the highest score; if n others share it, it counts 1 / (1 + n)",
        *(["a judge grades each answer alone from 1 to 10"] if _judges(room) else []),
    ]
    counts = [_told(settings, room, ref) for ref in refs_of(settings.pairs)]
    return [*(joined if settings.best_of else []), *chain.from_iterable(counts)]


def _judges(room: Room) -> bool:
    return any(room.kind(ref) != "scorer" for ref in room.subjects.values())


def _told(settings: RewardAccuracy, room: Room, ref: Ref) -> list[str]:
    """Notes how many rows were kept and left out when the pairs were read, next to the card's count."""
    folder = room.context.inputs[ref].folder
    if folder is None or not (folder / "summary.json").exists():
        return []
    summary, read = read_object(folder / "summary.json"), read_object(folder / "settings.json")
    counts, drops = summary.get("counts", {}), summary.get("drops", {})
    told = ", ".join(f"{reason} {number:,}" for reason, number in drops.items()) or "none"
    preset = str(read.get("preset"))
    card = CARD.get(preset)
    beside = f"; the card of ca-reward-3b-ja counts {card} in all (published)" if card else ""
    pairwise = f"{ref}: its pairs are counted one by one; set `best_of: id` for its published scores"
    return [
        f"{ref}: {counts.get('out', 0):,} of {counts.get('in', 0):,} rows kept; left out: {told}{beside}",
        *([pairwise] if preset == SECOND_BENCH and not settings.best_of else []),
    ]
