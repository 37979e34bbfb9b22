"""The card of a model, from the data of a run: what it says of evaluations, and how each language writes it."""

import re
from dataclasses import replace

import pytest

from togi.report.card_language import Language
from togi.report.card_names import CURVES, METRICS
from togi.report.card_words import LANGUAGES, WORDS
from togi.report.curves import KNOWN
from togi.report.model_card import ModelFacts, measured, model_card
from togi.report.view import AlarmView, BenchmarkView, IntervalView, RowView, RunView, StageView

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


def test_alarms_of_stages_that_did_not_measure_the_model_are_not_on_its_card():
    other = StageView(name="x", type="evaluate", state="done", settings={"policy": "$other"}, alarms=[ALARM])
    text = card(run_of(other, alarms=[AlarmView(name="slow", message="the loss rose")]))
    assert "- `policy`: the loss rose" in text and "10 of 20" not in text


def test_a_benchmark_on_trained_questions_is_an_overlap_of_the_model_that_learnt_them():
    def benchmarked(subject: str) -> StageView:
        found = BenchmarkView(benchmark="b", columns=(), cells={}, rows=1, mark="", leaks={subject: 3})
        settings = {"models": ["$policy", "$other"]}
        return StageView(name="b", type="evaluate", state="done", settings=settings, benchmarks=[found], alarms=[ALARM])

    text = card(run_of(benchmarked("policy")))
    assert WORDS["en"]["overlap"] in text and "- `b`: " in text and "The benchmarks of `b` also measured" in text
    assert WORDS["en"]["no_leaks"] in card(run_of(benchmarked("other")))


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
    assert all(len(both) == 2 for both in (*CURVES.values(), *METRICS.values()))
