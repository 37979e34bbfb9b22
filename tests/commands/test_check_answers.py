"""`togi check` finds what benchmarks, judges and pairs would refuse only after the training before them."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny_run import tiny_model

from togi.cli import main
from togi.core.records import Completion, Message, Prompt, Sample
from togi.stages.known_answers import Answers, answers_in

HEAD = """\
name: answered
seed: 3
models:
  a: {path: model, template: chatml}
  b: {path: model, template: chatml}
  far: {url: 'http://127.0.0.1:9/v1', model: far, revision: R}
  rm: {url: 'http://127.0.0.1:9/v1', model: rm, revision: R, kind: reward, protocol: togi}
data:
  questions: {path: questions.jsonl}
  maths: {path: maths.jsonl}
  pairs: {path: pairs.jsonl}
  rated: {path: rated.jsonl}
stages:
"""
RESPOND = "  r: {type: respond, prompts: $questions, models: [$a], samples: 2, max_tokens: 8}\n"
GRADED = "{type: graded, questions: $questions, max_tokens: 8, judge_max_tokens: 8"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    tiny_model(folder / "model")
    rows: dict[str, list[dict[str, Any]]] = {
        "questions": [{"question": f"How long is a day on moon {i}?", "aspect": "days"} for i in range(4)],
        "maths": [{"question_id": 1, "category": "math", "turns": ["What is 1 + 1?", "And 1 + 2?"]}],
        "pairs": [{"prompt": f"Name {i}.", "chosen": f"It is {i}.", "rejected": "I do not know."} for i in range(3)],
        "rated": [
            {"prompt": f"Name {i}.", "completion": text, "scores": {"s": 1.0, "t": 2.0}, "model": "x"}
            for i in range(2)
            for text in ("One.", "Two.")
        ],
    }
    for name, values in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
    (folder / "bad.j2").write_text("{{ answer }}{{ answer_a }}{{ answer_b }}{{ nowhere }}")
    return folder


def check(place: Path, monkeypatch: pytest.MonkeyPatch, stages: str) -> Any:
    monkeypatch.setenv("TOGI_HOME", str(place / "home"))
    (place / "answered.yaml").write_text(HEAD + stages)
    return CliRunner().invoke(main, ["check", str(place / "answered.yaml"), "--offline"])


def evaluated(*benchmarks: str, judge: str = "$a", models: str = "[$a, $b]") -> str:
    listed = ", ".join(benchmarks)
    return f"  s: {{type: evaluate, models: {models}, judge: {judge}, benchmarks: [{listed}]}}\n"


REFUSED = {
    "rubric": (
        evaluated(GRADED + ", rubric: nowhere}"),
        "have no text in column 'nowhere'; their other columns are as",
    ),
    "prompt": (evaluated(GRADED + ", prompt: bad.j2}"), "bad.j2: the prompt cannot be rendered"),
    "server": (evaluated(GRADED + ", rubric: nowhere}", judge="$far", models="[$far]"), "no text in column 'nowhere'"),
    "reference": (
        evaluated("{type: mt_bench, questions: $maths, max_tokens: 8}"),
        "stage s: mt_bench: question 1 (math) has no reference answer: set `references` to their file",
    ),
    "told": (
        RESPOND + "  s: {type: score, samples: $r, scorer: $rm, reference: true}\n",
        "stage s: reference needs prompts with a reference answer, and no prompt of $r has one",
    ),
    "follow_up": (
        RESPOND.replace("samples: 2", "follow_up: nowhere"),
        "stage r: follow_up: no prompt has a column 'nowhere'; the prompts have aspect",
    ),
    "documents": (evaluated("{type: rag, questions: $questions}"), "none of 4 questions has documents"),
    "alone": (
        evaluated("{type: arena, questions: $questions, max_tokens: 8}", models="[$a]"),
        "a is the baseline and the only model",
    ),
    "arena": (
        evaluated("{type: arena, questions: $questions, max_tokens: 8, prompt: bad.j2}"),
        "bad.j2: the prompt can",
    ),
    "column": (
        evaluated("{type: diversity, prompts: $questions, max_tokens: 8, question: nowhere}"),
        "has no column 'nowhere', which `question` names",
    ),
    "room": (
        evaluated("{type: answers, prompts: $questions, max_tokens: 250}"),
        "stage s: answers: none of 4 questions leaves a room for max_tokens 250",
    ),
    "category": (
        evaluated("{type: reward_accuracy, pairs: $pairs, by: nowhere}"),
        "has no column 'nowhere', which `by` names",
    ),
    "two": (
        evaluated(GRADED + ", rubric: nowhere}", "{type: rag, questions: $questions}"),
        "none of 4 questions has documents",
    ),
    "label": (
        RESPOND + "  j: {type: label, samples: $r, judge: $far, prompt: bad.j2}\n",
        "bad.j2: the prompt cannot be",
    ),
    "one": (
        RESPOND.replace("samples: 2", "samples: 1") + "  j: {type: label, samples: $r, judge: $b}\n",
        "stage j: $r has one answer to each prompt, so there is nothing to compare",
    ),
    "unscored": (RESPOND + "  c: {type: pairs, samples: $r}\n", "stage c: $r has no scores; score the answers first"),
    "by": (
        RESPOND
        + "  g: {type: label, samples: $r, judge: $b, method: graded}\n  c: {type: pairs, samples: $g, by: foo}\n",
        "stage c: $g has the scores judge, and none is called 'foo'; change `by`",
    ),
    "several": ("  c: {type: pairs, samples: $rated}\n", "stage c: $rated has the scores s, t; choose one with `by`"),
    "many": (
        RESPOND
        + "  g: {type: label, samples: $r, judge: $b, method: graded}\n"
        + "  c: {type: pairs, samples: $g, best: 4, worst: 4}\n",
        "stage c: best 4 and worst 4 need 8 answers to each prompt, and $g has at most 2",
    ),
    "references": (
        "  c: {type: pairs, samples: $rated, by: s, chosen: reference}\n",
        "stage c: chosen: reference needs prompts with a reference answer, and no prompt of $rated has one",
    ),
    "long": (
        RESPOND.replace("max_tokens: 8", "max_tokens: 250"),
        "stage r: it would keep no row (too_long 4); change its settings or its rows",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_run_would_refuse_late_is_found(place, monkeypatch, case: str):
    stages, says = REFUSED[case]
    ended = check(place, monkeypatch, stages)
    assert ended.exit_code == 3 and says in " ".join(ended.stderr.split()), ended.output


FITS = {
    "judge": evaluated(GRADED + ", rubric: aspect}", judge="$far"),
    "servers": evaluated(GRADED + "}", judge="$far", models="[$far]"),
    "turns": evaluated("{type: mt_bench, questions: $maths, reference_categories: [], max_tokens: 8}"),
    "arena": evaluated("{type: arena, questions: $questions, max_tokens: 8}"),
    "pairs": evaluated("{type: reward_accuracy, pairs: $pairs}"),
    "safety": evaluated("{type: safety, questions: $questions, max_tokens: 8}"),
    "graded": RESPOND + "  g: {type: label, samples: $r, judge: $b, method: graded}\n  c: {type: pairs, samples: $g}\n",
    "verdicts": RESPOND
    + "  j: {type: label, samples: $r, judge: $b}\n  c: {type: pairs, samples: $r, verdicts: $j.verdicts}\n",
    "best": RESPOND
    + "  g: {type: label, samples: $r, judge: $b, method: graded}\n  c: {type: pairs, samples: $g, best: 2}\n"
    + "  sft: {type: train.sft, init: $a, chats: $c.best, steps: 1, batch_size: 2}\n",
    "rated": "  c: {type: pairs, samples: $rated, by: s}\n  j: {type: label, samples: $rated, judge: $far}\n",
}


@pytest.mark.parametrize("case", FITS)
def test_what_a_run_would_take_fits(place, monkeypatch, case: str):
    ended = check(place, monkeypatch, FITS[case])
    assert ended.exit_code == 0 and "all keys" in ended.output, ended.output


def test_the_rows_of_benchmarks_are_shown_with_their_counts(place, monkeypatch):
    ended = check(place, monkeypatch, evaluated(GRADED + "}", "{type: answers, prompts: $questions, max_tokens: 8}"))
    assert "stage s (evaluate): 8 rows" in ended.output, "both models read alike"
    assert "records of graded 4, records of answers 4" in ended.output


def sample(prompt: str, answer: str | None = None, **scores: float) -> Sample:
    asked = Prompt(id=prompt, messages=(Message("user", prompt),), answer=answer)
    return Sample(id="s", prompt=asked, completion=Completion(text="x", stop="terminator"), scores=scores)


def test_samples_tell_their_groups_scores_and_references():
    rows = [sample("a", s=1.0), sample("a", t=2.0), sample("b", answer=" ")]
    assert answers_in(rows) == Answers(group=2, scores=("s", "t"), references=False)
    assert answers_in([sample("a", answer="yes").prompt]) == Answers(references=True)
    assert answers_in([]) == answers_in([sample("a")] * 20_000) == Answers()
