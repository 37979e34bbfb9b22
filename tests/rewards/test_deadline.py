"""Reward functions with a deadline: a call that does not return is a failure, and the next answer is graded."""

import builtins
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from togi.core.errors import GraderError, InputError, StageError
from togi.core.records import Completion, Message, Prompt
from togi.rewards.apart import ApartGrader, check_function
from togi.rewards.base import Attempt
from togi.rewards.build import RewardResources, build_reward
from togi.rewards.calls import Calls
from togi.rewards.columns import Columns
from togi.rewards.function import FunctionGrader, UserFunction, load_grader
from togi.rewards.neighbours import Neighbours
from togi.rewards.settings import RewardSettings

HANGS = """
import os, re, time

def hang(text):
    if text == "sleeps":
        time.sleep(3600)
    if text == "catches everything":
        while True:
            try:
                time.sleep(3600)
            except BaseException:
                pass
    if text == "keeps the lock":
        re.match("(a+)+$", "a" * 60 + "b")
    if text == "dies":
        os._exit(7)
    if text == "asks to exit":
        raise SystemExit(1)
    return float(len(text))

def f(prompt, completion):
    print("not an answer of the process")
    return hang(completion.text)

def all_at_once(prompts, completions, level, **rest):
    return [None if text == "none" else hang(text) + level[0] for text in completions]

def wrong(prompt, completion):
    return {"four": 4, "nan": float("nan"), "text": "4", "rest": prompt.extra["level"] + len(completion.token_ids)}[
        completion.text
    ]
"""
END = "</s>"


def attempt(answer: str, number: int = 0) -> Attempt:
    prompt = Prompt(id=f"p{number}", messages=(Message("user", "2+2?"),), answer="4", extra={"level": 2.5})
    completion = Completion(text=f"{answer}{END}", stop="terminator", token_ids=(5, 6), logprobs=(-0.1, -1e-300))
    return Attempt(prompt=prompt, completion=completion, answer=answer)


def texts(grades: Any) -> list[Any]:
    return [str(grade) if isinstance(grade, GraderError | float) else grade for grade in grades]


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "f.py"
    path.write_text(HANGS)
    return path


@pytest.fixture
def made(file) -> Iterator[Any]:
    """Makes graders, which end with the test."""
    graders: list[ApartGrader] = []

    def make(name: str = "f", style: str = "togi", deadline: float = 1.0, **more: Any) -> ApartGrader:
        graders.append(ApartGrader(file=file, name=name, style=style, deadline=deadline, **more))
        return graders[-1]

    yield make
    for grader in graders:
        grader.close()


LATE = "it did not return within its deadline of 1 seconds (prompt p0)"


@pytest.mark.parametrize("answer", ["sleeps", "catches everything", "keeps the lock"])
def test_a_call_that_does_not_return_is_a_failure_of_its_answer_alone(made, answer):
    assert texts(made()([attempt("ab"), attempt(answer), attempt("abc")])) == ["2.0", LATE, "3.0"]


def test_a_call_for_all_answers_fails_for_all_of_them_and_the_next_does_not(made):
    grader = made("all_at_once", "trl-text")
    assert texts(grader([attempt("ab"), attempt("sleeps")])) == [LATE, LATE]
    assert texts(grader([attempt("ab"), attempt("none")])) == ["4.5", None]


def test_a_process_that_ends_is_a_failure_that_says_how(made, file):
    found = texts(made(deadline=600.0)([attempt("dies"), attempt("asks to exit"), attempt("ab")]))
    place = f"{file}:{1 + HANGS.splitlines().index('        raise SystemExit(1)')}"
    asked = f"SystemExit: 1, at {place} (prompt p0)"
    assert found == ["its process ended with exit code 7 (prompt p0)", asked, "2.0"]


def test_the_users_traceback_of_a_failure_is_written_once(made, file, capfd):
    made(deadline=600.0)([attempt("asks to exit"), attempt("asks to exit")])
    written = capfd.readouterr().err
    assert written.count("Traceback") == written.count("raise SystemExit(1)") == 1
    assert "apart_process" not in written and "rewards/function.py" not in written


def test_a_function_that_needs_a_column_that_no_row_has_is_refused_from_its_process(file):
    rows = [Columns(names=("kind",), count=8)]
    with pytest.raises(InputError, match="all_at_once asks for `level`, and none of the 8 rows has a column of that"):
        check_function(file, "all_at_once", "trl-text", None, columns=rows)
    check_function(file, "f", "togi", None, columns=rows)


@pytest.mark.parametrize(
    ("name", "style", "answers"),
    [("wrong", "togi", ("four", "nan", "text", "rest", "else")), ("all_at_once", "trl-text", ("ab", "none"))],
)
def test_grades_and_failures_are_those_of_the_function_without_a_deadline(made, file, name, style, answers):
    attempts = [attempt(answer, number) for number, answer in enumerate(answers)]
    assert texts(made(name, style, 600.0)(attempts)) == texts(load_grader(file, name, style)(attempts))


def test_failures_in_time_and_late_ones_count_in_one_share(file):
    term = {"type": "function", "file": str(file), "name": "f", "deadline": 1.0}
    around = RewardResources(terminator=END)
    reward = build_reward(RewardSettings.model_validate({"terms": [term], "max_failed_share": 0.5}), around)
    completions = [attempt(answer).completion for answer in ("ab", "sleeps", "asks to exit")]
    with around.ends:
        graded = reward.grade(attempt("").prompt, completions)
    assert [row.total for row in graded] == [2.0, None, None]
    reward.check_failures([graded[0], graded[1]])
    with pytest.raises(StageError, match=r"2 of 3 answers .* the first: f: it did not return within its deadline"):
        reward.check_failures(graded)


def test_a_file_that_does_not_load_is_told_at_the_start(made, file):
    with pytest.raises(InputError, match="has no function 'g'; it has all_at_once, f, hang"):
        made("g")
    file.write_text("import os\nos._exit(7)\n")
    with pytest.raises(InputError, match="ended with exit code 7"):
        made()


def test_a_file_that_hangs_while_it_loads_is_told_and_its_process_ends(file, capfd):
    before = set(psutil.Process().children())
    file.write_text("import time\n\ndef f(prompt, completion):\n    return 1.0\n\ntime.sleep(3600)\n")
    with pytest.raises(InputError, match=r"f\.py did not load within 1 seconds; do slow work in the function"):
        check_function(file, "f", "togi", None, loading=1.0)
    assert set(psutil.Process().children()) == before
    assert f'File "{file}", line 6' in capfd.readouterr().err  # the stack at the deadline


def test_loading_may_take_longer_than_a_call(file, made):
    file.write_text("import time\n\ndef f(prompt, completion):\n    return 1.0\n\ntime.sleep(1.0)\n")
    assert made(deadline=0.5)([attempt("ab")]) == [1.0]


def test_a_file_is_known_while_it_loads(file, monkeypatch):
    seen, calls = [], Calls()
    monkeypatch.setattr(builtins, "at_the_top", lambda: seen.append(calls.current), raising=False)
    file.write_text("at_the_top()\n\ndef f(prompt, completion):\n    return 1.0\n")
    load_grader(file, "f", "togi", calls)
    (call,) = seen
    assert (call.function, call.prompt) == ("f of f.py", "") and calls.current is None


def test_closing_ends_the_process(made):
    before = set(psutil.Process().children())
    grader = made()
    (process,) = set(psutil.Process().children()) - before
    grader.close()
    assert not process.is_running()


def test_the_running_call_is_known_while_it_runs(file):
    seen, calls = [], Calls()

    def told(prompt: Any, completion: Any) -> float:
        seen.append(calls.current)
        return 1.0

    before = time.monotonic()
    FunctionGrader(function=UserFunction(told, Neighbours(file), "f"), calls=calls)([attempt("ab", 4)])
    (call,) = seen
    assert call.function == "f of f.py" and call.prompt == "p4" and call.start >= before
    assert calls.current is None
