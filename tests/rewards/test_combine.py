"""Gates and terms together: short-circuit, failures, floor, stored numbers, statistics."""

import math
from pathlib import Path

import pytest
from stored import load

from togi.core.errors import GraderError, InputError, RecipeError, StageError
from togi.core.records import Completion, Message, Prompt
from togi.objectives.advantages import compute_advantages
from togi.rewards.base import Gate, Term
from togi.rewards.build import RewardResources, build_reward
from togi.rewards.combine import Reward
from togi.rewards.function import FunctionGrader, load_function
from togi.rewards.length import LengthCheck
from togi.rewards.model import ModelGrader
from togi.rewards.settings import RewardSettings
from togi.rewards.statistics import reward_statistics
from togi.rewards.terminator import TerminatorCheck

END = "<|im_end|>"
PROMPT = Prompt(id="p0", messages=(Message("user", "Hi"),), answer="4")


class TableScorer:
    """Scores each answer with the number that is its text, and records what it was asked."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def score(self, items):
        self.calls.append([answer for _, answer in items])
        if any(answer == "crash" for _, answer in items):
            raise GraderError("scorer is down")
        return [GraderError("too long") if answer == "long" else float(answer) for _, answer in items]


def closed(text: object) -> Completion:
    return Completion(text=f"{text}{END}", stop="terminator")


def open_(text: object) -> Completion:
    return Completion(text=str(text), stop="length")


def gated(scorer: TableScorer, **options) -> Reward:
    """A gate with bonus 6 and a reward model capped at 10, whose negative scores are halved."""
    gate = Gate(name="terminator", check=TerminatorCheck(terminator=END), bonus=6.0)
    term = Term(name="model", grader=ModelGrader(scorer=scorer, name="model"), cap=10.0, negative_scale=0.5)
    return Reward(gates=(gate,), terms=(term,), terminator=END, **options)


def test_stored_rewards_and_advantages():
    stored = load("gating_reward.json")
    answers = [closed(score) if passes else open_(score) for score, passes, _ in stored["rows"]]
    graded = gated(TableScorer()).grade(PROMPT, answers)
    assert [row.total for row in graded] == pytest.approx([reward for *_, reward in stored["rows"]], abs=1e-12)
    for scale in ("group", "none"):
        found = compute_advantages([stored["group_rewards"]], scale).values[0]
        assert found == pytest.approx(stored[f"advantages_{scale}"], abs=1e-9)


def test_the_reward_model_is_asked_once_and_only_about_answers_that_passed():
    scorer = TableScorer()
    graded = gated(scorer).grade(PROMPT, [closed(1), open_(2), open_(3), closed(-4)])
    assert scorer.calls == [["1", "-4"]]
    assert [row.total for row in graded] == [7.0, 0.0, 0.0, 4.0]
    assert graded[1].components == {"terminator": 0.0, "model": None}
    assert graded[1].gate == "terminator/length"


@pytest.mark.parametrize(("system", "roles"), [({}, ["system", "user"]), ({"system": "drop"}, ["user"])])
def test_a_reward_model_may_be_shown_no_system_turn(system, roles):
    read: list[list[str]] = []

    class Reader:
        def score(self, items):
            read.extend([message.role for message in messages] for messages, _ in items)
            return [1.0] * len(items)

    settings = {"terms": [{"type": "model", "scorer": "$judge", **system}]}
    around = RewardResources(terminator=END, scorers={"$judge": Reader()})
    led = Prompt(id="p", messages=(Message("system", "Be brief."), Message("user", "Hi")))
    (graded,) = build_reward(RewardSettings.model_validate(settings), around).grade(led, [closed("4")])
    assert graded.total == 1.0 and read == [roles]


def test_scores_can_be_scaled_so_that_the_largest_counts_as_ten():
    """The card says "at most +10": with a cap of c and a weight of 10 / c, c and all above count as 10."""
    term = {"type": "model", "scorer": "$judge", "cap": 4.0, "weight": 2.5, "negative_scale": 0.5}
    around = RewardResources(terminator=END, scorers={"$judge": TableScorer()})
    reward = build_reward(RewardSettings.model_validate({"terms": [term]}), around)
    answers = [closed(score) for score in (2, 4, 9, -2)]
    assert [row.total for row in reward.grade(PROMPT, answers)] == [5.0, 10.0, 10.0, -2.5]


def test_no_answer_passed_asks_nobody():
    scorer = TableScorer()
    gated(scorer).grade(PROMPT, [open_(1), open_(2)])
    assert scorer.calls == []


def test_the_first_failing_gate_ends_it_with_the_bonuses_before_it():
    gates = (
        Gate(name="terminator", check=TerminatorCheck(terminator=END), bonus=6.0, fail_value=-1.0),
        Gate(name="length", check=LengthCheck(max=3), bonus=2.0, fail_value=0.5),
        Gate(name="never", check=lambda attempt: "always", bonus=1.0),
    )
    graded = Reward(gates=gates, terms=(), terminator=END).grade(PROMPT, [open_(1), closed("long"), closed("abc")])
    assert [row.total for row in graded] == [-1.0, 6.5, 8.0]
    assert [row.gate for row in graded] == ["terminator/length", "length/too_long", "never/always"]
    assert graded[1].components == {"terminator": 1.0, "length": 0.0, "never": None}


@pytest.mark.parametrize(("floor", "total"), [(True, 0.0), (False, -4.0)])
def test_a_pass_that_ranks_below_a_fail_is_marked_and_can_be_lifted(floor, total):
    graded = gated(TableScorer(), floor=floor).grade(PROMPT, [closed(-20), closed(-12)])
    assert [row.total for row in graded] == [total, 0.0]
    assert [row.below_fail for row in graded] == [True, False]


def test_a_failed_grader_is_never_a_zero():
    graded = gated(TableScorer(), max_failed_share=0.5).grade(PROMPT, [closed("nan"), closed(2), open_(1)])
    assert [row.total for row in graded] == [None, 8.0, 0.0]
    assert graded[0].failed == "model: prompt p0: a score of nan"
    assert compute_advantages([[row.total for row in graded]]).num_failed == 1


@pytest.mark.parametrize("answer", ["inf", "nan", "crash"])
def test_too_many_failures_stop_the_stage(answer):
    reward = gated(TableScorer(), max_failed_share=0.4)
    graded = reward.grade(PROMPT, [closed(answer), open_(2)])
    with pytest.raises(StageError, match=r"1 of 2 answers could not be graded .*model"):
        reward.check_failures(graded)


def test_an_answer_that_the_scorer_cannot_read_fails_alone():
    graded = gated(TableScorer(), max_failed_share=0.5).grade(PROMPT, [closed("long"), closed(2)])
    assert [row.total for row in graded] == [None, 8.0]
    assert graded[0].failed == "model: prompt p0: too long"


def test_failures_are_a_share_of_all_that_was_graded():
    reward = gated(TableScorer(), max_failed_share=0.4)
    before, failed = reward.grade(PROMPT, [closed(1), closed(2)]), reward.grade(PROMPT, [closed("nan")])
    reward.check_failures([*before, *failed])
    with pytest.raises(StageError, match="1 of 1 answers"):
        reward.check_failures(failed)


@pytest.mark.parametrize(("length", "score"), [(1, 0.0), (16, 0.0), (17, -0.25), (19, -0.75), (20, -1.0), (31, -1.0)])
def test_overlong_answers_are_punished_along_a_straight_line(length, score):
    """DAPO: 0 up to Lmax - Lc, then (Lmax - Lc - |y|) / Lc, and -1 beyond Lmax; here Lmax is 20 and Lc is 4."""
    settings = {"terms": [{"type": "overlong", "max_tokens": 20, "cache_tokens": 4, "weight": 2.0}]}
    reward = build_reward(RewardSettings.model_validate(settings), RewardResources(terminator=END))
    answer = Completion(text="a", stop="length", token_ids=(7,) * length)
    graded = reward.grade(PROMPT, [answer])[0]
    assert graded.total == 2 * score and graded.components == {"overlong": score}


def test_an_answer_whose_tokens_nobody_counted_is_not_graded_as_short():
    settings = {"max_failed_share": 1.0, "terms": [{"type": "overlong", "max_tokens": 20, "cache_tokens": 4}]}
    reward = build_reward(RewardSettings.model_validate(settings), RewardResources(terminator=END))
    graded = reward.grade(PROMPT, [Completion(text="a", stop="length")])[0]
    assert graded.total is None and "has no token ids" in graded.failed


def test_an_answer_that_one_term_failed_on_is_not_shown_to_the_next():
    scorer = TableScorer()
    fragile = Term(name="fragile", grader=lambda attempts: [GraderError("no"), 1.0])
    model = Term(name="model", grader=ModelGrader(scorer=scorer, name="model"))
    reward = Reward(gates=(), terms=(fragile, model), terminator=END, max_failed_share=0.5)
    assert [row.total for row in reward.grade(PROMPT, [closed(1), closed(2)])] == [None, 3.0]
    assert scorer.calls == [["2"]]


def test_a_gate_may_fail_too():
    def check(attempt):
        raise GraderError("detector is missing")

    gate = Gate(name="language", check=check)
    graded = Reward(gates=(gate,), terms=(), terminator=END, max_failed_share=1.0).grade(PROMPT, [closed(1)])
    assert graded[0].total is None and graded[0].failed == "language: detector is missing"


FUNCTIONS = """
def exact(prompt, completion):
    return completion.text == prompt.answer

def broken(prompt, completion):
    return {}["missing"]

def silent(prompt, completion):
    return None

def leaving(prompt, completion):
    exec("import sys; sys.exit(0)")
"""


def write_functions(folder: Path) -> Path:
    file = folder / "rewards.py"
    file.write_text(FUNCTIONS)
    return file


def test_a_function_sees_the_answer_without_its_terminator(tmp_path):
    exact = FunctionGrader(function=load_function(write_functions(tmp_path), "exact"))
    reward = Reward(gates=(), terms=(Term(name="exact", grader=exact, weight=2.0),), terminator=END)
    assert [row.total for row in reward.grade(PROMPT, [closed("4"), closed("5")])] == [2.0, 0.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [("broken", "KeyError: 'missing'"), ("silent", "expected a number, got NoneType"), ("leaving", "SystemExit: 0")],
)
def test_what_a_function_raises_or_withholds_is_a_failure(tmp_path, name, message):
    grader = FunctionGrader(function=load_function(write_functions(tmp_path), name))
    reward = Reward(gates=(), terms=(Term(name=name, grader=grader),), terminator=END)
    with pytest.raises(StageError, match=rf"{name}: {message}(, at \S+rewards\.py:[0-9]+)? \(prompt p0\)"):
        reward.check_failures(reward.grade(PROMPT, [closed("4")]))


def test_a_file_of_functions_may_hold_data_classes(tmp_path):
    file = tmp_path / "rewards.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass Mark:\n"
        "    value: float\n\ndef exact(prompt, completion):\n    return Mark(1.0).value\n"
    )
    assert load_function(file, "exact")(PROMPT, closed("4")) == 1.0


def test_function_files_that_do_not_load(tmp_path):
    file = write_functions(tmp_path)
    with pytest.raises(InputError, match="no function 'exakt'; it has broken, exact, leaving, silent"):
        load_function(file, "exakt")
    with pytest.raises(InputError, match="is not a Python file"):
        load_function(tmp_path / "absent.py", "exact")
    file.write_text("def exact(:\n")
    with pytest.raises(InputError, match="does not load: SyntaxError"):
        load_function(file, "exact")
    file.write_text("raise SystemExit('no data')\n")
    with pytest.raises(InputError, match="does not load: SystemExit: no data"):
        load_function(file, "exact")


def test_settings_build_the_same_reward(tmp_path):
    settings = RewardSettings.model_validate(
        {
            "gates": [{"type": "terminator", "bonus": 6.0}, {"type": "length", "max": 5}, {"type": "repetition"}],
            "terms": [
                {"type": "model", "scorer": "$judge", "cap": 10.0, "negative_scale": 0.5},
                {"type": "function", "file": str(write_functions(tmp_path)), "name": "exact", "weight": 3},
            ],
        }
    )
    scorer = TableScorer()
    reward = build_reward(settings, RewardResources(terminator=END, scorers={"$judge": scorer}))
    assert reward.names == ["terminator", "length", "repetition", "judge", "exact"]
    assert [row.total for row in reward.grade(PROMPT, [closed(4), closed(-2), closed(123456)])] == [13.0, 5.0, 6.0]
    assert scorer.calls == [["4", "-2"]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "at least one gate or term"),
        ({"gates": [{"type": "terminator", "bonnus": 1}]}, "bonnus"),
        ({"gates": [{"type": "terminater"}]}, "terminater"),
        ({"gates": [{"type": "length"}, {"type": "length"}]}, "length is taken"),
        ({"gates": [{"type": "length", "min": 3, "max": 2}]}, "nothing could pass"),
        ({"terms": [{"type": "model", "scorer": "judge"}]}, r"reference like \$name"),
    ],
)
def test_settings_that_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        RewardSettings.model_validate(value)


def test_what_was_not_handed_in_is_said():
    language = RewardSettings.model_validate({"gates": [{"type": "language", "allowed": ["en"]}]})
    model = RewardSettings.model_validate({"terms": [{"type": "model", "scorer": "$judge"}]})
    with pytest.raises(RecipeError, match="language detector"):
        build_reward(language, RewardResources(terminator=END))
    with pytest.raises(RecipeError, match=r"no scorer was loaded for \$judge"):
        build_reward(model, RewardResources(terminator=END))


def test_statistics_by_component():
    reward = gated(TableScorer(), max_failed_share=1.0)
    graded = reward.grade(PROMPT, [closed(1), closed(3), open_(0), closed("nan"), closed(-20)])
    found = reward_statistics(graded)
    assert found.num_answers == 5 and found.gate_pass_rate == 0.75
    assert found.gates == {"terminator/length": 1} and found.failures == {"model": 1} and found.num_below_fail == 1
    assert found.components["model"].count == 3 and found.components["model"].quantiles[2] == 1.0
    assert found.components["total"].count == 4
    metrics = found.metrics(["terminator"])
    assert metrics["reward/model/p50"] == 1.0 and found.failed_share == 0.2
    assert metrics["gate/terminator"] == 0.8 and metrics["gate/all"] == 0.75  # of all answers; of the graded ones
    assert metrics["stopped/terminator/length"] == 1
    assert all(math.isfinite(value) for value in metrics.values())
