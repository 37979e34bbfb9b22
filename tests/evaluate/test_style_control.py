"""Style control: the two regressions against scikit-learn, what they remove, and what cannot be controlled."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from stored_verdicts import write_jsonl

from togi.commands.evaluate import arena_notes
from togi.core.errors import InputError
from togi.evaluate.arena import Battle, Draw, Rows, rank, with_leaks
from togi.evaluate.arena_files import read_styles
from togi.evaluate.arena_style import StyleControl, controlled_strengths, rank_controlled
from togi.evaluate.markdown import Style, markup_counts
from togi.evaluate.statistics import Regression

FEW = Draw(rounds=100)
MODELS = ("m", "o")


def made(questions=150, seed=5, wins_by_length=2.0):
    """Games of two models against a baseline, won by length alone; `m` writes longer answers than the baseline."""
    draw = np.random.default_rng(seed)
    styles = {
        name: {
            str(q): Style(
                tokens=float(draw.integers(50, 150) * (2 if name == "m" else 1)),
                headers=int(draw.integers(4)),
                lists=int(draw.integers(9)),
                bold=int(draw.integers(5)),
            )
            for q in range(questions)
        }
        for name in ("base", *MODELS)
    }
    battles = []
    for model in MODELS:
        for q in range(questions):
            a, b = styles["base"][str(q)].tokens, styles[model][str(q)].tokens
            for _ in range(2):
                share = float(draw.random() < 1 / (1 + np.exp(-wins_by_length * 3 * (a - b) / (a + b))))
                share = 0.5 if draw.random() < 0.15 else share
                battles.append(Battle(model_a="base", model_b=model, share=share, question=str(q)))
    return Rows(battles), styles


def by_sklearn(rows, styles, rules):
    """The published design, built row by row: each battle enters twice, a tie once for each side."""
    names = ["base", *MODELS]
    sides = np.zeros((len(rows.battles), 3))
    values = []
    for place, battle in enumerate(rows.battles):
        sides[place, 0], sides[place, names.index(battle.model_b)] = 1.0, -1.0
        a, b = (styles[name][battle.question] for name in (battle.model_a, battle.model_b))
        a, b = (np.array([s.tokens, s.headers, s.lists, s.bold]) for s in (a, b))
        if rules == "v2":
            length = (a[0] - b[0]) / (a[0] + b[0])
            a, b = a / (a[0] + 1), b / (b[0] + 1)
            values.append([length, *((a - b) / (a + b + 1))[1:]])
        else:
            values.append((a - b) / (a + b + 1))
    style = np.array(values)
    style = (style - style.mean(axis=0)) / style.std(axis=0, ddof=0 if rules == "v0.1" else 1)
    unit = np.log(10) if rules == "v0.1" else 1.0
    x = np.concatenate([unit * sides if rules == "v0.1" else sides[:, 1:], style], axis=1)
    share = np.array([battle.share for battle in rows.battles])
    weight = np.concatenate([share, 1 - share]) * (2 if rules == "v0.1" else 1)
    fit = LogisticRegression(C=1.0 if rules == "v0.1" else np.inf, fit_intercept=False, tol=1e-12, max_iter=10_000)
    coef = fit.fit(np.concatenate([x, x]), np.repeat([1, 0], len(x)), sample_weight=weight).coef_[0]
    strength = unit * (coef[1:3] - coef[0]) if rules == "v0.1" else coef[:2]
    return dict(zip(MODELS, 100 / (1 + np.exp(-strength)), strict=True)), coef[-4:]


@pytest.mark.parametrize("rules", ["v0.1", "v2"])
def test_both_regressions_agree_with_scikit_learn_on_the_published_design(rules):
    rows, styles = made()
    found = rank_controlled(rows, StyleControl(control="both", rules=rules, styles=styles), FEW)
    wanted, style = by_sklearn(rows, styles, rules)
    for model in MODELS:
        assert found.standings[model].win_rate == pytest.approx(wanted[model], abs=1e-4)
    assert list(found.style.values()) == pytest.approx(style.tolist(), abs=1e-4)
    assert list(found.style) == ["length", "headers", "lists", "bold"]


@pytest.mark.parametrize("control", ["length", "both"])
def test_a_model_that_wins_by_length_alone_loses_that_under_control_and_keeps_it_under_markdown(control):
    rows, styles = made(questions=400)
    plain = rank(rows, rounds=100).standings["m"]
    under = rank_controlled(rows, StyleControl(control=control, rules="v2", styles=styles), FEW)
    markup = rank_controlled(rows, StyleControl(control="markdown", rules="v2", styles=styles), FEW)
    gap = {
        name: one.standings["m"].win_rate - one.standings["o"].win_rate for name, one in (("u", under), ("k", markup))
    }
    assert abs(gap["u"]) < 6 and gap["k"] > 15  # compared at the mean difference of style
    assert under.standings["m"].uncontrolled == pytest.approx(plain.win_rate)
    assert under.standings["m"].low < under.standings["m"].win_rate < under.standings["m"].high


def test_the_same_seed_gives_the_same_interval_and_resamples_are_those_of_the_fit():
    rows, styles = made(questions=40)
    control = StyleControl(control="both", rules="v0.1", styles=styles)
    assert rank_controlled(rows, control, FEW) == rank_controlled(rows, control, FEW)
    draw = np.random.default_rng(0)
    x, share = draw.normal(size=(200, 3)), draw.random(200)
    fit = Regression(x_NK=x, share_N=share, weight_N=np.ones(200), penalty=0.5)
    counts = draw.integers(0, 3, size=(4, 200)).astype(float)
    alone = [Regression(x_NK=x, share_N=share, weight_N=own, penalty=0.5).fit() for own in counts]
    assert fit.resampled(counts, fit.fit()) == pytest.approx(np.array(alone), abs=1e-6)


def test_what_cannot_be_controlled_is_said():
    rows, styles = made(questions=5)
    flat = {name: {q: Style(tokens=10.0, headers=0, lists=0, bold=0) for q in own} for name, own in styles.items()}
    with pytest.raises(InputError, match=r"style control \(both\): the answers of all battles differ in style"):
        rank_controlled(rows, StyleControl(control="both", rules="v2", styles=flat), FEW)
    with pytest.raises(InputError, match="question 3: no answer by o"):
        rank_controlled(
            rows,
            StyleControl(control="both", rules="v2", styles={**styles, "o": {**styles["o"], "3": None}}),
            FEW,
        )
    with pytest.raises(InputError, match="no answers by base; found m"):
        rank_controlled(rows, StyleControl(control="both", rules="v2", styles={"m": styles["m"]}), FEW)


def test_a_model_that_won_everything_has_no_elo_and_a_bound():
    rows, styles = made(questions=20)
    won = [Battle(model_a="base", model_b="w", share=0.0, question=str(q)) for q in range(20)]
    both = Rows([*rows.battles, *won])
    control = StyleControl(control="both", rules="v2", styles={**styles, "w": styles["m"]})
    standing = rank_controlled(both, control, FEW).standings["w"]
    assert (standing.win_rate, standing.high, standing.elo) == (100.0, 100.0, None) and standing.low < 100


def test_a_model_with_one_question_beside_others_has_the_bound_of_one_question():
    rows, styles = made(questions=60)
    few = [Battle(model_a="base", model_b="few", share=share, question="0") for share in (0.0, 0.5)]
    control = StyleControl(control="length", rules="v2", styles={**styles, "few": styles["m"]})
    standing = rank_controlled(Rows([*rows.battles, *few]), control, FEW).standings["few"]
    rate = standing.win_rate
    assert standing.low <= 0.026 * rate and standing.high >= 100 - 0.026 * (100 - rate)


def decided(questions):
    """Each question is won by the longer answer, and each side is longer on half of them."""
    base = {str(q): Style(tokens=100.0, headers=0, lists=0, bold=0) for q in range(questions)}
    own = {str(q): Style(tokens=50.0 + 150 * (q % 2), headers=0, lists=0, bold=0) for q in range(questions)}
    battles = [Battle(model_a="base", model_b="m", share=float(q % 2 == 0), question=str(q)) for q in range(questions)]
    return Rows(battles), {"base": base, "m": own}


def test_style_that_decides_every_battle_has_no_finite_effect_and_that_is_said():
    rows, styles = decided(40)
    with pytest.raises(InputError, match=r"style control \(length\): style, alone or with the models, decides"):
        rank_controlled(rows, StyleControl(control="length", rules="v2", styles=styles), FEW)
    penalised = rank_controlled(rows, StyleControl(control="length", rules="v0.1", styles=styles), FEW)
    assert 1 < penalised.style["length"] < 10
    shorter = [Battle(model_a="base", model_b="m", share=float(q), question=str(q)) for q in (0, 1)]
    mixed = Rows([*rows.battles, *shorter * 9])  # in these the shorter answer wins
    found = rank_controlled(
        mixed, StyleControl(control="length", rules="v2", styles=styles), Draw(rounds=100, by="row")
    )
    assert 0 < found.style["length"] < 5


def test_the_rate_on_questions_without_leaks_has_the_same_control():
    rows, styles = made(questions=200)
    leaked = {"m": [str(q) for q in range(0, 200, 4)]}
    clean = Rows([battle for battle in rows.battles if int(battle.question) % 4 or battle.model_b != "m"])
    for rules in ("v0.1", "v2"):
        control = StyleControl(control="both", rules=rules, styles=styles)
        shown = rank_controlled(rows, control, FEW)
        found = with_leaks(shown, rows, leaked, controlled_strengths(control)).standings["m"]
        wanted = rank_controlled(clean, control, FEW).standings["m"]
        assert found.unleaked == pytest.approx(wanted.win_rate) and found.leaked == 50
        assert abs(found.unleaked - wanted.uncontrolled) > 3


def test_too_few_questions_without_leaks_have_no_controlled_rate():
    rows, styles = made(questions=20)
    control = StyleControl(control="both", rules="v2", styles={**styles})
    leaked = {name: [str(q) for q in range(1, 20)] for name in MODELS}
    found = with_leaks(rank_controlled(rows, control, FEW), rows, leaked, controlled_strengths(control))
    assert found.standings["m"].unleaked is None and found.standings["m"].leaked == 19
    assert [note for note in arena_notes(found) if "the other questions are too few for a win rate" in note]


# --- markup -----------------------------------------------------------------------------------------------------------

TEXT = "# One\n## Two\n- item\n* item\n1. first\n**bold** and __bold__\n```\n# no header\n- no item\n```\n###no header"


def test_markup_is_counted_outside_code():
    counts = markup_counts(TEXT)
    assert counts["header_count"] == {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 0}
    assert counts["list_count"] == {"ordered": 1, "unordered": 2}
    assert counts["bold_count"] == {"**": 1, "__": 1}


def test_styles_come_from_counts_of_either_layout_or_from_the_text(tmp_path):
    counts = {"header_count": {"h1": 2}, "list_count": {"ordered": 1, "unordered": 4}, "bold_count": {"**": 3, "__": 0}}
    turns = [{"content": TEXT, "token_len": 50}]
    rows = [
        {"question_id": 1, "model_id": "m", "choices": [{"index": 0, "turns": turns}]},
        {"question_id": 2, "model_id": "m", "conv_metadata": {"token_len": 9, **counts}, "choices": []},
        {"uid": "q", "model": "o", "metadata": {"token_len": 7, **counts}, "messages": []},
        {"uid": "r", "model": "o", "metadata": {"token_len": 8}, "messages": [{"content": {"answer": "**x**"}}]},
    ]
    found = read_styles(write_jsonl(tmp_path / "a.jsonl", rows))
    assert found["m"] == {
        "1": Style(tokens=50.0, headers=2, lists=3, bold=2),
        "2": Style(tokens=9.0, headers=2, lists=5, bold=3),
    }
    assert found["o"]["q"] == Style(tokens=7.0, headers=2, lists=5, bold=3)
    assert found["o"]["r"] == Style(tokens=8.0, headers=0, lists=0, bold=1)
    broken = {"uid": "q", "model": "o", "metadata": {"token_len": 7, **counts, "bold_count": {"**": "x"}}}
    with pytest.raises(InputError, match=r"b.jsonl:1: bold_count: found 'x'; expected a number from 0"):
        read_styles(write_jsonl(tmp_path / "b.jsonl", [broken]))
    with pytest.raises(InputError, match=r"c.jsonl:1: no answer"):
        read_styles(write_jsonl(tmp_path / "c.jsonl", [{"uid": "q", "model": "o", "metadata": {"token_len": 7}}]))
