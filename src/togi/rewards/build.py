"""Builds rewards and guards from their settings and the resources that the caller passes in."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from togi.core.errors import RecipeError
from togi.core.protocols import Scorer
from togi.rewards.apart import ApartGrader
from togi.rewards.base import Check, Gate, Grader, Term
from togi.rewards.calls import Calls
from togi.rewards.columns import Columns
from togi.rewards.combine import Reward
from togi.rewards.echo import EchoCheck
from togi.rewards.function import load_grader
from togi.rewards.guards import Guard, GuardState
from togi.rewards.language import Detector, LanguageCheck
from togi.rewards.length import LengthCheck
from togi.rewards.model import ModelGrader, WithoutSystem
from togi.rewards.overlong import OverlongGrader
from togi.rewards.pattern import PatternCheck
from togi.rewards.repetition import RepetitionCheck
from togi.rewards.settings import (
    AnyGate,
    AnyTerm,
    EchoGate,
    FunctionTerm,
    GuardSettings,
    JudgeTerm,
    LanguageGate,
    LengthGate,
    OverlongTerm,
    PatternGate,
    RewardSettings,
    TerminatorGate,
    gate_name,
    term_name,
)
from togi.rewards.terminator import TerminatorCheck


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardResources:
    """The resources of a reward: the policy's template, loaded scorers by reference, judges by the names of their
    terms, a language detector. `calls` holds the running call of a user's function; `ends` closes processes of graders;
    `columns` are those of the rows that it will grade, if they are known."""

    terminator: str
    turn_starts: tuple[str, ...] = ()
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    judges: Mapping[str, Scorer] = field(default_factory=dict)
    detect: Detector | None = None
    calls: Calls = field(default_factory=Calls)
    ends: ExitStack = field(default_factory=ExitStack)
    columns: Sequence[Columns] = ()


def build_reward(settings: RewardSettings, around: RewardResources) -> Reward:
    """The reward that the settings describe. Raises RecipeError or InputError for a missing resource."""
    return Reward(
        gates=tuple(_gate(gate, around) for gate in settings.gates),
        terms=tuple(_term(term, around) for term in settings.terms),
        terminator=around.terminator,
        floor=settings.floor,
        max_failed_share=settings.max_failed_share,
    )


def build_watch(settings: Iterable[GuardSettings]) -> GuardState:
    """The guards that the settings describe."""
    return GuardState(
        [
            Guard(metric=item.metric, min=item.min, max=item.max, patience=item.patience, stop=item.action == "stop")
            for item in settings
        ]
    )


def _gate(settings: AnyGate, around: RewardResources) -> Gate:
    check = _check(settings, around)
    return Gate(name=gate_name(settings), check=check, bonus=settings.bonus, fail_value=settings.fail_value)


def _check(settings: AnyGate, around: RewardResources) -> Check:
    if isinstance(settings, TerminatorGate):
        return TerminatorCheck(terminator=around.terminator, turn_starts=around.turn_starts)
    if isinstance(settings, LengthGate):
        return LengthCheck(unit=settings.unit, min=settings.min, max=settings.max)
    if isinstance(settings, EchoGate):
        return EchoCheck(size=settings.size, max_share=settings.max_share)
    if isinstance(settings, PatternGate):
        return PatternCheck(forbidden=re.compile(settings.forbid))
    if isinstance(settings, LanguageGate):
        return _language(settings, around.detect)
    return RepetitionCheck(
        unit=settings.unit,
        size=settings.size,
        max_share=settings.max_share,
        max_line_share=settings.max_line_share,
    )


def _language(settings: LanguageGate, detect: Detector | None) -> LanguageCheck:
    if detect is None:
        raise RecipeError("a language gate needs a language detector: install togi[data]")
    return LanguageCheck(
        detect=detect,
        allowed=settings.allowed,
        min_confidence=settings.min_confidence,
        min_chars=settings.min_chars,
    )


def _term(settings: AnyTerm, around: RewardResources) -> Term:
    name, grader = term_name(settings), _grader(settings, around)
    if isinstance(settings, OverlongTerm):
        return Term(name=name, grader=grader, weight=settings.weight)
    return Term(
        name=name,
        grader=grader,
        weight=settings.weight,
        cap=settings.cap,
        negative_scale=settings.negative_scale,
    )


def _function(settings: FunctionTerm, around: RewardResources) -> Grader:
    file, name, style = Path(settings.file), settings.name, settings.style
    if settings.deadline is None:
        return load_grader(file, name, style, around.calls, around.columns)
    grader = ApartGrader(
        file=file,
        name=name,
        style=style,
        deadline=settings.deadline,
        calls=around.calls,
        columns=around.columns,
    )
    around.ends.callback(grader.close)
    return grader


def _grader(settings: AnyTerm, around: RewardResources) -> Grader:
    if isinstance(settings, OverlongTerm):
        return OverlongGrader(max_tokens=settings.max_tokens, cache_tokens=settings.cache_tokens, name=settings.name)
    if isinstance(settings, FunctionTerm):
        return _function(settings, around)
    name = term_name(settings)
    judged = isinstance(settings, JudgeTerm)
    ref, among = (name, around.judges) if judged else (settings.scorer, around.scorers)
    if ref not in among:
        raise RecipeError(f"reward term {name}: no {'judge' if judged else 'scorer'} was loaded for {ref}")
    dropped = not judged and settings.system == "drop"
    return ModelGrader(scorer=WithoutSystem(among[ref]) if dropped else among[ref], name=name)
