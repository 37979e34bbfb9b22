"""A server for any model that counts the tokens of what it is asked, for tests of bounds.

A token is a mark, or up to four letters of a word, so that it has some three bytes; a turn has five more tokens, and a
conversation three, as with ChatML. Requests by which a client tries out a server are not counted.
"""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from client_answers import score

from togi.client.probe import QUESTION, TEXT

Says = Callable[[str, str, int], str]
"""The answer of a model to the last text that it is shown, from its index."""


class Counting(ThreadingHTTPServer):
    """`calls`, `read` and `written` count requests, and tokens read and written, by model."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, says: Says) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.says = says
        self.calls: Counter[str] = Counter()
        self.read: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def count(self, body: dict[str, Any], read: int, written: int) -> dict[str, int]:
        """Counts a request; returns its usage."""
        if not any(text in json.dumps(body) for text in (QUESTION.content, TEXT)):
            with self.lock:
                self.calls[body["model"]] += 1
                self.read[body["model"]] += read
                self.written[body["model"]] += written
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def tokens_of(text: str) -> int:
    """The tokens of a text."""
    return len(re.findall(r"\w{1,4}|[^\w\s]|\n", text))


def talk_of(messages: list[dict[str, Any]]) -> int:
    """The tokens of a conversation."""
    return 3 + sum(5 + tokens_of(turn["content"]) for turn in messages)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Counting

    def do_GET(self) -> None:
        self._send({"data": []})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        kinds = {"/v1/chat/completions": self._chat, "/v1/completions": self._continue, "/v1/scores": self._scores}
        self._send(kinds[self.path](body))

    def _said(self, body: dict[str, Any], shown: str) -> list[str]:
        return [self.server.says(body["model"], shown, index) for index in range(body.get("n", 1))]

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        said = self._said(body, body["messages"][-1]["content"])
        usage = self.server.count(body, talk_of(body["messages"]), sum(map(tokens_of, said)))
        rows = [{"index": i, "message": {"role": "assistant", "content": text}} for i, text in enumerate(said)]
        return {"choices": [row | {"finish_reason": "stop"} for row in rows], "usage": usage}

    def _continue(self, body: dict[str, Any]) -> dict[str, Any]:
        said = self._said(body, body["prompt"])
        usage = self.server.count(body, tokens_of(body["prompt"]), sum(map(tokens_of, said)))
        rows = [{"index": i, "text": text, "finish_reason": "stop"} for i, text in enumerate(said)]
        return {"choices": rows, "usage": usage}

    def _scores(self, body: dict[str, Any]) -> dict[str, Any]:
        usage = self.server.count(body, sum(talk_of(item["messages"]) for item in body["items"]), 0)
        scores = [score(item) for item in body["items"]]
        return {"scores": scores, "errors": [None] * len(scores), "usage": usage}

    def _send(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None: ...


@contextmanager
def counting_server(says: Says) -> Iterator[Counting]:
    """A counting server for the duration of the block."""
    server = Counting(says)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
