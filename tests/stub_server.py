"""A server with OpenAI's API whose answers are a function of the request; it records its requests."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "stub-key"
MODELS = ("small", "large")
Says = Callable[[dict[str, Any], int], str]
"""The text of an answer, from a request and an index."""
Weighs = Callable[[dict[str, Any]], dict[str, float]]
"""The log-probabilities of the likeliest first tokens of an answer, used if a request asks for them."""


Reads = Callable[[list[dict[str, str]]], str]
"""The text that a template makes of turns, for /tokenize, or ValueError; a stub without it has no such path."""


class Stub(ThreadingHTTPServer):
    """`asked` holds the bodies of the requests that cost something, in order of arrival."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[dict[str, Any]] = []
        self.failing = ""  # conversations that contain this text fail
        self.says: Says = _words
        self.reads: Reads | None = None
        self.weighs: Weighs = lambda body: {"yes": -0.5, " no": -1.5}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is not worth a message."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def do_GET(self) -> None:
        if self._welcome():
            self._send(200, {"data": [{"id": name, "owned_by": "togi", "max_model_len": 900} for name in MODELS]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self._welcome():
            return
        if body["model"] not in MODELS:
            self._send(404, {"error": {"message": f"the model {body['model']} does not exist"}})
            return
        if self.server.failing and self.server.failing in json.dumps(body):
            self._send(400, {"error": {"message": "this prompt is refused"}})
            return
        if self.path == "/tokenize":
            self._tokenize(body)
            return
        self.server.asked.append(body)
        answer = {"/v1/chat/completions": _chat, "/v1/completions": _completion, "/v1/embeddings": _embed}[self.path]
        found = _first_token(body, self.server.weighs) if body.get("logprobs") else answer(body, self.server.says)
        self._send(200, {**found, "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}})

    def _tokenize(self, body: dict[str, Any]) -> None:
        if self.server.reads is None:
            self._send(404, {"detail": "Not Found"})
        else:
            try:
                self._send(200, {"tokens": list(self.server.reads(body["messages"]).encode())})
            except ValueError as wrong:
                self._send(400, {"error": {"message": str(wrong)}})

    def _welcome(self) -> bool:
        welcome = self.headers.get("authorization") == f"Bearer {KEY}"
        if not welcome:
            self._send(401, {"error": {"message": "no such key"}})
        return welcome

    def _send(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


def _words(body: dict[str, Any], index: int) -> str:
    seed = None if not body.get("temperature") else body.get("seed", 0) + index
    name = hashlib.sha256(json.dumps([body["model"], body.get("messages", body.get("prompt")), seed]).encode())
    return f"It is {name.hexdigest()[:6]}."


def _chat(body: dict[str, Any], says: Says) -> dict[str, Any]:
    return {
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": says(body, index)},
                "finish_reason": "stop",
                "logprobs": None,
            }
            for index in range(body.get("n", 1))
        ]
    }


def _first_token(body: dict[str, Any], weighs: Weighs) -> dict[str, Any]:
    tops = [{"token": token, "logprob": value, "bytes": None} for token, value in weighs(body).items()]
    first = max(tops, key=lambda top: top["logprob"])
    said = {"role": "assistant", "content": first["token"].strip()}
    logprobs = {"content": [{**first, "top_logprobs": tops}]}
    return {"choices": [{"index": 0, "message": said, "finish_reason": "stop", "logprobs": logprobs}]}


def _completion(body: dict[str, Any], says: Says) -> dict[str, Any]:
    choices = range(body.get("n", 1))
    return {"choices": [{"index": i, "text": says(body, i), "finish_reason": "stop"} for i in choices]}


def _embed(body: dict[str, Any], says: Any) -> dict[str, Any]:
    return {"data": [{"index": i, "embedding": [3.0, 4.0 + len(text)]} for i, text in enumerate(body["input"])]}


def shown_text(asked: str) -> tuple[str, str]:
    """The source text in a request for a question, and its last sentence."""
    text = asked.partition("Write one question")[0].strip()
    *_, sentence = (each for each in text.split(". ") if each)
    return text, sentence


@contextmanager
def stub_server(says: Says | None = None) -> Iterator[Stub]:
    """A stub server for the duration of the block."""
    server = Stub()
    server.says = says or _words
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
