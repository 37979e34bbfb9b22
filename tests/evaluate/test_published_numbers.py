"""Reproduces published numbers from stored verdicts of real judges (docs/published.md). The others are in
test_stored_scores.py and test_arena_files.py."""

from collections import Counter

from stored_verdicts import needs_shared, pandalm_rows, vicuna_rows

from togi.evaluate.statistics import cluster_mean, wilson
from togi.judge.contests import decide

SIDES = {"1": 1, "2": 2, "Tie": 0}
ADJUSTED = {  # win rate against text-davinci-003
    "cyberagent--calm2-7b-chat": 77.5,
    "tokyotech-llm--Swallow-70b-instruct-hf": 51.875,
    "llm-jp--llm-jp-13b-instruct-lora-jaster-dolly-oasst-v1.0": 33.75,
    "llm-jp--llm-jp-13b-instruct-full-jaster-dolly-oasst-v1.0": 13.75,
    "rinna--japanese-gpt-neox-3.6b-instruction-ppo": 19.375,
    "rinna--japanese-gpt-neox-3.6b-instruction-sft-v2": 13.75,
}
PEER = "openai--text-davinci-003"


@needs_shared
def test_gpt_35_agrees_with_the_majority_of_people_on_697_of_999_pairs_of_pandalm():
    agreed = unread = 0
    for row in pandalm_rows():
        majority, votes = Counter(row[f"annotator{number}"] for number in (1, 2, 3)).most_common(1)[0]
        assert votes >= 2
        unread += row["gpt"] not in SIDES
        agreed += SIDES.get(row["gpt"]) == majority  # an unreadable verdict counts as wrong
    found = wilson(agreed, 999)
    assert (agreed, unread) == (697, 25)
    assert [round(100 * value, 1) for value in (found.low, found.mean, found.high)] == [66.9, 69.8, 72.5]


@needs_shared
def test_adjusted_win_rates_of_japanese_vicuna_come_out():
    """Its tie rule: a win in both orders is a win, a loss in both is a loss, and anything else is a tie."""
    wins: dict[str, list[float]] = {}
    for row in vicuna_rows():
        first = row["model_1"] != PEER
        worth = {"model_1": float(first), "model_2": float(not first), "tie": 0.5}
        outcome = decide([worth[row["g1_winner"]], worth[row["g2_winner"]]], "consistent").winner
        model = row["model_1"] if first else row["model_2"]
        wins.setdefault(model, []).append({"first": 1.0, "second": 0.0, None: 0.5}[outcome])
    assert {model: 100 * sum(own) / len(own) for model, own in wins.items()} == ADJUSTED
    for model, own in wins.items():
        interval = cluster_mean(own, range(80))
        assert interval is not None and interval.low < ADJUSTED[model] / 100 < interval.high
