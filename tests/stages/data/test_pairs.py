"""`pairs` as a stage, and the path from answers to a trained policy."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_run import RECIPE, togi, write_recipe

from togi.core.codec import read_records, write_records
from togi.core.errors import InputError, StageError
from togi.core.records import Completion, Message, Prompt, Sample, Verdict
from togi.core.settings import SamplesRef, VerdictsRef
from togi.report.collect import collect
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Control, Resolved
from togi.stages.data.pairs import STAGE, Pairs
from togi.stages.data.pairs_work import run


def samples(scores: list[dict[str, float | None]], per_prompt: int = 3) -> list[Sample]:
    return [
        Sample(
            id=f"s{i}",
            prompt=Prompt(id=f"p{i // per_prompt}", messages=(Message("user", "Why?"),)),
            completion=Completion(text=f"answer {i}", stop="terminator"),
            scores=each,
            index=i % per_prompt,
        )
        for i, each in enumerate(scores)
    ]


def context(folder: Path, records: list[Sample], verdicts: list[Verdict] | None = None) -> Context:
    write_records(folder / "x" / RECORDS_FILE, "samples", records)
    inputs: dict[str, Resolved] = {SamplesRef("$x"): Resolved("samples", folder=folder / "x")}
    if verdicts is not None:
        write_records(folder / "v" / RECORDS_FILE, "verdicts", verdicts)
        inputs[VerdictsRef("$v")] = Resolved("verdicts", folder=folder / "v")
    made = Context("pairs", folder / "pairs-0", folder, 1, inputs, Control(send=lambda event: None))
    made.folder.mkdir(exist_ok=True)
    made.reasons = STAGE.reasons
    return made


def paired(made: Context, **given: Any) -> list[tuple[str, ...]]:
    run(Pairs.model_validate({"samples": "$x", **given}), made)
    made.finish()
    return [pair.parents for pair in read_records(made.folder / RECORDS_FILE)[1]]


def test_answers_to_one_prompt_are_ranked_together(tmp_path):
    made = context(tmp_path, samples([{"rm": s} for s in (1, 3, 2, 9, 7, 8)]))
    assert paired(made) == [("s1", "s0"), ("s3", "s4")]
    best = read_records(made.folder / "output" / "best.parquet")[1]
    assert [chat.parents for chat in best] == [("s1",), ("s3",)]
    assert made.counts == {"samples": 6, "in": 2, "out": 2, "best": 2}
    assert made.summary["by"] == "rm" and made.summary["examples"][0]["said"][1]["score"] == 1


def test_which_score_ranks_is_said_where_there_are_several(tmp_path):
    made = context(tmp_path, samples([{"rm": 1, "judge": 2.0}, {"rm": 2, "judge": 1.0}, {"rm": 0, "judge": None}]))
    with pytest.raises(InputError, match=r"\$x has the scores rm, judge; choose one with `by`"):
        paired(made)
    with pytest.raises(InputError, match=r"none is called 'jugde'; change `by`"):
        paired(made, by="jugde")
    assert paired(context(tmp_path / "a", samples([{"rm": 1, "judge": 2}, {"rm": 2, "judge": 1}])), by="rm") == [
        ("s1", "s0")
    ]
    made = context(tmp_path, samples([{"rm": 1, "judge": 2.0}, {"rm": 2, "judge": 1.0}, {"rm": 0, "judge": None}]))
    assert paired(made, by="judge") == [("s0", "s1")]
    assert [(drop.id, drop.reason) for drop in made.drops] == [("s2", "no_score")]
    assert paired(context(tmp_path / "nan", samples([{"rm": 1}, {"rm": math.nan}, {"rm": 0}]))) == [("s0", "s2")]
    with pytest.raises(InputError, match="has no scores; score the answers first"):
        paired(context(tmp_path / "b", samples([{}, {}])))


@pytest.mark.parametrize("first", [{}, {"rm": None}])
def test_the_first_answers_may_lack_the_score(tmp_path, first):
    made = context(tmp_path, samples([first, first, first, {"rm": 1.0}, {"rm": 2.0}, {"rm": 0.0}]))
    assert paired(made) == [("s4", "s5")]
    assert made.counts == {"samples": 6, "in": 2, "out": 1, "best": 1}  # prompts without any score come in too
    assert [(drop.id, drop.reason) for drop in made.drops] == [(f"s{i}", "no_score") for i in range(3)]
    made = context(tmp_path / "two", samples([{"rm": 1.0}, {"rm": 2.0}, {"judge": 0.0}]))
    with pytest.raises(InputError, match=r"\$x has the scores rm, judge; choose one with `by`"):
        paired(made)


def test_verdicts_rank_where_there_are_no_scores(tmp_path):
    said = [("s0", "s1", "s1"), ("s1", "s2", "s1"), ("s0", "s2", "s0")]
    verdicts = [
        Verdict(id=f"v{i}", prompt="p0", answers=(a, b), judge="j", text="", winner=winner)
        for i, (a, b, winner) in enumerate(said)
    ]
    made = context(tmp_path, samples([{}, {}, {}]), verdicts)
    assert paired(made, verdicts="$v", worst=2) == [("s1", "s2"), ("s1", "s0")]
    with pytest.raises(ValueError, match="remove verdicts or by"):
        Pairs.model_validate({"samples": "$x", "verdicts": "$v", "by": "rm"})
    with pytest.raises(ValueError, match="min_gap is not read with chosen: reference"):
        Pairs.model_validate({"samples": "$x", "chosen": "reference", "min_gap": 1})


def test_answers_that_stand_apart_are_ranked_apart_and_told(tmp_path):
    records = samples([{"rm": float(i)} for i in range(6)])
    made = context(tmp_path, [records[i] for i in (0, 1, 3, 4, 2, 5)])
    assert paired(made) == [("s1", "s0"), ("s4", "s3")]
    assert made.drop_counts() == {"too_few": 2}
    assert "torn_prompts" in (made.folder / "alarms.jsonl").read_text()


def test_nothing_to_make_is_an_error_and_no_pair_an_alarm(tmp_path):
    made = context(tmp_path, samples([{"rm": 1}, {"rm": 1}, {"rm": 1}]))
    assert paired(made) == []
    made.finish()
    assert "nothing_left" in (made.folder / "alarms.jsonl").read_text()
    with pytest.raises(StageError, match="the answers to 1 prompts gave no records; reasons: tie 1"):
        paired(context(tmp_path / "a", samples([{"rm": 1}, {"rm": 1}, {"rm": 1}])), min_chosen=2)


# --- as a user runs it ------------------------------------------------------------------------------------------------

ROAD = """\
  again: {type: train.sft, init: $base, chats: $chosen.best, batch_size: 2, epochs: 1}
  answers: {type: respond, prompts: $some, models: [$base, $again0], samples: 2, max_tokens: 8, truncated: keep}
  graded: {type: score, samples: $answers, scorer: $reward}
  second: {type: score, samples: $graded, scorer: $reward, as: other}
  chosen: {type: pairs, samples: $second, by: other, best: 1, worst: 2}
  policy: {type: train.dpo, init: $again0, pairs: $chosen, batch_size: 2, epochs: 1}
  fresh: {type: respond, prompts: $some, models: [$policy], max_tokens: 8, truncated: keep}
"""


@pytest.mark.slow
def test_from_answers_over_scores_to_a_policy_that_answers(tmp_path):
    """Trained models answer, a trained reward model scores; one of two scores ranks; the best answers become chats."""
    head = RECIPE[: RECIPE.index("  policy:")]
    first = "  again0: {type: train.dpo, init: $base, pairs: $pairs, batch_size: 2, epochs: 1}\n"
    recipe = write_recipe(tmp_path, head + first + ROAD)
    home = tmp_path / "home"
    ended = togi(home, "run", str(recipe), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    shown = json.loads(togi(home, "show", str(recipe), "second", "--json", "-n", "99").stdout)["records"]
    assert {row["model"] for row in shown} == {"base", "again0"}
    assert all([score["name"] for score in row["scores"]] == ["reward", "other"] for row in shown)
    pairs: list[Any] = read_records(home / "runs" / "tiny" / "chosen" / RECORDS_FILE)[1]
    assert pairs and all(pair.margin > 0 for pair in pairs)
    fresh: list[Any] = read_records(home / "runs" / "tiny" / "fresh" / RECORDS_FILE)[1]
    assert {sample.model for sample in fresh} == {"policy"}
    stages = {stage.name: stage for stage in collect(home / "runs" / "tiny").stages}
    assert stages["chosen"].counts_in == 6 and stages["answers"].counts_out
    checked = togi(home, "check", str(recipe))
    assert checked.returncode == 0 and "stage fresh (respond): 6 rows" in checked.stdout, (
        checked.stderr + checked.stdout
    )
    assert "answers" in togi(home, "plan", str(recipe)).stdout
    renamed = recipe.read_text().replace("again0", "sire")
    recipe.write_text(renamed)
    assert togi(home, "run", str(recipe), "--threads", "1", "--until", "answers").returncode == 0
    named: list[Any] = read_records(home / "runs" / "tiny" / "answers" / RECORDS_FILE)[1]
    assert {sample.model for sample in named} == {"base", "sire"}  # samples hold the names of models
