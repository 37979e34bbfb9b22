"""Runs the benchmark `reward_kl`: models sample answers, a reward model scores them, and both the model and the
baseline compute the log-probabilities of the model's answers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from togi.core.errors import GraderError, InputError
from togi.core.records import Prompt, SamplingParams
from togi.core.seeds import digest
from togi.core.settings import ModelRef
from togi.evaluate.benchmarks.reward_kl import Drawn, frontier_table
from togi.evaluate.benchmarks.table import Table
from togi.evaluate.statistics import Floats
from togi.model.load import LoadedModel
from togi.rewards.model import without_system
from togi.stages.evaluation.benchmarks.answer_logp_work import AnswerLogp
from togi.stages.evaluation.benchmarks.rehearsed_work import shown
from togi.stages.evaluation.benchmarks.reward_kl import RewardKl
from togi.stages.evaluation.benchmarks.room_work import UNIT, Room
from togi.stages.models import load_model
from togi.stages.rehearsal_work import Rehearsed, weightless
from togi.text.render import render_prompt

_Group = tuple[list[int], list[tuple[int, ...]]]
"""The token ids of a prompt, and those of each answer to it."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer as stored in the journal: the text without terminator, the token ids with it."""

    text: str
    ids: tuple[int, ...]


def run(settings: RewardKl, room: Room) -> Table:
    assert room.baseline is not None
    refs = _refs(room)
    given: list[Prompt] = room.records(settings.prompts)
    prompts, ids = _readable(settings, room, refs, given)
    counts = {name: settings.best_of if name == room.baseline else settings.samples for name in refs}
    answers = {name: _draw(settings, room, name, ref, prompts, counts[name]) for name, ref in refs.items()}
    scores = {name: _scores(settings, room, name, prompts, answers[name]) for name in refs}
    kept = _scored(room, prompts, scores)
    drawn = {}
    for name in refs:
        if name != room.baseline:
            groups = [(ids[place], [one.ids for one in answers[name][place]]) for place in kept]
            drawn[name] = _drawn(settings, room, name, groups, np.array(scores[name])[kept])
    room.note(
        asked={"answers": {"questions": digest([prompt.text for prompt in prompts])[:16],
                           "sampling": asdict(_params(settings, room, settings.samples)), "best_of": settings.best_of}},
        reward=room.identity(settings.reward),
        **({"reward_system": "drop"} if settings.reward_system == "drop" else {}),
    )  # fmt: skip
    found = frontier_table(
        room.name, room.baseline, np.array(scores[room.baseline])[kept], drawn, room.bootstrap,
        [prompts[place].id for place in kept],
    )  # fmt: skip
    return replace(found, dropped=room.dropped, leaks=room.leaks(given), manifest=room.manifest())


def rehearse(settings: RewardKl, room: Room) -> Iterator[Rehearsed]:
    refs, prompts = _refs(room), room.records(settings.prompts)
    for name, ref in refs.items():
        _refuse_served(name, room, room.context.model(ref).kind == "endpoint")
    _read_alike(room, {name: weightless(room.context, ref) for name, ref in refs.items()}, prompts)
    return shown(room, refs, prompts, settings.max_tokens)


def _refs(room: Room) -> dict[str, ModelRef]:
    """The baseline and the other models, by name."""
    assert room.baseline is not None and room.baseline_ref is not None
    return {room.baseline: ModelRef(room.baseline_ref)} | {name: ModelRef(ref) for name, ref in room.subjects.items()}


def _params(settings: RewardKl, room: Room, answers: int) -> SamplingParams:
    seed = room.seed if settings.seed is None else settings.seed
    return SamplingParams(temperature=settings.temperature, max_tokens=settings.max_tokens, n=answers, seed=seed)


# --- what is asked ----------------------------------------------------------------------------------------------------


def _readable(
    settings: RewardKl, room: Room, refs: dict[str, ModelRef], prompts: Sequence[Prompt]
) -> tuple[list[Prompt], list[list[int]]]:
    """The prompts that leave every model room for an answer, and their token ids. Raises InputError if models do not
    read the same tokens, or no prompt is left."""
    ids = _read_alike(room, {name: _local(room, name, ref) for name, ref in refs.items()}, prompts)
    speakers = [room.generator(ref) for ref in refs.values()]
    params = _params(settings, room, 1)
    fitting = [place for place, prompt in enumerate(prompts) if all(one.fits(prompt, params) for one in speakers)]
    for place in sorted(set(range(len(prompts))) - set(fitting)):
        room.drop(prompts[place], "too_long")
    if not fitting:
        raise InputError(f"{room.name}: no prompt leaves room for {settings.max_tokens} tokens; lower max_tokens")
    return [prompts[place] for place in fitting], [ids[place] for place in fitting]


def _read_alike(room: Room, models: Mapping[str, LoadedModel], prompts: Sequence[Prompt]) -> list[list[int]]:
    """The token ids of the prompts. Raises InputError if models do not read the same tokens."""
    base, *others = models.items()
    ids = [_ids(base[1], prompt) for prompt in prompts]
    for name, model in others:
        if model.tokenizer.get_vocab() != base[1].tokenizer.get_vocab():
            raise InputError(f"{room.name}: {name} and {base[0]} have different tokenizers, so their KL is not defined")
        if any(_ids(model, prompt) != own for prompt, own in zip(prompts, ids, strict=True)):
            raise InputError(
                f"{room.name}: {name} and {base[0]} render a prompt differently, so their KL is not defined; give both "
                "the same `template` under models"
            )
    return ids


def _local(room: Room, name: str, ref: ModelRef) -> LoadedModel:
    _refuse_served(name, room, room.context.inputs[ref].endpoint is not None)
    return load_model(room.context, ref)


def _refuse_served(name: str, room: Room, served: bool) -> None:
    if served:
        raise InputError(
            f"{room.name}: {name} is on a server, which gives no log-probabilities for another model's answers; use a "
            "local model"
        )


def _ids(model: LoadedModel, prompt: Prompt) -> list[int]:
    return list(render_prompt(model.template, model.tokenizer, prompt.messages))


# --- answers, scores, log-probabilities -------------------------------------------------------------------------------


def _draw(
    settings: RewardKl, room: Room, name: str, ref: ModelRef, prompts: Sequence[Prompt], count: int
) -> list[list[_Answer]]:
    """`count` answers to each prompt. Finished units are not repeated after a restart."""
    speaker, params = room.generator(ref, batch_rows=UNIT * count), _params(settings, room, count)

    def make(unit: int) -> list[Any]:
        found = speaker.generate(prompts[unit * UNIT : (unit + 1) * UNIT], params)
        return [
            [[one.text.partition(speaker.terminator)[0].strip(), list(one.token_ids)] for one in group]
            for group in found
        ]

    units = room.units(-(-len(prompts) // UNIT), make, f"answers-{name}")
    return [[_Answer(text, tuple(ids)) for text, ids in group] for unit in units for group in unit]


def _scores(
    settings: RewardKl, room: Room, name: str, prompts: Sequence[Prompt], answers: Sequence[Sequence[_Answer]]
) -> list[list[float]]:
    """The score of each answer; NaN without one."""
    shown = without_system if settings.reward_system == "drop" else tuple
    asked = [
        (shown(prompt.messages), one.text) for prompt, group in zip(prompts, answers, strict=True) for one in group
    ]
    found = iter(room.scores(settings.reward, asked, f"reward-{name}"))
    return [[_number(next(found)) for _ in group] for group in answers]


def _number(score: float | GraderError) -> float:
    return float("nan") if isinstance(score, GraderError) else score


def _scored(room: Room, prompts: Sequence[Prompt], scores: dict[str, list[list[float]]]) -> list[int]:
    """The indices of prompts whose answers all have scores; drops the others for all models. Raises InputError if none
    is left."""
    kept = []
    for place, prompt in enumerate(prompts):
        if all(np.isfinite(own[place]).all() for own in scores.values()):
            kept.append(place)
        else:
            room.drop(prompt, "no_score")
    if not kept:
        raise InputError(f"{room.name}: no prompt has a score for each of its answers")
    return kept


def _drawn(settings: RewardKl, room: Room, name: str, groups: Sequence[_Group], scores_PK: Floats) -> Drawn:
    """Collects scores, log-probabilities and lengths of a policy's answers."""
    assert room.baseline_ref is not None
    return Drawn(
        scores_PK=scores_PK,
        own_PK=_logp(settings, room, ModelRef(room.subjects[name]), groups, f"own_logp-{name}"),
        base_PK=_logp(settings, room, ModelRef(room.baseline_ref), groups, f"base_logp-{name}"),
        tokens_PK=np.array([[len(ids) for ids in answers] for _, answers in groups]),
    )


def _logp(settings: RewardKl, room: Room, ref: ModelRef, groups: Sequence[_Group], phase: str) -> Floats:
    """The log-probability of each answer under a model (P, K), at the sampling temperature."""
    asked = AnswerLogp(load_model(room.context, ref).net)

    def make(unit: int) -> list[list[float]]:
        return asked.sums(groups[unit * UNIT : (unit + 1) * UNIT], settings.temperature)

    return np.array([group for unit in room.units(-(-len(groups) // UNIT), make, phase) for group in unit])
