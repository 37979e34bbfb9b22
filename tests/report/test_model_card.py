"""The card of a model, from the data of a run: what it says of evaluations, and how each language writes it."""

import importlib
import pkgutil
import re
from dataclasses import replace

import pytest

from togi.evaluate import benchmarks
from togi.evaluate.table import Metric
from togi.report.card_language import Language
from togi.report.card_names import CURVES, FIGURES, METRICS
from togi.report.card_words import LANGUAGES, WORDS
from togi.report.curves import KNOWN
from togi.report.formatting import MINUS
from togi.report.model_card import ModelFacts, measured, model_card
from togi.report.view import (
    AlarmView,
    BenchmarkView,
    CellView,
    ColumnView,
    IntervalView,
    PartView,
    RowView,
    RunView,
    StageView,
)

LEARNT = "$policy was trained on 10 of 20 prompts"
ALARM = AlarmView(name="evaluated_on_learnt", message=f"{LEARNT}; keep them apart")
SHAPE = (("attention heads", "4"), ("parameters", "1,234,567"), ("end of an answer", "<|im_end|>"))


def interval(mean: float, half: float, n: int = 1200) -> IntervalView:
    return IntervalView(mean=mean, low=mean - half, high=mean + half, level=0.95, n=n)


ROWS = [
    RowView(
        metric="ended properly",
        note="share of answers that pass the terminator gate",
        base=interval(0.25, 0.125),
        policy=interval(0.5, 0.125),
        difference=interval(0.25, 0.5),
    ),
    RowView(
        metric="reward: accuracy on held-out pairs",
        note="of 10 pairs; mean length 53.9 tokens chosen, 51.2 rejected, prompt included",
        policy=interval(0.75, 0.125, 5),
    ),
]


def evaluation(**more) -> StageView:
    settings = {"policy": "$policy", "reward": "$rm"}
    return StageView(name="scores", type="evaluate", state="done", settings=settings, rows=ROWS, **more)


def run_of(*others: StageView, **more) -> RunView:
    """A run of a policy, which was trained on data of which part was held out, and other stages."""
    chats = StageView(name="chats", type="import", state="done", counts_in=36, counts_out=36)
    tuned = StageView(
        name="policy", type="train.sft", state="done", inputs=("chats",), counts_in=36, counts_out=27, held_out=7,
        drops={"too_long": 2}, **more,
    )  # fmt: skip
    return RunView(name="tiny", state="done", stages=[chats, tuned, *others])


def card(run: RunView, language: str = "en", **more) -> str:
    facts = ModelFacts(
        title="Tiny", form=more.pop("form", "merged"), reward=more.pop("reward", False), base="base", shape=SHAPE,
        terminator="<end>", terminator_tokens=1, system=None, trainings=("train.sft",), **more,
    )  # fmt: skip
    return model_card(run, "policy", facts, language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_alarms_of_evaluations_are_told_and_a_known_overlap_is_not_denied(language):
    words, text = WORDS[language], card(run_of(evaluation(alarms=[ALARM])), language)
    assert words["overlap"] in text and words["no_leaks"] not in text
    assert f"- `scores`: {ALARM.message}\n" in text.partition(f"## {words['limits']}")[2]
    assert words["no_leaks"] in card(run_of(evaluation()), language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_stage_that_removed_what_is_in_tests_says_how_many(language):
    cleaned = StageView(
        name="clean", type="x", state="done", inputs=("chats",), drops={"in_a_test": 4, "like_a_test": 3}, cleans=True
    )
    run = run_of(cleaned)
    stages = [replace(each, inputs=("clean",)) if each.name == "policy" else each for each in run.stages]
    text, words = card(replace(run, stages=stages), language), WORDS[language]
    assert words["leaks"].format(count="7") in text and words["no_leaks"] not in text
    plain = [replace(each, cleans=False) for each in stages]
    assert words["no_leaks"] in card(replace(run, stages=plain), language)


def test_alarms_of_stages_that_did_not_measure_the_model_are_not_on_its_card():
    other = StageView(name="x", type="evaluate", state="done", settings={"policy": "$other"}, alarms=[ALARM])
    text = card(run_of(other, alarms=[AlarmView(name="slow", message="the loss rose")]))
    assert "- `policy`: the loss rose" in text and "10 of 20" not in text


ACCURACY = ColumnView(name="accuracy", share=True, note="of all pairs")
BIAS = ColumnView(name="length bias")
CELLS = {
    "base": {"accuracy": CellView(value=0.5, low=0.44, high=0.56, n=1283), "length bias": CellView(value=0.25, n=1283)},
    "policy": {
        "accuracy": CellView(value=0.7032, low=0.66, high=0.75, n=1283),
        "length bias": CellView(value=-0.1, low=-0.2, high=0.0, n=1283, note="3 failed"),
    },
}
RANGE = ColumnView(name="0.5 to 0.6")
OTHERS = {"other": {"ties": CellView(n=9), "p": CellView(value=0.04)}}
BY_CATEGORY = {name: {"maths": CellView(value=1.0, n=7), RANGE.name: CellView(n=1)} for name in CELLS}
BENCHMARK = BenchmarkView(
    benchmark="helpsteer",
    columns=(ACCURACY, BIAS, *(ColumnView(name=name) for name in ("Elo", "ties", "p"))),
    cells={name: {**row, "Elo": CellView()} for name, row in CELLS.items()} | OTHERS,
    rows=1283,
    mark="",
    baseline="base",
    differences={"policy": {"accuracy": CellView(value=0.2032, low=0.1, high=0.3, n=1283)}},
    parts=[
        PartView(
            title="accuracy by category", columns=[ColumnView(name="maths", share=True), RANGE], cells=BY_CATEGORY
        ),
    ],
    dropped={"no_answer": 2},
    leaks={"base": None, "policy": 17},
    decontaminated={"policy": "clean: 3 of 40 records matched and were left out"},
    notes=("base is near chance",),
)


def benchmarked(found: BenchmarkView = BENCHMARK, **more) -> StageView:
    settings = {"models": ["$base", "$policy"]}
    return StageView(name="b", type="evaluate", state="done", settings=settings, benchmarks=[found], **more)


def test_a_benchmark_has_its_table_with_the_other_models_beside():
    text = card(run_of(benchmarked()))
    assert "\n### helpsteer\n\nBenchmark of the stage `b` with 1,283 questions or pairs. In brackets: the 95" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert "| metric | **policy** | policy minus base, paired | base | other |" in rows
    told = "| accuracy, % | 70.3 (66.0 to 75.0; 1,283) | +20.3 (10.0 to 30.0; 1,283) | 50.0 (44.0 to 56.0; 1,283) |  |"
    assert told in rows
    assert f"| length bias | {MINUS}0.100 ({MINUS}0.200 to 0.000; 1,283; 3 failed) |  | 0.250 (1,283) |  |" in rows
    assert "| ties |  |  |  | \N{EM DASH} (9) |" in rows and "Elo" not in text
    assert "Questions that a model was trained on: policy 17, base unknown, other unknown.\n" in text
    assert "Questions left out: `no_answer` 2.\n" in text
    assert "- policy: clean: 3 of 40 records matched and were left out\n" in text
    assert "Notes:\n\n- accuracy: of all pairs\n- base is near chance\n" in text
    part = text.partition("#### accuracy by category\n")[2]
    assert part.startswith(
        "\n| metric | **policy** | base |\n| --- | --- | --- |\n| maths, % | 100.0 (7) | 100.0 (7) |\n"
    )


def test_each_language_writes_the_figures_of_benchmarks_its_own_way():
    gap = "\N{NO-BREAK SPACE}"
    ja, ru = (card(run_of(benchmarked()), language) for language in ("ja", "ru"))
    assert "| 正解率, % | 70.3（66.0〜75.0；1,283） | +20.3（10.0〜30.0；1,283） |" in ja
    assert "- policy: clean: 40 件のうち、一致した 3 件を除外\n" in ja and "#### カテゴリー別の正解率\n" in ja
    assert f"| предпочтение длинных ответов | {MINUS}0,100 (от {MINUS}0,200 до 0,000; 1{gap}283; сбоев: 3) |" in ru
    assert "| 0.5〜0.6 | \N{EM DASH}（1） |" in ja and "| от 0,5 до 0,6 | \N{EM DASH} (1) |" in ru
    assert "Число вопросов, на которых модель обучали: policy 17, base неизвестно, other неизвестно.\n" in ru


def test_a_benchmark_on_trained_questions_is_an_overlap_of_the_model_that_learnt_them():
    words, text = WORDS["en"], card(run_of(benchmarked(alarms=[ALARM])))
    assert words["overlap"] in text and "- `b`: " in text and words["limit_data"] in text
    unknown = replace(BENCHMARK, leaks={"base": 3, "policy": None}, decontaminated={})
    assert words["no_leaks"] in card(run_of(benchmarked(unknown)))
    for checked in (replace(unknown, leaks={"policy": 0}), replace(BENCHMARK, leaks={})):
        text = card(run_of(benchmarked(checked)))
        assert words["no_leaks"] not in text and words["overlap"] not in text


def test_a_benchmark_without_the_model_is_not_on_its_card():
    other = replace(BENCHMARK, cells={"base": CELLS["base"]})
    text = card(run_of(benchmarked(other, alarms=[ALARM])))
    assert "helpsteer" not in text and ALARM.message not in text and WORDS["en"]["none_measured"] in text


def test_what_measured_a_model_says_which_prompts_were_trained_on():
    (found,) = measured(run_of(evaluation(alarms=[ALARM])), "policy")
    assert found.overlap == LEARNT and measured(run_of(evaluation()), "policy")[0].overlap == ""


def test_figures_of_a_reward_model_are_not_those_of_the_policy():
    run = run_of(evaluation())
    assert [found.row.metric for found in measured(run, "policy")] == ["ended properly"]
    text = card(run)
    before, _, after = text.partition(WORDS["en"]["scorers"])
    both = {"policy": "$policy", "reward": "$rm", "held_out": "$rm"}
    rows = [*ROWS, replace(ROWS[1], metric=f"held-out {ROWS[1].metric}")]
    twice = card(run_of(replace(evaluation(), settings=both, rows=rows)))
    assert twice.count("accuracy on held-out pairs") == 1  # one model in two roles
    assert "accuracy on held-out pairs" not in before
    (row,) = [line for line in after.splitlines() if "accuracy on held-out pairs" in line]
    assert row.startswith("| rm | accuracy on held-out pairs (of 10 pairs;") and row.endswith("| 5 | scores |")


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_model_without_an_evaluation_has_no_results_that_apply(language):
    words = WORDS[language]
    alone, scored = card(run_of(), language), card(run_of(evaluation()), language)
    assert words["limit_data"] not in alone and words["limit_unmeasured"] in alone and words["none_measured"] in alone
    assert words["limit_data"] in scored and words["limit_unmeasured"] not in scored


def test_the_steps_add_up():
    (row,) = [line for line in card(run_of()).splitlines() if line.startswith("| policy | `train.sft`")]
    assert row == "| policy | `train.sft` | 36 | 27 | too_long 2, held out 7 |"


def test_code_has_no_placeholders():
    assert 'name = "."  # the path of this folder' in card(run_of())
    assert "llama-cli -m tiny-q8_0.gguf --jinja" in card(run_of(), form="gguf", file="tiny-q8_0.gguf")
    for text in (card(run_of()), card(run_of(), reward=True), card(run_of(), form="gguf")):
        assert "FOLDER" not in text and "FILE" not in text


def test_each_language_writes_numbers_and_names_its_own_way():
    shown = {}
    for language in LANGUAGES:
        text = card(run_of(evaluation()), language, plots=[("Reward", "plots/1.svg"), ("Reward: mine", "plots/2.svg")])
        rows = [line for line in text.splitlines() if "scores |" in line]
        shown[language] = (*rows, *re.findall(r"!\[(.*?)\]", text))
        assert (language == "en") is ("attention heads" in text)
    gap = "\N{NO-BREAK SPACE}"
    assert shown["ja"] == (
        "| 正しく終了した応答（終端の判定を通過した応答の割合） | 0.250 | 0.500 | 0.375〜0.625（95%） "
        "| +0.250（−0.250〜+0.750） | 1,200 | scores |",
        "| rm | 検証用ペアでの正解率（10 ペア；平均の長さ（プロンプトを含む）は、選ばれた側が 53.9 トークン、"
        "選ばれなかった側が 51.2 トークン） | 0.750 | 0.625〜0.875（95%） | 5 | scores |",
        "報酬",
        "報酬：mine",
    )
    assert shown["ru"] == (
        "| правильно завершённые ответы (доля ответов, прошедших проверку завершающей строки) | 0,250 | 0,500 "
        f"| от 0,375 до 0,625 (95{gap}%) | +0,250 (от −0,250 до +0,750) | 1{gap}200 | scores |",
        "| rm | точность на отложенных парах (пар: 10; средняя длина в токенах вместе с промптом: предпочтённые 53,9, "
        f"отвергнутые 51,2) | 0,750 | от 0,625 до 0,875 (95{gap}%) | 5 | scores |",
        "Вознаграждение",
        "Вознаграждение: mine",
    )


def test_figures_are_told_apart_from_names_and_versions():
    assert Language("ru").figures("1,234,567 and 0.5") == "1\N{NO-BREAK SPACE}234\N{NO-BREAK SPACE}567 and 0,5"
    for text in ("8192", "v1.5", "2.13.0+cpu", "qwen2.5-0.5b", "[0.9, 0.99]x1,234,5"):
        assert Language("en").figures(text) == text
    assert Language("ru").figures("qwen2.5") == "qwen2.5" and Language("ru").figures("2.13.0+cpu") == "2.13.0+cpu"


def test_names_that_togi_did_not_give_stay_as_they_are():
    mine = RowView(metric="my metric", note="a note of mine", policy=interval(0.5, 0.1))
    assert [Language(each).metric(mine) for each in ("en", "ru")] == ["my metric (a note of mine)"] * 2


def test_every_title_of_a_curve_has_its_translations():
    fixed = [title for _, title, _ in KNOWN if r"\1" not in title]
    for title in fixed:
        for language in ("ja", "ru"):
            assert not re.search("[a-z]{5}", Language(language).curve(title)), title
    assert all(set(said) == {"ja", "ru"} for said in (*CURVES.values(), *METRICS.values(), *FIGURES.values()))


def test_every_column_of_a_benchmark_has_its_translations():
    units = [
        importlib.import_module(f"{benchmarks.__name__}.{unit.name}")
        for unit in pkgutil.iter_modules(benchmarks.__path__)
    ]
    found = [each for unit in units for each in vars(unit).values()]
    flat = [one for each in found for one in (each if isinstance(each, tuple) else (each,))]
    names = {each.name for each in flat if isinstance(each, Metric)}
    assert len(names) > 40 and names <= FIGURES.keys() | METRICS.keys()
    assert not FIGURES.keys() & METRICS.keys()
