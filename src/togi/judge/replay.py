"""A judge that says again what one said before: an OpenAI-compatible server over a file of stored verdicts.

    python -m togi.judge.replay VERDICTS.jsonl... [--answers ANSWERS.jsonl] [--port 8765] [--write-answers FILE]

A run starts it for models with `serve: {engine: replay, verdicts: [FILES], answers: [FILES]}`.

A row of a file is one verdict: `question`, `answer_a`, `answer_b` as they stood before the judge, and the `text` that
it wrote; or `question`, `answer` and `text` for a grade. `text` may be a list, one for each time that it is asked. Rows
of FastChat's pairwise judgments (`question`, `answer_1`, `answer_2`, `g1_judgment`, `g2_judgment`) hold two. A row is
found by the question and the answers in what is asked, whatever prompt stands around them. To what was never judged it
answers that it does not know, which no verdict can be read from.

`--answers` names answers of models, in rows of `prompt`, `completion` and `model` (`prompt` may be a list of questions,
and `completion` the answers to each). The server then says them again too: a request to one of these models is answered
by what it said to the same questions, and by nothing where none of its answers is stored.

`--write-answers` writes the answers of FastChat's rows, as `data:` reads them (prompt, completion, model), and ends.
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
    """One stored verdict: the answers in the order in which they were read, and the texts of the judge."""

    answers: tuple[str, ...]
    texts: tuple[str, ...]

    def found_in(self, text: str, start: int) -> bool:
        """Whether the answers stand in `text` one after the other, from `start` on."""
        for answer in self.answers:
            start = _end_of(answer, text, start)
            if start < 0:
                return False
        return True


def _end_of(part: str, text: str, start: int = 0) -> int:
    """Where `part` ends in `text`, from `start` on, as lines of its own; -1 where it does not stand there."""
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
        """What the judge said of the `count` answers that `asked` shows; of several verdicts that fit, of the one with
        the longest answers, since the lines of a short answer may stand in a longer one."""
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
        """What the model that a request names said to its questions: nothing where it never heard them. None for a
        model of which no answers are stored."""
        known = self.by_model.get(str(body.get("model")))
        if known is None:
            return None
        turns = [turn for turn in body["messages"] if turn["role"] == "user"]
        asked = tuple(str(turn["content"]).strip() for turn in turns)
        return known.get(asked, "")


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def read_rows(paths: Iterable[Path], forms: Sequence[Sequence[str]], what: str) -> list[dict[str, Any]]:
    """The rows of some files. Raises ValueError with file and line for one that has none of the `forms`."""
    rows = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not JSON: {error}") from None
            known = row.keys() if isinstance(row, dict) else ()
            if not any(all(name in known for name in form) for form in forms):
                wanted = " or ".join(", ".join(form) for form in forms)
                raise ValueError(f"{path}:{number}: {what} has {wanted}")
            rows.append(row)
    return rows


FASTCHAT = ("question", "answer_1", "answer_2", "g1_judgment", "g2_judgment")
FORMS = (("question", "answer_a", "answer_b", "text"), ("question", "answer", "text"), FASTCHAT)
"""The columns of a verdict, by its form."""
SAID = ("prompt", "completion", "model")
"""The columns of a stored answer."""


def verdicts_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The verdicts of a row: one, or two of FastChat's, which holds both orders."""
    if "g1_judgment" not in row:
        return [row]
    question, one, other = row["question"], row["answer_1"], row["answer_2"]
    return [
        {"question": question, "answer_a": one, "answer_b": other, "text": row["g1_judgment"]},
        {"question": question, "answer_a": other, "answer_b": one, "text": row["g2_judgment"]},
    ]


def answers_of(rows: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """The answers of FastChat's rows that say something, each once: prompt, completion, model. Of each question the
    model that was judged most often comes first, since the others were compared with it (`compare: first`)."""
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
    """The response to a chat request: `n` choices, each what the judge said when it was asked for the i-th time, or
    what a model answered. A question that it never heard has none: the answer counts as held back (content_filter)."""
    asked = "\n".join(str(turn.get("content", "")) for turn in body.get("messages", []))
    said = answers.text(body)
    judged = 2 if "[[A" in asked else 1  # who compares is told how to name the better answer
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
    """Connections that may wait to be accepted. With the library's 5, the kernel drops those of a client that opens 64
    at once while the server is busy, and each waits for seconds."""


def server(
    verdicts: Verdicts,
    host: str = "127.0.0.1",
    port: int = 0,
    model: str = "replay",
    answers: Answers | None = None,
) -> ThreadingHTTPServer:
    """The server, bound but not running; port 0 takes a free one."""
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
                    message = f"the model {asked!r} does not exist here; these do: {', '.join(names)}"
                    self._send(404, {"error": {"message": message}})
                    return
                found = answer(verdicts, said, body, model)
            except (ValueError, AttributeError, TypeError, KeyError) as error:
                self._send(400, {"error": {"message": f"no chat request: {error}"}})
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
            """Says nothing."""

    return _Server((host, port), Handler)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until it is stopped; prints its address when it is ready."""
    parser = argparse.ArgumentParser(prog="python -m togi.judge.replay", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="stored verdicts, one JSON object a line")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8765, help="0 takes a free port")
    parser.add_argument("--model", default="replay", help="the name under which the judge is served")
    parser.add_argument("--answers", type=Path, nargs="+", default=(), metavar="FILE", help="stored answers of models")
    parser.add_argument("--write-answers", type=Path, metavar="FILE", help="write the answers of the rows, and end")
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
