"""A judge that replays stored verdicts: an OpenAI-compatible server over a file of verdicts.

    python -m togi.judge.replay VERDICTS.jsonl... [--answers ANSWERS.jsonl] [--port 8765] [--write-answers FILE]

A run starts it for models with `serve: {engine: replay, verdicts: [FILES], answers: [FILES]}`.

A row of a file is one verdict: `question`, `answer_a`, `answer_b` in the order that the judge saw, and its reply
`text`; or `question`, `answer` and `text` for a grade. `text` may be a list, one item for each time that the judge is
asked. Rows of FastChat's pairwise judgments (`question`, `answer_1`, `answer_2`, `g1_judgment`, `g2_judgment`) hold two
verdicts. A row is found by its question and answers in the request, whatever prompt surrounds them. For answers that
were never judged, the server replies that it has no verdict, which cannot be read as one.

`--answers` names stored answers of models, in rows of `prompt`, `completion` and `model` (`prompt` may be a list of
questions, and `completion` the answers to each). The server replays them too: a request to one of these models gets its
stored answer to the same questions, or an empty one if none is stored.

`--write-answers` writes the answers in FastChat's rows, in the form that `data:` reads (prompt, completion, model), and
exits.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from togi.core.terminal import say

UNKNOWN = "Of these answers no verdict is stored."


@dataclass(frozen=True, slots=True)
class Stored:
    """One stored verdict: the answers in the order in which the judge read them, and the judge's replies."""

    answers: tuple[str, ...]
    texts: tuple[str, ...]

    def found_in(self, text: str, start: int) -> bool:
        """Whether the answers occur in `text` one after the other, from `start` on."""
        for answer in self.answers:
            start = _end_of(answer, text, start)
            if start < 0:
                return False
        return True


def _end_of(part: str, text: str, start: int = 0) -> int:
    """The end of `part` in `text`, from `start` on, as complete lines; -1 if it does not occur there."""
    place = text.find(part, start)
    while place >= 0:
        end = place + len(part)
        if text[place - 1 : place] in ("", "\n") and text[end : end + 1] in ("", "\n"):
            return end
        place = text.find(part, place + 1)
    return -1


class Verdicts:
    """Stored verdicts by question."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self.by_question: dict[str, list[Stored]] = {}
        for row in rows:
            answers = (row["answer"],) if "answer" in row else (row["answer_a"], row["answer_b"])
            texts = row["text"] if isinstance(row["text"], list) else [row["text"]]
            stored = Stored(tuple(answer.strip() for answer in answers), tuple(texts))
            if all(stored.answers):
                self.by_question.setdefault(row["question"].strip(), []).append(stored)

    def __len__(self) -> int:
        return sum(map(len, self.by_question.values()))

    def texts(self, asked: str, count: int) -> tuple[str, ...]:
        """The judge's replies about the `count` answers that `asked` shows. If several verdicts fit, the one with the
        longest answers is used, since the lines of a short answer may occur in a longer one."""
        fitting = [
            stored
            for question, known in self.by_question.items()
            if (end := _end_of(question, asked)) >= 0
            for stored in known
            if len(stored.answers) == count and stored.found_in(asked, end)
        ]
        best = max(fitting, key=lambda stored: sum(map(len, stored.answers)), default=None)
        return (UNKNOWN,) if best is None else best.texts


class Answers:
    """Stored answers of models, by model and by the questions so far."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self.by_model: dict[str, dict[tuple[str, ...], str]] = {}
        for row in rows:
            known = self.by_model.setdefault(row["model"], {})
            asked: tuple[str, ...] = ()
            for question, text in zip(_listed(row["prompt"]), _listed(row["completion"]), strict=True):
                asked = (*asked, question.strip())
                known.setdefault(asked, text)

    def text(self, body: dict[str, Any]) -> str | None:
        """The stored answer of the requested model to the request's questions; empty if there is none. None for a model
        without stored answers."""
        known = self.by_model.get(str(body.get("model")))
        if known is None:
            return None
        turns = [turn for turn in body["messages"] if turn["role"] == "user"]
        asked = tuple(str(turn["content"]).strip() for turn in turns)
        return known.get(asked, "")


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def read_rows(paths: Iterable[Path], forms: Sequence[Sequence[str]], what: str) -> list[dict[str, Any]]:
    """The rows of some files. Raises ValueError with file and line for a row that has none of the `forms`, and for
    questions and answers that are not texts."""
    rows = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{where}: not JSON: {error}") from None
            known = row.keys() if isinstance(row, dict) else ()
            form = next((form for form in forms if all(name in known for name in form)), None)
            if form is None:
                wanted = " or ".join(", ".join(form) for form in forms)
                raise ValueError(f"{where}: {what} needs {wanted}")
            _check(row, form, where)
            rows.append(row)
    return rows


def _check(row: dict[str, Any], form: Sequence[str], where: str) -> None:
    """Raises ValueError if a column other than a judge's reply is not text, or the lists of a conversation differ in
    length."""
    for name in form:
        value = row[name]
        if name not in REPLIES and not isinstance(value, str) and not (name in LISTS and isinstance(value, list)):
            wanted = "text or a list of texts" if name in LISTS else "text"
            raise ValueError(f"{where}: {name}: found {repr(value)[:100]}, expected {wanted}")
    if form == SAID:
        questions, answers = _listed(row["prompt"]), _listed(row["completion"])
        if not all(isinstance(question, str) for question in questions):
            raise ValueError(f"{where}: prompt: found {repr(questions)[:100]}, expected text or a list of texts")
        if len(questions) != len(answers):
            raise ValueError(
                f"{where}: found {len(questions)} questions in prompt and {len(answers)} answers in completion; each "
                "question needs its answer"
            )


FASTCHAT = ("question", "answer_1", "answer_2", "g1_judgment", "g2_judgment")
FORMS = (("question", "answer_a", "answer_b", "text"), ("question", "answer", "text"), FASTCHAT)
"""The columns of a verdict, by form."""
REPLIES = ("text", "g1_judgment", "g2_judgment")
"""The columns with what a judge replied."""
SAID = ("prompt", "completion", "model")
"""The columns of a stored answer."""
LISTS = ("prompt", "completion")
"""The columns that may hold a list, one item for each turn."""


def verdicts_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The verdicts of a row: one, or two for a FastChat row, which holds both orders."""
    if "g1_judgment" not in row:
        return [row]
    question, one, other = row["question"], row["answer_1"], row["answer_2"]
    return [
        {"question": question, "answer_a": one, "answer_b": other, "text": row["g1_judgment"]},
        {"question": question, "answer_a": other, "answer_b": one, "text": row["g2_judgment"]},
    ]


def answers_of(rows: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """The non-empty answers of FastChat's rows, each once: prompt, completion, model. For each question, the model that
    was judged most often comes first, since the others were compared with it (`compare: first`)."""
    sides = [(row, side) for row in rows if "model_1" in row for side in (1, 2)]
    often = Counter(row[f"model_{side}"] for row, side in sides)
    found: dict[str, dict[tuple[str, str], None]] = {}
    for row, side in sides:
        answer = (row[f"model_{side}"], row[f"answer_{side}"].strip())
        if answer[1]:
            found.setdefault(row["question"].strip(), {})[answer] = None
    return [
        {"prompt": prompt, "completion": text, "model": model}
        for prompt, answers in found.items()
        for model, text in sorted(answers, key=lambda answer: -often[answer[0]])
    ]


def answer(verdicts: Verdicts, answers: Answers, body: dict[str, Any], model: str) -> dict[str, Any]:
    """The response to a chat request: `n` choices, each the judge's reply to the i-th request, or a model's answer. If
    no answer of the model is stored, the finish reason is content_filter, as for an answer that was held back."""
    asked = "\n".join(str(turn.get("content", "")) for turn in body.get("messages", []))
    said = answers.text(body)
    judged = 2 if "[[A" in asked else 1  # prompts for comparisons contain the label [[A]]
    texts = verdicts.texts(asked, judged) if said is None else (said,)
    count = int(body.get("n") or 1)
    ended = "content_filter" if said == "" else "stop"
    choices = [
        {"index": i, "message": {"role": "assistant", "content": texts[i % len(texts)]}, "finish_reason": ended}
        for i in range(count)
    ]
    tokens = {"prompt_tokens": len(asked) // 4, "completion_tokens": sum(map(len, texts)) // 4}
    usage = {**tokens, "total_tokens": sum(tokens.values())}
    name = model if said is None else body["model"]
    named = {"id": "replay", "object": "chat.completion", "created": int(time.time()), "model": name}
    return {**named, "choices": choices, "usage": usage}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024
    """Maximum number of connections waiting to be accepted. With the library's default of 5, the kernel drops some of
    the 64 connections that a client opens at once while the server is busy, and each of these then waits for
    seconds."""


def server(
    verdicts: Verdicts,
    host: str = "127.0.0.1",
    port: int = 0,
    model: str = "replay",
    answers: Answers | None = None,
) -> ThreadingHTTPServer:
    """The server, bound but not running; port 0 selects a free one."""
    said = answers or Answers([])
    names = [model, *said.by_model]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            data = [{"id": name, "object": "model", "owned_by": "replay"} for name in names]
            known = {"object": "list", "data": data}
            self._send(200, known if self.path.endswith("/models") else {"status": "ok"})

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not self.path.endswith("/chat/completions"):
                self._send(404, {"error": {"message": f"{self.path}: only /v1/chat/completions is served"}})
                return
            try:
                body = json.loads(raw)
                if (asked := body.get("model")) not in names:
                    message = f"the model {asked!r} does not exist; available are: {', '.join(names)}"
                    self._send(404, {"error": {"message": message}})
                    return
                found = answer(verdicts, said, body, model)
            except (ValueError, AttributeError, TypeError, KeyError) as error:
                self._send(400, {"error": {"message": f"not a chat request: {error}"}})
                return
            self._send(200, found)

        def _send(self, status: int, value: dict[str, Any]) -> None:
            data = json.dumps(value, ensure_ascii=False).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Does nothing, so requests are not logged."""

    return _Server((host, port), Handler)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until stopped; prints its address when ready."""
    parser = argparse.ArgumentParser(prog="python -m togi.judge.replay", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="stored verdicts, one JSON object per line")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8765, help="port; 0 selects a free one")
    parser.add_argument("--model", default="replay", help="name of the judge in requests")
    parser.add_argument("--answers", type=Path, nargs="+", default=(), metavar="FILE", help="stored answers of models")
    parser.add_argument(
        "--write-answers", type=Path, metavar="FILE", help="write the answers of the rows to FILE and exit"
    )
    given = parser.parse_args(arguments)
    if not (given.files or given.answers):
        parser.error("name files of verdicts, or --answers")
    try:
        rows = read_rows(given.files, FORMS, "a verdict")
        if given.write_answers is not None:
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in answers_of(rows)]
            given.write_answers.write_text("".join(lines), encoding="utf-8")
            parser.exit(0, f"{len(lines)} answers in {given.write_answers}\n")
        verdicts = Verdicts(verdict for row in rows for verdict in verdicts_of(row))
        answers = Answers(read_rows(given.answers, [SAID], "an answer"))
        running = server(verdicts, given.host, given.port, given.model, answers)
    except (OSError, ValueError) as error:
        parser.exit(3, f"{error}\n")
    say(f"{len(verdicts)} verdicts at http://{given.host}:{running.server_address[1]}/v1")
    try:
        running.serve_forever()
    except KeyboardInterrupt:
        parser.exit(130)


if __name__ == "__main__":
    main()
