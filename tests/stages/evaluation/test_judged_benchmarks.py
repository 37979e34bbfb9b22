"""MT-Bench, graded sets and safety, run as a user does: models on a stub, a judge that replays in its own process."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from stored_verdicts import SHARED, needs_shared, write_jsonl
from stub_server import KEY, Stub, stub_server
from tiny_run import results, togi

from togi.core.codec import write_records
from togi.core.errors import InputError
from togi.core.records import Document, Message, Prompt
from togi.core.settings import DocumentsRef, ModelRef, PromptsRef
from togi.core.sources import ModelSource
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Control, Resolved
from togi.stages.evaluation.benchmarks import graded_work, mt_bench_work
from togi.stages.evaluation.benchmarks.graded import GradedSet
from togi.stages.evaluation.benchmarks.mt_bench import MtBench
from togi.stages.evaluation.benchmarks.room_work import Room

QUESTIONS = PromptsRef("$questions")
RECIPE = """\
name: judged
seed: 5
models:
  a: {url: 'URL', model: small, key_env: STUB_KEY}
  b: {url: 'URL', model: large, key_env: STUB_KEY}
  judge: {url: 'JUDGE', model: JUDGED, key_env: STUB_KEY}
data:
  questions: {path: questions.jsonl}
  answers: {path: references.jsonl}
stages:
  scores:
    type: evaluate
    models: [$a, $b]
    judge: $judge
    bootstrap: 200
    benchmarks:
      - BENCHMARK
"""
MT_BENCH = "{type: mt_bench, questions: $questions, references: $answers, rounds: 2, protocol: llm-jp}"
TURNS = {
    "writing": ("Write about rain.", "Now in one line."),
    "math": ("What is 2 + 2?", "And 2 + 3?"),
    "stem": ("Why is the sky blue?", "And at dusk?"),
    "": ("Name a bird.", "Another one."),
}
ROWS = [
    {"question_id": 80 + place, "category": category, "turns": list(turns)}
    for place, (category, turns) in enumerate(TURNS.items())
]
REFERENCES = [{"question_id": 81, "choices": [{"index": 0, "turns": ["It is 4.", "It is 5."]}]}]
GRADES = {"writing": (7, 5), "math": (9, 3), "stem": (8, 6), "": (4, None)}
"""The judge's grades of both turns, before the extra point of model b; None is unreadable."""


def said(body: dict[str, Any], index: int = 0) -> str:
    """Returns an answer that depends on the model and on the last message."""
    return f"{body['model']} on {body['messages'][-1]['content'].lower()}"


@pytest.fixture
def server() -> Iterator[Stub]:
    with stub_server() as found:
        found.says = said
        yield found


@contextmanager
def replaying(folder: Path) -> Iterator[str]:
    """Runs the replaying judge in its own process while the block lasts; yields its URL."""
    path = write_jsonl(folder / "verdicts.jsonl", verdicts())
    command = [sys.executable, "-m", "togi.judge.replay", str(path), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+/v1", process.stdout.readline())
        assert found is not None
        yield found[0]
    finally:
        process.kill()
        process.communicate()


@dataclass
class Whole:
    """An undisturbed run of MT-Bench, and the requests that its servers received. The servers keep running."""

    path: Path
    home: Path
    asked: list[dict[str, Any]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    folder = tmp_path_factory.mktemp("whole")
    with stub_server() as found, replaying(folder) as url:
        found.says = said
        path = recipe(folder, MT_BENCH, found.url, url)
        ended = run(folder / "home", path)
        assert ended.returncode == 0, ended.stderr
        yield Whole(path, folder / "home", list(found.asked))


def verdicts() -> list[dict[str, Any]]:
    """Returns a row for each answer of both models; model b gets one point more."""
    rows = []
    for category, turns in TURNS.items():
        for model in ("small", "large"):
            for question, grade in zip(turns, GRADES[category], strict=True):
                text = "I cannot say." if grade is None else f"Rating: [[{grade + (model == 'large')}]]"
                answer = said({"model": model, "messages": [{"content": question}]})
                rows.append({"question": question, "answer": answer, "text": text})
    return rows


def recipe(folder: Path, benchmark: str, subjects: str, judge: str = "", name: str = "replay") -> Path:
    write_jsonl(folder / "questions.jsonl", ROWS)
    write_jsonl(folder / "references.jsonl", REFERENCES)
    text = RECIPE.replace("JUDGED", name).replace("JUDGE", judge or subjects).replace("URL", subjects)
    path = folder / "judged.yaml"
    path.write_text(text.replace("BENCHMARK", benchmark), encoding="utf-8")
    return path


def run(home: Path, path: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return togi(home, "run", str(path), "--threads", "1", *more, STUB_KEY=KEY, **environment)


def table(home: Path) -> dict[str, Any]:
    (folder,) = (home / "store").glob("evaluate-*")
    (found,) = json.loads((folder / "summary.json").read_text())["benchmarks"]
    return found


def values(cells: dict[str, Any], subject: str) -> dict[str, Any]:
    return {name: cell["value"] for name, cell in cells[subject].items()}


def test_mt_bench_through_a_recipe(whole: Whole) -> None:
    found = table(whole.home)
    cells = values(found["cells"], "a")
    assert cells["score"] == pytest.approx(42 / 7) and cells["turn 1"] == 7 and cells["turn 2"] == pytest.approx(14 / 3)
    assert cells["unreadable"] == 1 / 8 and cells["api errors"] == 0
    by_category, by_round = found["parts"]
    assert values(by_category["cells"], "b") == {"writing": 7, "math": 7, "stem": 8}
    assert values(by_round["cells"], "a") == {"round 1": 6, "round 2": 6}
    assert found["dropped"] == {"unreadable": 4} and found["rows"] == 4
    difference = found["differences"]["b"]["score"]
    assert difference["value"] == 1 and difference["n"] == 14
    report = (whole.home / "runs" / "judged" / "report.html").read_text()
    assert "mt_bench" in report and 'aria-label="by category"' in report and report.count('class="spoke"') == 3


def test_mt_bench_asks_as_published(whole: Whole) -> None:
    asked = [body for body in whole.asked if body["messages"][-1]["content"] in sum(TURNS.values(), ())]
    heat = {body["messages"][1]["content"]: body["temperature"] for body in asked}
    assert heat == dict(zip([turns[0] for turns in TURNS.values()], [0.7, 0.0, 0.1, 0.7], strict=True))
    assert all(body["messages"][0]["content"].startswith("以下は、タスク") for body in asked)
    assert all(body["max_tokens"] == 1024 for body in asked)
    second = next(body for body in asked if body["messages"][-1]["content"] == "And 2 + 3?")
    assert [turn["role"] for turn in second["messages"]] == ["system", "user", "assistant", "user"]
    assert second["messages"][2]["content"] in ("small on what is 2 + 2?", "large on what is 2 + 2?")


def test_killed_in_the_middle_it_ends_with_the_same_bytes(whole: Whole, tmp_path: Path) -> None:
    killed = run(tmp_path, whole.path, TOGI_CRASH_AT="mid_append:6")
    assert killed.returncode == 5, killed.stderr
    again = run(tmp_path, whole.path)
    assert again.returncode == 0, again.stderr
    assert results(tmp_path) == results(whole.home)


def room(folder: Path) -> Room:
    """Returns a benchmark's room with the questions and the reference answers, but without a model."""
    questions = [
        Prompt(id=f"q{row['question_id']}", messages=(Message("user", row["turns"][0]),), extra=row) for row in ROWS
    ]
    answers = [Document(id=f"r{row['question_id']}", text="", extra=row) for row in REFERENCES]
    write_records(folder / "questions" / RECORDS_FILE, "prompts", questions)
    write_records(folder / "answers" / RECORDS_FILE, "documents", answers)
    inputs: dict[str, Resolved] = {
        PromptsRef("$questions"): Resolved("prompts", folder=folder / "questions"),
        DocumentsRef("$answers"): Resolved("documents", folder=folder / "answers"),
    }
    context = Context("scores", folder / "stage", folder, 1, inputs, Control(send=lambda event: None))
    return Room(context=context, name="bench", subjects={})


@pytest.mark.parametrize(
    ("work", "settings", "says"),
    [
        (
            mt_bench_work,
            MtBench(questions=QUESTIONS),
            r"question 81 \(math\) has no reference answer: set `references` to their file, or remove math from",
        ),
        (
            mt_bench_work,
            MtBench(questions=QUESTIONS, references=DocumentsRef("$answers"), reference_categories=("stem",)),
            r"question 82 \(stem\) has no reference answer: add it to \$answers",
        ),
        (
            graded_work,
            GradedSet(questions=QUESTIONS, rubric="aspect"),
            "rubric: 4 of 4 questions have no text in column 'aspect'; their other columns are category, question_id",
        ),
    ],
    ids=["no-references", "no-reference", "no-rubric"],
)
def test_what_is_missing_is_said_before_anything_is_asked(tmp_path: Path, work: Any, settings: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        work.run(settings, room(tmp_path))


@pytest.mark.parametrize(
    ("settings", "more", "says"),
    [
        (GradedSet, {"scale": [5, 1]}, r"scale is \[5, 1\]: put the lowest grade first"),
        (MtBench, {"protocol": "llm-jp", "system": "Hi"}, "remove system"),
        (MtBench, {"temperatures": {"math": 3}}, "temperatures"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, more: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        settings(questions="$questions", **more)


def judge_says(server: Stub, grade: Callable[[str], str]) -> None:
    """The stub answers, or judges if the request contains double brackets."""

    def says(body: dict[str, Any], index: int) -> str:
        asked = body["messages"][-1]["content"]
        return grade(asked) if "[[" in asked else said(body)

    server.says = says


GRADED = "{type: graded, name: elyza, questions: $questions, rubric: aspect, scale: [1, 5], rounds: 2}"


def test_a_graded_set_asks_anew_in_each_round_and_goes_on_where_a_category_is_refused(
    server: Stub, tmp_path: Path
) -> None:
    """The judge sees reference and rubric. Greedy answers of a server, and greedy grades, vary between requests."""
    times = count(1)

    def says(body: dict[str, Any], index: int) -> str:
        asked = body["messages"][-1]["content"]
        if "[[" not in asked:
            return f"{said(body)} {next(times)}"
        return f"Rating: [[{3 + 2 * (next(times) % 2)}]]" if "names the bird" in asked else "Rating: [[11]]"

    server.says, server.failing = says, "ends the world"
    path = recipe(tmp_path, GRADED, server.url)
    path.write_text(path.read_text().replace("replay", "large"))
    rows = [
        {"question": "Name a bird.", "reference": "A wren.", "aspect": "names the bird", "category": "birds"},
        {"question": "Name a fish.", "reference": "A carp.", "aspect": "names the fish", "category": "fish"},
        {"question": "What ends the world?", "reference": "Ice.", "aspect": "knows", "category": "ends"},
    ]
    write_jsonl(tmp_path / "questions.jsonl", rows)
    ended = run(tmp_path / "home", path)
    assert ended.returncode == 0, ended.stderr
    found = table(tmp_path / "home")
    assert found["benchmark"] == "elyza" and found["cells"]["a"]["score"]["n"] == 2
    assert found["cells"]["a"]["score"]["low"] is None and found["dropped"] == {"unreadable": 4, "no_answer": 4}
    ends = found["parts"][0]["cells"]["a"]["ends"]
    assert (ends["value"], ends["n"], ends["note"]) == (None, 0, "no grade of 2")
    assert "the server of $a refused 1 of 3 prompts" in ended.stdout + ended.stderr
    asked = [body["messages"][-1]["content"] for body in server.asked if body["temperature"] == 0]
    assert asked.count("Name a bird.") == 4
    judged = {text for text in asked if "[[" in text and "names the bird" in text}
    assert len(judged) == 4 and all("A wren." in text for text in judged)


QUALITY = """\
regex: (正確性|総合評価):\\s?\\[\\[([0-9])\\]\\]
metrics: [正確性, 総合評価]
prompt_template: '[[評価値]] {question} / {response}'
"""


def test_a_prompt_of_several_metrics_gives_the_mean_of_each(server: Stub, tmp_path: Path) -> None:
    """As in llm-jp-judge: a text without a grade of each metric is unreadable, and so is one with a grade off the
    scale. The last metric is the score."""
    grades = {"bird": (2, 4), "fish": (5, 5), "tree": (9, 3), "hill": (None, 3)}

    def grade(asked: str) -> str:
        one, other = next(pair for word, pair in grades.items() if word in asked)
        return f"総合評価: [[{other}]]" if one is None else f"正確性: [[{one}]]\n総合評価: [[{other}]]"

    judge_says(server, grade)
    (tmp_path / "quality.yaml").write_text(QUALITY, encoding="utf-8")
    benchmark = "{type: graded, questions: $questions, prompt: quality.yaml, scale: [1, 5]}"
    path = recipe(tmp_path, benchmark, server.url, name="large")
    write_jsonl(tmp_path / "questions.jsonl", [{"question": f"Name a {word}."} for word in grades])
    ended = run(tmp_path / "home", path)
    assert ended.returncode == 0, ended.stderr
    found = table(tmp_path / "home")
    (part,) = found["parts"]
    assert part["title"] == "by metric" and values(part["cells"], "a") == {"正確性": 3.5, "総合評価": 4.5}
    assert found["cells"]["a"]["score"]["value"] == 4.5 and found["dropped"] == {"unreadable": 4}


def test_a_model_whose_server_refuses_everything_ends_the_run(server: Stub, tmp_path: Path) -> None:
    server.failing = "bird"
    path = recipe(tmp_path, "{type: graded, questions: $questions}", server.url, name="large")
    write_jsonl(tmp_path / "questions.jsonl", [{"question": "Name a bird."}])
    ended = run(tmp_path / "home", path)
    assert ended.returncode == 4 and "a answered none of 1 conversations" in " ".join(ended.stderr.split())


def test_a_judge_that_writes_nothing_readable_is_asked_no_more_than_a_few_times(server: Stub, tmp_path: Path) -> None:
    """Each request costs money. Eight questions, each asked twice, show that the judge or its prompt is wrong; with
    fewer questions, all of them do."""
    judge_says(server, lambda asked: "Well done!")
    path = recipe(tmp_path, "{type: graded, questions: $questions}", server.url, name="large")
    for questions, judged in ((20, 8), (2, 4)):
        server.asked.clear()
        write_jsonl(tmp_path / "questions.jsonl", [{"question": f"Name {word}."} for word in range(questions)])
        ended = run(tmp_path / f"home-{questions}", path)
        said = " ".join(ended.stderr.split())
        assert ended.returncode == 4, said
        assert f"no reply of $judge can be read as a verdict (the first of {judged}: 'Well done!')" in said
        assert sum("[[" in str(body["messages"]) for body in server.asked) == 2 * judged


def test_a_model_that_judges_its_own_answers_is_told(server: Stub, tmp_path: Path) -> None:
    judge_says(server, lambda asked: "Rating: [[5]]")
    path = recipe(tmp_path, "{type: graded, questions: $questions}", server.url, name="large")
    ended = run(tmp_path / "home", path)
    assert ended.returncode == 0, ended.stderr
    assert "ALARM judges_itself: b is the judge of its own answers" in ended.stdout + ended.stderr
    found = table(tmp_path / "home")
    assert found["notes"] == ["b is the judge of its own answers"]
    assert found["leaks"] == {"a": None, "b": None, "judge": None}, "nothing is known of models on servers"
    assert "a unknown, b unknown, judge unknown" in (tmp_path / "home/runs/judged/report.html").read_text()


def test_a_local_model_that_answers_nothing_is_told_why(tmp_path: Path) -> None:
    here = room(tmp_path)
    here.context.inputs[ModelRef("$a")] = Resolved("model", source=ModelSource(kind="path", name="/nowhere"))
    assert here.why_none("a", "max_tokens", 9).startswith("no prompt leaves room for 9 tokens in its context; lower")


SAFETY = (
    "{type: safety, questions: $questions, rounds: 1, safety_prompt: Be careful., labels: $answers, "
    "retries: 0, temperature: 0.5}"
)


def test_safety_counts_what_was_held_back_and_corrects_rates_by_labels(server: Stub, tmp_path: Path) -> None:
    """The judge considers every answer to the first half of the questions safe; people consider half of these safe."""
    judge_says(server, lambda asked: "Rating: [[5]]" if re.search(r"question [0-3]\b", asked) else "Rating: [[1]]")
    server.failing = "question 7"
    path = recipe(tmp_path, SAFETY, server.url)
    path.write_text(path.read_text().replace("replay", "large"))
    write_jsonl(tmp_path / "questions.jsonl", [{"text": f"question {n}", "output": "No."} for n in range(8)])
    path.write_text(path.read_text().replace("questions.jsonl}", "questions.jsonl, columns: {prompt: text}}"))
    labels = [
        {"prompt": f"question {n}", "completion": f"small on question {n}", "scores": {"human": 5 if n % 2 else 1}}
        for n in range(6)
    ]
    write_jsonl(tmp_path / "references.jsonl", labels)
    ended = run(tmp_path / "home", path)
    assert ended.returncode == 0, ended.stderr
    found = table(tmp_path / "home")
    assert list(found["cells"]) == ["a", "a with safety prompt", "b", "b with safety prompt"]
    cells = found["cells"]["a"]
    assert cells["accepted"]["value"] == 0.5 and cells["violating"]["value"] == 0.5
    assert cells["api errors"]["note"] == "1 of 8" and cells["refused"]["n"] == 7 and found["dropped"] == {}
    (part,) = found["parts"]
    assert (
        part["cells"]["a"]["accepted: people"]["value"] == 0.5 and part["cells"]["a"]["accepted: corrected"]["n"] == 8
    )
    assert part["cells"]["b"]["accepted: people"]["value"] is None
    careful = [body for body in server.asked if body["messages"][0]["content"] == "Be careful."]
    assert len(careful) == 14 and all(
        "No." in body["messages"][-1]["content"] for body in server.asked if "[[" in str(body)
    )


@needs_shared
@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_public_questions_with_the_prompts_of_fastchat(server: Stub, tmp_path: Path, language: str) -> None:
    """80 questions, two turns, the four prompts of the file; math is judged with its reference."""
    ja = SHARED / "mt_bench_ja" / "mt_bench_ja"
    en = SHARED / "mt_bench_en" / "mt_bench"
    files = {
        "en": (en / "question.jsonl", en / "reference_answer" / "gpt-4.jsonl"),
        "ja": (ja / "question" / "question_full-v3.jsonl", ja / "reference_answer" / "gpt-4-v1.jsonl"),
    }

    def says(body: dict[str, Any], index: int) -> str:
        asked = body["messages"][-1]["content"]
        judged = "[[rating]]" in str(body["messages"])
        return f"Rating: [[{9 if 'Reference Answer|>' in asked else 6}]]" if judged else "An answer."

    server.says = says
    prompts = SHARED / "mt_bench_en" / "judge_prompts.jsonl"
    benchmark = f"{{type: mt_bench, questions: $questions, references: $answers, rounds: 1, prompt: '{prompts}'}}"
    path = recipe(tmp_path, benchmark, server.url)
    text = path.read_text().replace("replay", "large").replace("[$a, $b]", "[$a]")
    path.write_text(
        text.replace("questions.jsonl", str(files[language][0])).replace("references.jsonl", str(files[language][1]))
    )
    ended = run(tmp_path / "home", path)
    assert ended.returncode == 0, ended.stderr
    found = table(tmp_path / "home")
    cells = found["cells"]["a"]
    assert cells["score"]["n"] == 160 and cells["turn 1"]["value"] == 6
    assert cells["turn 2"]["value"] == pytest.approx((30 * 9 + 50 * 6) / 80)
    assert len(found["parts"][0]["columns"]) == 8
    assert found["notes"] == (["1 reference answers are empty"] if language == "ja" else [])
