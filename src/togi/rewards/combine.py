"""Combines gates and terms into one reward per answer.

    reward = fail_value of the first gate that fails + bonuses of the gates before it
           = bonuses of all gates + sum of weight x shaped(score) over the terms, if all gates pass

Terms never grade an answer that a gate has stopped. A grader that fails is a failure, never a zero: the answer has no
reward and leaves its group. A term that does not apply to an answer adds nothing. An answer to which nothing applies
has no reward either, but that is no failure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from togi.core.errors import GraderError, StageError
from togi.core.records import Completion, Prompt
from togi.rewards.base import Attempt, Gate, Grade, Term


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """An answer's reward and its components.

    `total` is None if a grader failed (`failed` then says which and how), or if nothing graded the answer.
    `components` holds 1 or 0 for each gate, the raw score for each term, and None for those that did not grade it.
    `gate` is "name/reason" of the gate that stopped the answer. `below_fail`: the answer passed every gate, but its
    terms put it below the best possible failing answer.
    """

    total: float | None
    components: dict[str, float | None]
    gate: str | None = None
    failed: str | None = None
    below_fail: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """Grades answers.

    Terms read the text before `terminator`. `floor` raises a passing answer to at least the best possible failing
    answer. `max_failed_share` is the largest share of answers that graders may fail on.
    """

    gates: tuple[Gate, ...]
    terms: tuple[Term, ...]
    terminator: str
    floor: bool = False
    max_failed_share: float = 0.1

    def __post_init__(self) -> None:
        names = self.names
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"a reward needs gates or terms with different names, found {names}")

    @property
    def names(self) -> list[str]:
        """Names of all components, in order."""
        return [part.name for part in (*self.gates, *self.terms)]

    @property
    def best_fail(self) -> float:
        """The largest reward of an answer that a gate stops; minus infinity without gates."""
        bonuses = [sum(gate.bonus for gate in self.gates[:k]) for k in range(len(self.gates))]
        values = [gate.fail_value + bonus for gate, bonus in zip(self.gates, bonuses, strict=True)]
        return max(values, default=-math.inf)

    def grade(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Graded]:
        """Grades the answers to one prompt, in order; each term gets one batch."""
        states = [self._begin(prompt, completion) for completion in completions]
        for state in states:
            self._pass_gates(state)
        for term in self.terms:
            _ask(term, [state for state in states if state.open])
        return [self._end(state) for state in states]

    def check_failures(self, graded: Sequence[Graded]) -> None:
        """Raises StageError if graders failed on too large a share of these answers."""
        messages = [row.failed for row in graded if row.failed is not None]
        if len(messages) > self.max_failed_share * len(graded):
            raise StageError(
                f"{len(messages)} of {len(graded)} answers could not be graded (allowed: a share of "
                f"{self.max_failed_share:g}); the first: {messages[0]}"
            )

    def _begin(self, prompt: Prompt, completion: Completion) -> "_State":
        answer = completion.text.partition(self.terminator)[0]
        return _State(Attempt(prompt=prompt, completion=completion, answer=answer), dict.fromkeys(self.names))

    def _pass_gates(self, state: "_State") -> None:
        for gate in self.gates:
            try:
                reason = gate.check(state.attempt)
            except GraderError as error:
                state.failed = f"{gate.name}: {error}"
                return
            state.components[gate.name] = float(reason is None)
            if reason is not None:
                state.total += gate.fail_value
                state.gate = f"{gate.name}/{reason}"
                return
            state.total += gate.bonus

    def _end(self, state: "_State") -> Graded:
        below = state.open and state.total < self.best_fail
        total = self.best_fail if below and self.floor else state.total
        graded = any(value is not None for value in state.components.values())
        return Graded(
            total=total if graded and state.failed is None else None,
            components=state.components,
            gate=state.gate,
            failed=state.failed,
            below_fail=below,
        )


@dataclass(slots=True)
class _State:
    """The state of an answer between gates and terms."""

    attempt: Attempt
    components: dict[str, float | None] = field(default_factory=dict)
    total: float = 0.0
    gate: str | None = None
    failed: str | None = None

    @property
    def open(self) -> bool:
        """Whether terms still grade it."""
        return self.gate is None and self.failed is None


def _ask(term: Term, states: Sequence[_State]) -> None:
    """Adds one term to the answers that are still open. A grader is never called without answers."""
    if not states:
        return
    for state, grade in zip(states, term.grader([state.attempt for state in states]), strict=True):
        _add(term, state, grade)


def _add(term: Term, state: _State, grade: Grade) -> None:
    if isinstance(grade, GraderError):
        state.failed = f"{term.name}: {grade}"
    elif grade is None:
        return
    elif not math.isfinite(grade):
        state.failed = f"{term.name}: prompt {state.attempt.prompt.id}: a score of {grade}"
    else:
        state.components[term.name] = float(grade)
        state.total += term.contribution(grade)
