"""Answers from documents as a benchmark, run as a user runs it: models and judge on a stub, counted by hand."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from stub_server import KEY, stub_server
from tiny_run import tiny_model, togi

from togi.core.codec import write_records
from togi.core.errors import InputError
from togi.core.records import Message, Prompt
from togi.core.settings import ModelRef, NamedModelRef, PromptsRef
from togi.core.sources import ModelSource
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Control, Resolved
from togi.stages.cost import Known
from togi.stages.evaluation.benchmarks import rag_work
from togi.stages.evaluation.benchmarks.base import Asked, SubjectRef
from togi.stages.evaluation.benchmarks.rag import Rag, estimate
from togi.stages.evaluation.benchmarks.room_work import Room

RECIPE = """\
name: rag
seed: 5
models:
  grounded: {url: 'URL', model: small, key_env: STUB_KEY}
  plain: {url: 'URL', model: large, key_env: STUB_KEY}
data:
  questions: {path: squad.json}
  bare: {path: bare.jsonl}
stages:
  scores:
    type: evaluate
    models: [$grounded, $plain]
    judge: $plain
    bootstrap: 200
    benchmarks:
      - type: rag
        questions: $questions
        one_step: [$plain]
        max_tokens: 64
        shown: 2
        out_of_domain: 0.25
        published: [grounded_in_domain]
      - type: rag
        name: folder
        questions: $bare
        documents: countries
        one_step: [$plain]
        max_tokens: 64
        shown: 1
        correct: false
        support: false
      - type: rag
        name: weighed
        questions: $bare
        documents: countries
        one_step: [$plain]
        max_tokens: 64
        shown: 1
        read: logprobs
        support: false
"""
CAPITALS = {"Norway": "Oslo", "Japan": "Tokyo", "France": "Paris", "Ghana": "Accra"}
SQUAD = {
    "data": [
        {
            "title": country,
            "paragraphs": [
                {
                    "context": f"The capital of {country} is {city}.",
                    "qas": [
                        {"id": country, "question": f"Where is {country} ruled from?", "answers": [{"text": city}]}
                    ],
                }
            ],
        }
        for country, city in CAPITALS.items()
    ]
}
NOTHING = "The documents do not answer this question."


def said(body: dict[str, Any], index: int = 0) -> str:
    """`small` names the country's document and the capital in it; `large` says Paris whatever it is shown. As a judge,
    `large` considers an answer correct if the reference contains it, and a second sentence unsupported."""
    turns = {turn["role"]: turn["content"] for turn in body["messages"]}
    asked = turns["user"]
    if "[[correct]]" in asked:
        answer = asked.partition("[Answer]\n")[2].partition(".")[0]
        return (
            "[[correct]]"
            if answer in asked.partition("[Reference answer]")[2].partition("\n[End")[0]
            else "[[incorrect]]"
        )
    if "[[none]]" in asked:
        return "[[2]]" if "\n2. " in asked else "[[none]]"
    if body["model"] == "large":
        return "Paris. It is large."
    country = next(name for name in CAPITALS if name in asked)
    documents = json.loads(turns["documents"])
    named = [each["doc_id"] for each in documents if country in each["content"]]
    if "assistant" not in turns:
        return f"```json\n{{'relevant_doc_ids': {named}}}\n```" if country != "Ghana" else "All of them."
    return f"{CAPITALS[country]}." if named else NOTHING


def weighed(body: dict[str, Any]) -> dict[str, float]:
    """The judge recognises correct answers of `small`; on answers of `large` it prefers the letter A."""
    asked = body["messages"][-1]["content"]
    answer = asked.partition("[Answer]\n")[2]
    if answer.startswith("Paris. It is large"):
        return {"A": -0.5, "B": -1.5 if "A: correct" in asked else -0.9}
    right = answer.startswith((*CAPITALS.values(), "The documents do not"))
    return {"A": -0.1, "B": -3.0} if right is ("A: correct" in asked) else {"A": -3.0, "B": -0.1}


@dataclass
class Whole:
    """A run, and the requests that its server received."""

    home: Path
    asked: list[dict[str, Any]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("rag")
    (folder / "squad.json").write_text(json.dumps(SQUAD))
    (folder / "countries").mkdir()
    for country, city in CAPITALS.items():
        (folder / "countries" / f"{country}.md").write_text(f"# {country}\n\nThe capital of {country} is {city}.\n")
    rows = [{"question": f"From where is {country} ruled?", "answer": city} for country, city in CAPITALS.items()]
    (folder / "bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with stub_server() as server:
        server.says, server.weighs = said, weighed
        (folder / "rag.yaml").write_text(RECIPE.replace("URL", server.url))
        found = togi(folder / "home", "run", str(folder / "rag.yaml"), STUB_KEY=KEY)
        assert found.returncode == 0, found.stdout + found.stderr
        return Whole(folder / "home", list(server.asked))


def table(home: Path, benchmark: str = "rag") -> dict[str, Any]:
    (summary,) = (home / "store").glob("evaluate-*/summary.json")
    return next(each for each in json.loads(summary.read_text())["benchmarks"] if each["benchmark"] == benchmark)


def values(cells: dict[str, Any], subject: str) -> dict[str, Any]:
    return {name: cell["value"] for name, cell in cells[subject].items()}


def test_both_steps_are_counted_and_a_model_in_one_step_has_no_ids(whole: Whole):
    found = table(whole.home)
    assert found["rows"] == 4 and "3 in domain, 1 out of domain" in found["notes"][0]
    grounded, plain = values(found["cells"], "grounded"), values(found["cells"], "plain")
    assert grounded["correct"] == 1 and grounded["ROUGE-L"] == 1 and grounded["unsupported"] == 0
    assert grounded["ids: not readable"] == 0.25 and grounded["ids: exact"] == 1
    assert found["cells"]["grounded"]["ids: exact"]["n"] == 3, "the list of one answer cannot be read"
    assert plain["unsupported"] == 0.5 and {plain[name] for name in plain if name.startswith("ids")} == {None}
    assert "plain answered in one step" in found["notes"][1]
    inside, outside = found["parts"]
    assert (inside["note"], outside["note"]) == ("3 questions", "1 question")
    assert values(outside["cells"], "grounded")["correct"] == 1 and values(outside["cells"], "plain")["correct"] == 0
    assert values(inside["cells"], "plain")["correct"] < 1
    assert (
        found["cells"]["grounded"]["correct"]["low"] < 1
        and found["differences"]["plain"]["ids: exact"]["value"] is None
    )


def test_the_two_steps_are_asked_as_the_card_says_and_the_one_in_the_users_turn(whole: Whole):
    small = [body for body in whole.asked if body["model"] == "small" and "Where is" in str(body["messages"])]
    first = [body for body in small if body["messages"][-1]["role"] == "user"]
    second = [body for body in small if body["messages"][-1]["role"] == "assistant"]
    assert len(first) == len(second) == 4
    assert {body["temperature"] for body in first} == {0.0} and {body["temperature"] for body in second} == {0.3}
    assert [turn["role"] for turn in second[0]["messages"]] == ["system", "documents", "user", "assistant"]
    answered = [body["messages"][-1]["content"] for body in second]
    assert answered.count("All of them.") == 1, "what was said in the first step, as it stands"
    assert sum(content.startswith("```json") for content in answered) == 3
    said_last = [(body, body["messages"][-1]["content"]) for body in whole.asked]
    once = [body for body, text in said_last if "Documents: [{" in text and "Where is" in text]
    assert len(once) == 4 and all(len(body["messages"]) == 1 for body in once)
    support = [text for _, text in said_last if "[[none]]" in text]
    shown = {text.count("[Document: ") for text in support}
    assert shown == {0, 1, 2}, "the documents that were named; of an answer in one step, all"


def test_questions_to_a_folder_need_no_judge_and_nobody_says_what_answers_them(whole: Whole):
    found = table(whole.home, "folder")
    cells = found["cells"]["grounded"]
    assert cells["ROUGE-L"]["value"] == 1, "the page of each country was found"
    assert cells["ids: exact"]["value"] is None and "correct" not in cells and found["parts"] == []
    assert found["notes"][0] == "the questions do not say which documents answer them"


def test_a_judge_read_by_log_probabilities_is_asked_with_either_letter_for_correct(whole: Whole):
    found = table(whole.home, "weighed")
    cells = {name: own["correct"]["value"] for name, own in found["cells"].items()}
    assert cells == {"grounded": 1, "plain": 1} and "unsupported" not in found["cells"]["plain"]
    (note,) = [note for note in found["notes"] if "chance" in note]
    assert note == "the judge is not distinguishable from chance on plain: A and B for correct agree on 0 of 4 answers"
    asked = [body["messages"][-1]["content"] for body in whole.asked if body.get("logprobs")]
    assert sum("A: correct. B: incorrect." in text for text in asked) == 8
    assert sum("A: incorrect. B: correct." in text for text in asked) == 8


def test_log_probabilities_tell_no_list_of_sentences():
    with pytest.raises(
        ValueError, match="read: logprobs cannot give a list of unsupported sentences; set support: false"
    ):
        Rag(questions=PromptsRef("$questions"), read="logprobs")


def test_the_report_has_published_rows_beside_those_of_one_domain(whole: Whole):
    page = next(whole.home.rglob("report.html")).read_text()
    inside = page.partition("<summary>in domain</summary>")[2].partition("</details>")[0]
    heads = re.findall(r"<th.*?</th>", inside.partition("</tr>")[0])
    told = [place for place, head in enumerate(heads) if 'class="told"' in head]
    assert len(told) == page.count('<th class="told">') == 4, "a table of so many metrics has its models as columns"
    (place,) = [place for place in told if "gpt-3.5-turbo-0125" in heads[place] and "published" in heads[place]]
    rows = [re.findall(r"<td.*?</td>", row, re.DOTALL) for row in inside.split("</tr>")[1:] if "<td" in row]
    cells = {re.sub(r"<.*?>", "", row[0]): re.sub(r"<small>.*?</small>|<.*?>", "", row[place]).strip() for row in rows}
    assert {"49.0", "0.280", "—"} <= {*cells.values()}, cells


def room(folder: Path, template: str) -> Room:
    """Returns a room with the questions and one local model, which has this template."""
    tiny_model(folder / "model")
    prompt = Prompt(id="p", messages=(Message("user", "Why?"),), extra={"context": "Because."})
    write_records(folder / "questions" / RECORDS_FILE, "prompts", [prompt])
    source = ModelSource(kind="path", name=str(folder / "model"), template=template, device="cpu")
    inputs: dict[str, Resolved] = {
        PromptsRef("$questions"): Resolved("prompts", folder=folder / "questions"),
        ModelRef("$m"): Resolved("model", source=source),
    }
    context = Context("scores", folder / "stage", folder, 1, inputs, Control(send=lambda event: None))
    return Room(context=context, name="rag", subjects={"m": ModelRef("$m")})


def test_a_template_without_a_place_for_documents_is_told(tmp_path: Path):
    settings = Rag(questions=PromptsRef("$questions"), out_of_domain=0.0)
    with pytest.raises(InputError, match=r"m: .*no role .documents.*; or add \$m to one_step"):
        rag_work.run(settings, room(tmp_path, "llm-jp"))


class Few:
    """Inputs that are known to hold five questions."""

    def __init__(self) -> None:
        self.takers: dict[str, list[str]] = {}

    def __getitem__(self, ref):
        prompt = Prompt(id="p", messages=(Message("user", "Why?"),), extra={"context": "Because."})
        return Known(records=5, samples=[prompt])

    def lengths(self, refs, model, cost):
        return None


def test_the_cost_counts_both_steps_and_both_verdicts():
    refs = [SubjectRef("$a"), SubjectRef("$b")]
    settings = Rag(questions=PromptsRef("$questions"), one_step=(NamedModelRef("$b"),), max_tokens=10)
    cost = estimate(settings, Asked(Few(), refs, ModelRef("$j")))
    assert [cost.asked[name].calls for name in ("a", "b", "j")] == [10, 5, 20]
    assert (cost.calls, cost.sampled) == (5 * 3 + 5 * 4, 15 * 10 + 20 * 1024)
