"""Every row of the table: by hand on made-up verdicts, and on what people and GPT-3.5 say of the same real answers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from judges import sample
from stored_verdicts import needs_shared, pandalm_labels, pandalm_models, pandalm_question, pandalm_rows

from togi.core.codec import read_records, write_records
from togi.core.errors import InputError
from togi.core.records import Message, Pair, Verdict
from togi.evaluate.statistics import adjusted_wald
from togi.stages.base import RECORDS_FILE, output_path
from togi.stages.context import Context, Control, Resolved
from togi.stages.evaluation import calibrate_work
from togi.stages.evaluation.calibrate import STAGE, Calibrate

MODELS = ("small", "large", "judge")
ANSWERS = [
    sample(f"q{q}{model}", f"q{q}", f"{model} says {'x' * (3 * i + q % 2)}", model)
    for q in range(12)
    for i, model in enumerate(MODELS)
]
BY_ID = {answer.id: answer for answer in ANSWERS}


def verdict(one: str, other: str, winner: str | None, order: int = 0, **more) -> Verdict:
    """Returns the judge's verdict on two answers in one order."""
    answers = (one, other) if order == 0 else (other, one)
    name = f"{'-'.join(answers)}-{len(more)}"
    outcome = "tie" if winner is None else "winner"
    told = {"outcome": outcome, "winner": winner, "judge": "judge", "text": "", **more}
    return Verdict(id=name, prompt=BY_ID[one].prompt.id, answers=answers, order=order, **told)


def label(better: str, worse: str, margin: float | None = None) -> Pair:
    """Returns a person's label of two answers."""
    sides = {
        side: (Message("assistant", BY_ID[name].text),) for side, name in (("chosen", better), ("rejected", worse))
    }
    prompt = (Message("system", "Any."), *BY_ID[better].prompt.messages)
    return Pair(id=f"{better}>{worse}{margin}", prompt=prompt, margin=margin, **sides)


@pytest.fixture
def calibrate(tmp_path: Path):
    def run(verdicts, labels, answers=ANSWERS, **settings):
        for name, kind, records in (
            ("judged", "verdicts", verdicts),
            ("answers", "samples", answers),
            ("people", "pairs", labels),
        ):
            output = "verdicts" if kind == "verdicts" else "main"
            write_records(tmp_path / name / output_path(kind, output), kind, records)
        inputs = {
            "$judged.verdicts": Resolved("verdicts", folder=tmp_path / "judged"),
            "$answers": Resolved("samples", folder=tmp_path / "answers"),
            "$people": Resolved("pairs", folder=tmp_path / "people"),
        }
        (tmp_path / "stage").mkdir(exist_ok=True)
        control = Control(send=lambda event: None)
        context = Context("trust", tmp_path / "stage", tmp_path, 3, inputs, control, reasons=STAGE.reasons)
        refs = {"verdicts": "$judged.verdicts", "samples": "$answers", "labels": "$people"}
        given = {**refs, "bootstrap": 300, **settings}
        from_settings = Calibrate.model_validate(given)
        calibrate_work.run(from_settings, context)
        figures = read_records(context.folder / RECORDS_FILE)[1]
        return context, {figure.metric: figure for figure in figures}

    return run


def both(one: str, other: str, first: str | None, second: str | None) -> list[Verdict]:
    return [verdict(one, other, first, 0), verdict(one, other, second, 1)]


def everything() -> tuple[list[Verdict], list[Pair]]:
    """In each of twelve questions the judge prefers its own answer, then the large model's; in every third one it picks
    the first of small and large. People prefer large, then judge, then small; they labelled half of the questions."""
    verdicts: list[Verdict] = []
    labels: list[Pair] = []
    for q in range(12):
        small, large, judge = (f"q{q}{model}" for model in MODELS)
        verdicts += both(small, large, small if q % 3 == 0 else large, large)
        verdicts += both(small, judge, judge, judge) + both(large, judge, judge, judge)
        if q % 2 == 0:
            labels += [label(large, small), label(large, judge), label(judge, small)]
    return verdicts, labels


def test_agreement_leanings_and_self_preference(calibrate):
    context, found = calibrate(*everything())
    # of the three comparisons of a question, people and judge differ on large against judge; where the judge picks
    # the first answer, its two orders average to a tie: questions 0 and 6 of the six labelled ones
    shares = [1 / 3 if q % 3 == 0 else 2 / 3 for q in range(0, 12, 2)]
    assert found["agreement"].value == pytest.approx(np.mean(shares))
    assert found["agreement without ties"].value == pytest.approx(
        np.mean([0.5 if q % 3 == 0 else 2 / 3 for q in range(0, 12, 2)])
    )
    assert found["kappa"].value < found["agreement"].value
    assert found["position bias: first preferred"].value == pytest.approx(
        np.mean([(0.5 * 2 + (1 if q % 3 == 0 else 0.5)) / 3 for q in range(12)])
    )
    assert found["position bias: orders agree"].value == pytest.approx(
        np.mean([2 / 3 if q % 3 == 0 else 1 for q in range(12)])
    )
    own = found["self-preference: judge"]
    assert own.value == pytest.approx(0.5)  # the judge lets its answers win both comparisons, people let them win one
    assert own.low < 0.5 < own.high and own.subject == "judge" and own.count == 6
    assert found["unreadable"].value == 0 and "agreement among people" not in found
    assert context.counts == {"in": 18, "out": 18} and context.summary["labelled_comparisons"] == 18
    assert len(context.summary["table"]) == len(found)


def test_differences_have_the_interval_of_shares_with_several_comparisons_of_a_prompt(calibrate):
    _, found = calibrate(*everything())
    labelled = range(0, 12, 2)
    by_name = {  # judge minus people: of large against judge, of judge against small, of small against large
        "self-preference: judge": [[1.0, 0.0] for q in labelled],
        "length bias": [[1.0, 0.0, -0.5 if q % 3 == 0 else 0.0] for q in labelled],
    }
    for name, rows in by_name.items():
        owners = [q for q, own in zip(labelled, rows, strict=True) for _ in own]
        expected = adjusted_wald([each for own in rows for each in own], owners)
        own = found[name]
        assert (own.value, own.low, own.high) == pytest.approx((expected.mean, expected.low, expected.high))
        assert own.low < 0.2 and own.count == 6


def test_length_is_measured_against_what_people_prefer(calibrate):
    _, found = calibrate(*everything())
    # judge's answers are the longest, large's longer than small's: people prefer the longer one in 2 of 3, the judge in
    # 3 of 3, or in 2.5 of 3 where it picks the first answer
    judged = [2.5 / 3 if q % 3 == 0 else 1.0 for q in range(0, 12, 2)]
    assert found["length bias"].value == pytest.approx(np.mean(judged) - 2 / 3)


def test_win_rates_as_judge_and_people_have_them_and_corrected(calibrate):
    _, found = calibrate(*everything())
    assert found["win rate of judge: by the judge"].value == 1.0
    assert found["win rate of judge: by people"].value == pytest.approx(0.5)
    fair = found["win rate of judge: corrected"]
    assert fair.value == pytest.approx(0.5) and fair.count == 24 and "12 labels" in fair.note
    large = found["win rate of large: corrected"]
    assert large.value > found["win rate of large: by the judge"].value
    assert large.low <= 1.0 <= large.high  # people always prefer it


def test_ties_several_annotators_and_labels_of_other_answers(calibrate):
    verdicts, _ = everything()
    labels = [label("q1large", "q1small"), label("q1large", "q1small"), label("q1small", "q1large", 0)]
    labels += [label("q2small", "q2large", 0), label("q3small", "q3large")]
    stray = replace(labels[0], id="stray", chosen=(Message("assistant", "something else"),))
    context, found = calibrate(verdicts, [*labels, stray])
    assert context.drop_counts() == {"not_judged": 1} and context.counts["out"] == 5
    assert "agreement among people" not in found  # only one prompt has several labels
    context, found = calibrate(verdicts, [*labels, label("q2small", "q2large")])
    assert found["agreement among people"].value == pytest.approx((1 / 3 + 0) / 2)
    assert context.summary["labelled_comparisons"] == 3


def test_unreadable_verdicts_count_and_decide_nothing(calibrate):
    verdicts, labels = everything()
    lost = [replace(each, outcome="unreadable", winner=None) for each in verdicts[:2]]
    _, found = calibrate([*lost, *verdicts[2:]], labels)
    assert found["unreadable"].value == pytest.approx(2 / 6 / 12) and found["win rate of large: corrected"].count == 23


def test_grades_are_compared_within_a_prompt(calibrate):
    grades = [
        Verdict(id=a.id, prompt=a.prompt.id, answers=(a.id,), judge="judge", text="", outcome="grade", score=grade)
        for a, grade in zip(ANSWERS, [3.0, 7.0, 7.0] * 12, strict=True)
    ]
    _, found = calibrate(grades, everything()[1])
    assert found["agreement"].value == pytest.approx(2 / 3)  # large and judge have equal grades, people prefer large
    assert found["win rate of large: by the judge"].value == 0.75 and "position bias: orders agree" not in found


def test_labels_of_other_texts_and_unknown_names_are_refused(calibrate):
    verdicts, labels = everything()
    stray = [replace(pair, prompt=(Message("user", "another question"),)) for pair in labels]
    with pytest.raises(InputError, match=r"18 of 18 labels of \$people match no comparison"):
        calibrate(verdicts, stray)
    with pytest.raises(InputError, match="own names gpt-9, but the answers are by judge, large, small"):
        calibrate(verdicts, labels, own=["gpt-9"])


# --- real judges ------------------------------------------------------------------------------------------------------


@needs_shared
def test_two_hundred_labels_of_people_correct_the_judge_on_all_999_pairs(calibrate):
    """PandaLM: the truth is three people's labels of all pairs; the judge is GPT-3.5, which was asked in one order."""
    rows = pandalm_rows()
    samples: dict[tuple[str, str, str], object] = {}
    verdicts: list[Verdict] = []
    labels: list[Pair] = []
    wins: dict[str, list[float]] = {}
    shown = dict.fromkeys(np.random.default_rng(2).permutation(len(rows))[:200].tolist())
    for number, row in enumerate(rows):
        question, models = pandalm_question(row), pandalm_models(row)
        texts = (str(row["response1"]), str(row["response2"]))
        pair = [
            samples.setdefault((question, model, text), sample(f"s{number}-{i}", question, text, model)).id
            for i, (model, text) in enumerate(zip(models, texts, strict=True))
        ]
        winner = {"1": pair[0], "2": pair[1]}.get(row["gpt"])
        outcome = "unreadable" if row["gpt"] == "garbage" else "tie" if winner is None else "winner"
        verdicts.append(
            Verdict(
                id=f"v{number}",
                prompt=f"p-{question}",
                answers=tuple(pair),
                judge="gpt-3.5",
                text=row["reason"],
                outcome=outcome,
                winner=winner,
            )
        )
        said = [{0: 0.5, 1: 1.0, 2: 0.0}[row[f"annotator{i}"]] for i in (1, 2, 3)]
        if outcome != "unreadable":
            for model, mean in zip(models, (np.mean(said), 1 - np.mean(said)), strict=True):
                wins.setdefault(model, []).append(float(mean))
        if number in shown:
            for each in pandalm_labels({**row, "response1": texts[0], "response2": texts[1]}):
                sides = {side: (Message("assistant", each[side]),) for side in ("chosen", "rejected")}
                margin = float(each["margin"])
                labels.append(Pair(id=f"l{len(labels)}", prompt=(Message("user", question),), margin=margin, **sides))
    _, found = calibrate(verdicts, labels, list(samples.values()), bootstrap=1000)
    assert 0.6 < found["agreement"].value < 0.85 and 0.25 < found["kappa"].low < found["kappa"].high < 0.6
    assert found["agreement among people"].value > found["agreement"].value
    assert found["unreadable"].value == pytest.approx(25 / 999, abs=0.02)
    inside = 0
    for model, mine in wins.items():
        corrected, people = (found[f"win rate of {model}: {by}"] for by in ("corrected", "by people"))
        inside += corrected.low <= np.mean(mine) <= corrected.high
        assert corrected.high - corrected.low < 1.05 * (people.high - people.low)
    assert inside >= 4  # of the five models, at 95 %
