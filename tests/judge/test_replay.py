"""The replay judge is a real server that returns what real judges said; `label` reads it like any judge."""

import json
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from stored_verdicts import needs_shared, vicuna_rows, write_jsonl

from togi.client.client import Client
from togi.client.endpoint import Endpoint
from togi.client.requests import ChatRequest
from togi.client.store import AnswerStore
from togi.commands.check_endpoints import check_endpoint
from togi.core.errors import InputError
from togi.core.records import Completion, Message, SamplingParams
from togi.data.importing import DataSpec, load_records
from togi.judge.prompts import Case, own_prompt
from togi.judge.reading import read_choice
from togi.judge.replay import FORMS, SAID, UNKNOWN, Answers, Verdicts, answer, read_rows, server, verdicts_of

ROWS = [
    {"question": "Why?", "answer_a": "Yes", "answer_b": "Yes and no", "text": "[[B]]"},
    {"question": "Why?", "answer_a": "Yes and no", "answer_b": "Yes", "text": ["hm", "[[A]]"]},
    {"question": "Why?", "answer": "Yes", "text": "Rating: [[3]]"},
]


def asked(*answers: str, question: str = "Why?", language: str = "ja") -> str:
    method = "pairwise" if len(answers) == 2 else "graded"
    case = Case(messages=(Message("user", question),), answers=answers)
    return own_prompt(method, language).messages(case)[0].content


def test_verdicts_are_found_by_question_and_answers_in_their_order():
    known = Verdicts(ROWS)
    assert len(known) == 3
    for language in ("en", "ja", "ru"):
        assert known.texts(asked("Yes", "Yes and no", language=language), 2) == ("[[B]]",)
        assert known.texts(asked("Yes and no", "Yes", language=language), 2) == ("hm", "[[A]]")
        assert known.texts(asked("Yes", language=language), 1) == ("Rating: [[3]]",)
    for other in (
        asked("Yes", "Never"),
        asked("Yes", "Yes and no", question="How?"),
        asked("Yes and no", "No"),
        "Why?\nNo",
    ):
        assert known.texts(other, 2) == (UNKNOWN,)
    assert read_choice(UNKNOWN) is None


def test_a_response_has_a_choice_for_each_index():
    body = {"messages": [{"role": "user", "content": asked("Yes and no", "Yes")}], "n": 3}
    found = answer(Verdicts(ROWS), Answers([]), body, "judge-7")
    assert found["model"] == "judge-7"
    assert [(c["index"], c["message"]["content"]) for c in found["choices"]] == [(0, "hm"), (1, "[[A]]"), (2, "hm")]


@dataclass
class Served:
    """A `Generator` that asks a server, one plain request after the other."""

    url: str
    terminator: str = ""
    turn_starts: tuple[str, ...] = ()

    def generate(self, prompts, params):
        return [
            self.completions([{"role": m.role, "content": m.content} for m in p.messages], params.n) for p in prompts
        ]

    def completions(self, messages, n):
        found = post(f"{self.url}/chat/completions", {"model": "replay", "messages": messages, "n": n})
        return [Completion(text=choice["message"]["content"], stop="terminator") for choice in found["choices"]]


def post(url: str, body: object) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.loads(response.read())


@pytest.fixture
def serve(tmp_path: Path):
    """A function that starts the server on verdicts, as a process, and returns its URL."""
    running: list[subprocess.Popen] = []

    def start(rows, answers=()):
        path = write_jsonl(tmp_path / "verdicts.jsonl", rows)
        said = ["--answers", str(write_jsonl(tmp_path / "answers.jsonl", answers))] if answers else []
        command = [sys.executable, "-m", "togi.judge.replay", str(path), "--port", "0", *said]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        line = running[-1].stdout.readline()
        return re.search(r"http://\S+/v1", line)[0]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_the_server_answers_and_refuses_what_is_no_chat_request(serve):
    url = serve(ROWS)
    (completion,) = Served(url).completions([{"role": "user", "content": asked("Yes", "Yes and no")}], 1)
    assert completion.text == "[[B]]"
    with urllib.request.urlopen(f"{url}/models", timeout=20) as response:
        assert json.loads(response.read())["data"][0]["id"] == "replay"
    for path, body, status in (("chat/completions", [], 400), ("embeddings", {}, 404)):
        with pytest.raises(urllib.error.HTTPError, match=str(status)):
            post(f"{url}/{path}", body)


def test_models_say_their_stored_answers_again_and_nothing_where_there_is_none(serve):
    answers = [
        {"prompt": "Why?", "completion": "So.", "model": "careful"},
        {"prompt": ["Who?", "And she?"], "completion": ["Anna.", "Ben."], "model": "careful"},
        {"prompt": "Why?", "completion": "Hm.", "model": "loose"},
    ]
    url = serve(ROWS, answers)
    with urllib.request.urlopen(f"{url}/models", timeout=20) as response:
        assert [row["id"] for row in json.loads(response.read())["data"]] == ["replay", "careful", "loose"]

    def said(model: str, *turns: str) -> tuple[str, str]:
        roles = ("user", "assistant")
        messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(turns)]
        (choice,) = post(f"{url}/chat/completions", {"model": model, "messages": messages})["choices"]
        return choice["message"]["content"], choice["finish_reason"]

    assert said("careful", "Why?") == ("So.", "stop") and said("loose", "Why?") == ("Hm.", "stop")
    assert said("careful", "Who?", "Anna.", "And she?") == ("Ben.", "stop")
    assert said("loose", "Who?") == ("", "content_filter") and said("careful", "And she?") == ("", "content_filter")


def test_a_model_of_which_nothing_is_stored_is_not_served(serve):
    url = serve(ROWS, [{"prompt": "Why?", "completion": "So.", "model": "careful"}])
    with pytest.raises(InputError, match=r"the model 'bold' does not exist; available are: replay, careful"):
        check_endpoint(Endpoint(name="bold", urls=(url,), model="bold", protocol="openai"), "causal", rendered=False)


def test_check_takes_a_server_that_holds_its_answer_back_for_one_that_is_there(serve):
    url = serve(ROWS, [{"prompt": "Why?", "completion": "So.", "model": "careful"}])
    endpoint = Endpoint(name="careful", urls=(url,), model="careful", protocol="openai")
    found = check_endpoint(endpoint, "causal", rendered=False)
    assert found.verified and any("filter withheld the answer" in alarm for alarm in found.alarms)


def test_a_server_of_stored_answers_raises_no_alarm_for_what_it_cannot_show(serve, tmp_path):
    url = serve(ROWS, [{"prompt": "Why?", "completion": "So.", "model": "careful"}])
    told: list[str] = []
    endpoint = Endpoint(name="careful", urls=(url,), model="careful", protocol="openai")
    request = ChatRequest(messages=(Message("user", "Why?"),), params=SamplingParams(max_tokens=8, seed=1), seed=3)
    with (
        AnswerStore(tmp_path / "answers") as store,
        Client(endpoint, store, run="r", tell=lambda name, message: told.append(message)) as asked,
    ):
        found = next(iter(asked.ask([request])))
    assert found.choices[0].text == "So." and told == []


def test_a_file_that_holds_no_verdicts_is_refused_with_its_line(tmp_path):
    path = write_jsonl(tmp_path / "wrong.jsonl", [ROWS[0], {"question": "Why?"}])
    command = [sys.executable, "-m", "togi.judge.replay", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (
        ended.returncode == 3
        and "wrong.jsonl:2: a verdict needs question, answer_a" in ended.stderr
        and "Traceback" not in ended.stderr
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**ROWS[0], "question": 5}, "1: question: found 5, expected text"),
        ({**ROWS[2], "answer": ["Yes"]}, "1: answer: found ['Yes'], expected text"),
        ({"prompt": None, "completion": "So.", "model": "m"}, "1: prompt: found None, expected text or a list"),
        ({"prompt": ["Why?", 5], "completion": ["a", "b"], "model": "m"}, "1: prompt: found ['Why?', 5], expected"),
        ({"prompt": ["Why?", "So?"], "completion": ["a"], "model": "m"}, "1: found 2 questions in prompt and 1 answer"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_with_its_place(tmp_path, row, said):
    path = write_jsonl(tmp_path / "wrong.jsonl", [row])
    with pytest.raises(ValueError, match=re.escape(f"wrong.jsonl:{said}")):
        read_rows([path], [*FORMS, SAID], "a row")


def test_a_line_separator_within_an_answer_does_not_end_the_row(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    row = {"question": "Why?", "answer": "one\u2028two", "text": "Rating: [[3]]"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_rows([path], FORMS, "a verdict") == [row]


def test_rows_of_fastchat_hold_two_verdicts_and_two_answers(tmp_path):
    row = {"question": "Why?", "answer_1": "So.", "answer_2": "Hm.", "g1_judgment": "[[A]]", "g2_judgment": "[[C]]"}
    known = Verdicts(verdicts_of(row))
    assert (known.texts(asked("So.", "Hm."), 2), known.texts(asked("Hm.", "So."), 2)) == (("[[A]]",), ("[[C]]",))
    path = write_jsonl(tmp_path / "games.jsonl", [{**row, "model_1": "a", "model_2": "b"}] * 2)
    command = [sys.executable, "-m", "togi.judge.replay", str(path), "--write-answers", str(tmp_path / "answers.jsonl")]
    assert "2 answers" in subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stderr
    samples = load_records(DataSpec(path=tmp_path / "answers.jsonl"), "samples").records
    assert [(sample.model, sample.text) for sample in samples] == [("a", "So."), ("b", "Hm.")]


@needs_shared
def test_every_verdict_of_gpt_4_is_read_as_its_authors_read_it():
    """960 texts in Japanese. The authors' `error` is a text without a verdict."""
    found: Counter[tuple[str, str]] = Counter()
    for row in vicuna_rows():
        for game, (first, second) in (("g1", ("model_1", "model_2")), ("g2", ("model_2", "model_1"))):
            read = {"A": first, "B": second, "tie": "tie", None: "error"}[read_choice(row[f"{game}_judgment"])]
            found[row[f"{game}_winner"], read] += 1
    assert sum(found.values()) == 960
    assert [pair for pair in found if pair[0] != pair[1]] == []


@needs_shared
def test_the_replayed_verdicts_are_those_that_were_stored(serve):
    rows = vicuna_rows()[:60]
    judge = Served(serve([verdict for row in rows for verdict in verdicts_of(row) if verdict["text"]]))
    for row in rows[::6]:
        for verdict in verdicts_of(row):
            case = asked(verdict["answer_a"].strip(), verdict["answer_b"].strip(), question=row["question"])
            if verdict["answer_a"].strip() and verdict["answer_b"].strip():
                assert judge.completions([{"role": "user", "content": case}], 1)[0].text == verdict["text"]


def test_a_client_of_sixty_four_connections_is_let_in_though_the_judge_is_busy() -> None:
    """The kernel drops connections beyond a server's backlog, and the client then waits for seconds or minutes."""
    made = server(Verdicts([]))  # bound, but not yet accepting
    with made, ExitStack() as stack:
        address = ("127.0.0.1", made.server_address[1])
        let_in = [stack.enter_context(socket.create_connection(address, timeout=5)) for _ in range(64)]
        assert all(each.getpeername() == address for each in let_in)
