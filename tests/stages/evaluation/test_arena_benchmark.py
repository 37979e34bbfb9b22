"""The arena as a benchmark, run as a user runs it: models and judge on a stub, labels counted by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from judges import shown
from stored_verdicts import write_jsonl
from stub_server import KEY, Says, stub_server
from tiny_run import togi

RECIPE = """\
name: arena
seed: 5
models:
  a: {url: 'URL', model: small, key_env: STUB_KEY}
  b: {url: 'URL', model: large, key_env: STUB_KEY}
data:
  questions: {path: questions.jsonl}
stages:
  scores:
    type: evaluate
    models: [$a, $b]
    judge: $b
    bootstrap: 200
    benchmarks:
      - {type: arena, questions: $questions, max_tokens: 64}
      - {type: arena, name: second, questions: $questions, max_tokens: 64, rules: v2, system: Be brief.}
      - {type: arena, name: weighed, questions: $questions, max_tokens: 64, read: logprobs}
"""
LABELS = {
    "Write about rain.": ("[[B>>A]]", "[[A>B]]"),
    "What is 2 + 2?": ("[[A>B]]", "[[B>A]]"),
    "Why is the sky blue?": ("[[A=B]]", "[[A=B]]"),
    "Name a bird.": ("First [[A>B]], no: [[B>A]]", "I cannot say."),
}
"""The judge's labels in the game with the baseline as A, and in the other game."""
MARGINS = {
    "Write about rain.": (2.0, -1.0),
    "What is 2 + 2?": (1.0, 1.0),
    "Why is the sky blue?": (-1.0, 3.0),
    "Name a bird.": (3.0, 1.0),
}
"""log p(A) - log p(B) in the same two games: the baseline in both; A equally in both; the model in both; A in both,
more so when it is the baseline."""
RATE = (3 + 1 + 2 / 2) / (3 + 1 + 2 + 2)


def said(body: dict[str, Any], index: int = 0) -> str:
    asked = body["messages"][-1]["content"]
    question = next(question for question in LABELS if question in asked)
    if "[[" not in asked:
        return f"{body['model']} on {question.lower()}"
    return LABELS[question][0 if shown(asked)[0].startswith("small") else 1]


def weighs(body: dict[str, Any]) -> dict[str, float]:
    asked = body["messages"][-1]["content"]
    margins = next((margins for question, margins in MARGINS.items() if question in asked), (0.0, 0.0))
    margin = margins[0 if shown(asked)[0].startswith("small") else 1]
    return {"A": margin - 4.0, "B": -4.0}


def ran(folder: Path, says: Says, failing: str = "") -> Path:
    """The folder after a run of the recipe on a stub that says `says`. The requests are in asked.json."""
    rows = [{"question_id": 70 + place, "question": question} for place, question in enumerate(LABELS)]
    write_jsonl(folder / "questions.jsonl", rows)
    with stub_server() as server:
        server.says, server.weighs, server.failing = says, weighs, failing
        (folder / "arena.yaml").write_text(RECIPE.replace("URL", server.url))
        found = togi(folder / "home", "run", str(folder / "arena.yaml"), STUB_KEY=KEY)
        (folder / "asked.json").write_text(json.dumps(server.asked))
    assert found.returncode == 0, found.stdout + found.stderr
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ran(tmp_path_factory.mktemp("arena"), said)


def table(folder: Path, benchmark: str) -> dict[str, Any]:
    (summary,) = (folder / "home" / "store").glob("evaluate-*/summary.json")
    return next(each for each in json.loads(summary.read_text())["benchmarks"] if each["benchmark"] == benchmark)


@pytest.mark.parametrize(("benchmark", "dropped"), [("arena", 2), ("second", 2)])
def test_labels_are_counted_as_rows_against_the_baseline(run: Path, benchmark: str, dropped: int):
    found = table(run, benchmark)
    assert found["baseline"] == "a" and found["rows"] == 8 and found["dropped"] == {"no_verdict": dropped}
    assert found["cells"]["b"]["win rate"]["value"] == pytest.approx(RATE)
    assert found["cells"]["a"]["win rate"]["value"] == pytest.approx(0.5)
    games = {name: cell["value"] for name, cell in found["parts"][0]["cells"]["b"].items()}
    assert games == {"rows won": 4, "rows tied": 2, "rows lost": 2, "questions": 3, "orders agree": 1}
    near = "the judge is not distinguishable from chance on b: both games agree on 2 of 2 answers"
    assert found["notes"] == [near, "b is the judge of its own answers"]


def test_a_system_prompt_opens_the_questions_and_no_request_to_the_judge(run: Path):
    asked = [[turn["content"] for turn in body["messages"]] for body in json.loads((run / "asked.json").read_text())]
    assert sum(texts[0] == "Be brief." and texts[1] in LABELS and len(texts) == 2 for texts in asked) == 8
    assert sum(texts[0] in LABELS for texts in asked) == 8, "the other benchmarks ask without it, both the same"
    judged = [texts for texts in asked if "[Answer A]" in texts[-1]]
    assert len(judged) > 16 and not any("Be brief." in text for texts in judged for text in texts)


SPOILT = LABELS | {
    "Write about rain.": ("[[A>B]]", "refused"),
    "Why is the sky blue?": ("[[A<B]]", "[[A>B]]"),
    "Name a bird.": ("I cannot say.", "[[A>B]]"),
}
"""Labels, a game whose request is refused, a reversed label, which only v2 reads, and a text without a label."""


def test_a_game_that_is_no_battle_is_counted_once_and_takes_no_part_in_the_agreement(tmp_path: Path):
    def says(body: dict[str, Any], index: int) -> str:
        asked = body["messages"][-1]["content"]
        if "[[" not in asked:
            return said(body)
        labels = next(labels for question, labels in SPOILT.items() if question in asked)
        return labels[0 if shown(asked)[0].startswith("small") else 1]

    ran(tmp_path, says, failing=r"[Answer A]\nlarge on write about rain.")
    dropped = {name: table(tmp_path, name)["dropped"] for name in ("arena", "second", "weighed")}
    assert dropped == {
        "arena": {"failed": 1, "no_verdict": 1, "unknown_label": 1},
        "second": {"failed": 1, "no_verdict": 3},
        "weighed": {"failed": 1, "no_verdict": 1},
    }
    agreed = {name: table(tmp_path, name)["parts"][0]["cells"]["b"]["orders agree"] for name in dropped}
    assert (agreed["arena"]["value"], agreed["arena"]["n"]) == (1, 1), "of the question that A won in one order"
    assert (agreed["second"]["value"], agreed["second"]["n"]) == (1, 2)


def test_a_judge_read_by_log_probabilities_decides_by_both_games_together(run: Path):
    found = table(run, "weighed")
    games = {name: cell["value"] for name, cell in found["parts"][0]["cells"]["b"].items()}
    assert games == {"rows won": 2, "rows tied": 2, "rows lost": 4, "questions": 4, "orders agree": 0.5}
    assert found["notes"][0] == "the judge is not distinguishable from chance on b: both games agree on 2 of 4 answers"
    assert found["manifest"]["common"]["read"] == "logprobs" and found["manifest"]["common"]["judge"]
    judged = files(run, "weighed", "model_judgment/b.jsonl")
    assert [[game["score"] for game in row["games"]] for row in judged] == [
        ["A>B", "B>A"],
        ["A=B", "A=B"],
        ["B>A", "A>B"],
        ["A>B", "B>A"],
    ]
    assert "[[A" not in judged[0]["games"][0]["user_prompt"], "one letter is asked for, and no label"


def files(folder: Path, benchmark: str, name: str) -> list[dict[str, Any]]:
    (path,) = (folder / "home" / "store").glob(f"evaluate-*/output/{benchmark}/{name}")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_files_lie_in_the_layouts_of_arena_hard_and_are_read_again(run: Path):
    judged = files(run, "arena", "model_judgment/b.jsonl")
    assert [row["question_id"] for row in judged] == ["70", "71", "72", "73"]
    assert [game["score"] for game in judged[0]["games"]] == ["B>>A", "A>B"]
    assert [game["score"] for game in judged[3]["games"]] == [None, None]
    assert files(run, "second", "model_judgment/b.jsonl")[0]["baseline"] == "a"
    answers = files(run, "arena", "model_answer/b.jsonl")
    assert answers[0]["choices"][0]["turns"][0]["content"] == "large on write about rain."
    (battles,) = (run / "home" / "store").glob("evaluate-*/output/arena/battles.jsonl")
    read = togi(run / "home", "evaluate", "arena", "--battles", str(battles), "--baseline", "a", "--json")
    assert json.loads(read.stdout)["models"]["b"]["win_rate"] == pytest.approx(100 * RATE)


def test_the_report_draws_the_leaderboard(run: Path):
    page = next((run / "home").rglob("report.html")).read_text()
    assert '<svg class="board"' in page and ">62.5<" in page


def test_a_model_alone_has_nobody_to_meet(tmp_path: Path):
    (tmp_path / "questions.jsonl").write_text('{"question": "Name a bird."}\n')
    with stub_server() as server:
        server.says = said
        (tmp_path / "arena.yaml").write_text(RECIPE.replace("URL", server.url).replace("[$a, $b]", "[$a]"))
        found = togi(tmp_path / "home", "run", str(tmp_path / "arena.yaml"), STUB_KEY=KEY)
    assert found.returncode != 0 and "add another one to models" in " ".join(found.stderr.split())
