"""Fake servers that sample a policy, one per protocol. Each checks the path and fields of every request. An answer is a
function of the request and of the weights that were loaded last."""

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Answer = tuple[int, Any]
COMMON = {"temperature": float, "top_p": float, "top_k": int, "min_p": float, "repetition_penalty": float}
SAMPLE = {
    "model": str, "prompt": list, "n": int, **COMMON, "max_tokens": int, "seed": int, "logprobs": int,
    "return_token_ids": bool, "stop": list, "ignore_eos": bool, "include_stop_str_in_output": bool,
    "skip_special_tokens": bool, "spaces_between_special_tokens": bool,
}  # fmt: skip
SCORE = {"model": str, "prompt": list, **COMMON, "max_tokens": int, "echo": bool, "logprobs": int}
NATIVE = {
    "n": int, **COMMON, "max_new_tokens": int, "sampling_seed": int, "stop": list, "no_stop_trim": bool,
    "ignore_eos": bool, "skip_special_tokens": bool, "spaces_between_special_tokens": bool,
}  # fmt: skip


class Server(ThreadingHTTPServer):
    """`calls` holds the paths and bodies of all requests, in order of arrival. `logprob(text, at)` returns the
    log-probability of the token at position `at`; `letters` are the ids that the server generates."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, answers: "Speaks", letters: list[int], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.delay = 0.0  # seconds until an answer
        self.letters = letters
        self.loaded = ""  # identifies the weights
        self.adapters: dict[str, str] = {}
        self.calls: list[tuple[str, Any]] = []
        self.wrong: list[str] = []
        self.takes = True
        self.pages: dict[str, Callable[[], Any]] = {}  # what GET returns, by path
        self.speaks = answers(self)
        self.logprob: Callable[[tuple[int, ...], int], float] = lambda text, at: -1.0

    def handle_error(self, request: Any, client_address: Any) -> None: ...

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def fits(self, path: str, body: Mapping[str, Any], form: Mapping[str, type], *optional: str) -> None:
        """Records each field of a body that the real server's parser would not accept."""
        for name, kind in form.items():
            if type(body.get(name)) is not kind:
                self.wrong.append(f"{path}: {name} is {body.get(name)!r}")
        self.wrong += [f"{path}: {name} is unknown" for name in body if name not in form and name not in optional]

    def logprobs(self, prompt: list[int], ids: list[int]) -> list[float]:
        text = (*prompt, *ids)
        return [self.logprob(text, at) for at in range(len(prompt), len(text))]

    def tokens(self, prompt: list[int], seed: int, weights: str, count: int) -> list[int]:
        name = hashlib.sha256(json.dumps([prompt, seed, weights]).encode()).digest()
        return [self.letters[name[at % 32] % len(self.letters)] for at in range(count)]


class VLLM:
    """vLLM 0.32: OpenAI's completions with ids, the development endpoints, adapters as models."""

    owner = "vllm"

    def __init__(self, server: Server) -> None:
        self.server = server
        self.paths: dict[str, Callable[[Any], Answer]] = {
            "/v1/completions": self.completions,
            "/collective_rpc": self.rpc,
            "/reset_prefix_cache": lambda body: (200, None),
            "/v1/load_lora_adapter": self.load,
            "/v1/unload_lora_adapter": self.unload,
        }

    def completions(self, body: Any) -> Answer:
        server = self.server
        if (name := body["model"]) != "policy" and name not in server.adapters:
            return 404, {"error": {"message": f"The model `{name}` does not exist."}}
        weights = server.adapters.get(name, server.loaded)
        prompt = body["prompt"]
        if body.get("echo"):
            server.fits("score", body, SCORE)
            ids = [*prompt, server.letters[0]]
        else:
            server.fits("sample", body, SAMPLE, "stop_token_ids")
            ids = server.tokens(prompt, body["seed"], weights, body["max_tokens"])
        if body.get("echo"):
            known = [None, *server.logprobs(ids[:1], ids[1:])]
        else:
            known = server.logprobs(prompt, ids)
        row = {
            "index": 0,
            "text": "",
            "token_ids": ids,
            "finish_reason": "length",
            "logprobs": {"token_logprobs": known},
        }
        return 200, {"choices": [row], "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(ids)}}

    def rpc(self, body: Any) -> Answer:
        self.server.fits("rpc", body, {"method": str, "kwargs": dict})
        if body["method"] != "reload_weights" or list(body["kwargs"]) != ["weights_path"]:
            self.server.wrong.append(f"rpc: {body}")
        if self.server.takes:
            self.server.loaded = read(body["kwargs"]["weights_path"])
        return 200, {"results": [None]}

    def load(self, body: Any) -> Answer:
        self.server.fits("load", body, {"lora_name": str, "lora_path": str})
        self.server.adapters[body["lora_name"]] = read(body["lora_path"])
        return 200, f"Success: LoRA adapter '{body['lora_name']}' added successfully."

    def unload(self, body: Any) -> Answer:
        self.server.fits("unload", body, {"lora_name": str})
        if self.server.adapters.pop(body["lora_name"], None) is None:
            return 404, {"error": {"message": "there is no such adapter"}}
        return 200, "Success"


class SGLang:
    """SGLang 0.5: /generate with ids, weights with a version, adapters by `lora_path`."""

    owner = "sglang"

    def __init__(self, server: Server) -> None:
        self.server = server
        self.version = "default"
        self.paths: dict[str, Callable[[Any], Answer]] = {
            "/generate": self.generate,
            "/update_weights_from_disk": self.update,
            "/load_lora_adapter": self.load,
            "/unload_lora_adapter": self.unload,
        }

    def generate(self, body: Any) -> Answer:
        server = self.server
        adapter = body.get("lora_path", "")
        weights = server.adapters[adapter] if adapter else server.loaded
        prompt, scores = body["input_ids"], "logprob_start_len" in body
        form = {"input_ids": list, "sampling_params": dict, "return_logprob": bool}
        server.fits("generate", body, form | ({"logprob_start_len": int} if scores else {}), "lora_path")
        sampling = body["sampling_params"]
        server.fits("sampling", sampling, {**COMMON, "max_new_tokens": int} if scores else NATIVE, "stop_token_ids")
        ids = server.tokens(prompt, sampling.get("sampling_seed", 0), weights, sampling["max_new_tokens"])
        meta: dict[str, Any] = {
            "finish_reason": {"type": "length", "length": len(ids)},
            "prompt_tokens": len(prompt),
            "completion_tokens": len(ids),
            "weight_version": adapter or self.version,
            "output_token_logprobs": [
                [known, each, None] for known, each in zip(server.logprobs(prompt, ids), ids, strict=True)
            ],
        }
        if scores:
            known = [None, *server.logprobs(prompt[:1], prompt[1:])]
            meta["input_token_logprobs"] = rows(known, prompt)
        return 200, {"text": "", "output_ids": ids, "meta_info": meta}

    def update(self, body: Any) -> Answer:
        self.server.fits("update", body, {"model_path": str, "weight_version": str})
        if not self.server.takes:
            return 200, {"success": False, "message": "no such folder", "num_paused_requests": 0}
        self.server.loaded, self.version = read(body["model_path"]), body["weight_version"]
        return 200, {"success": True, "message": "Succeeded.", "num_paused_requests": 0}

    def load(self, body: Any) -> Answer:
        self.server.fits("load", body, {"lora_name": str, "lora_path": str})
        self.server.adapters[body["lora_name"]] = read(body["lora_path"])
        return 200, {"success": True, "loaded_adapters": dict(self.server.adapters)}

    def unload(self, body: Any) -> Answer:
        self.server.fits("unload", body, {"lora_name": str})
        known = self.server.adapters.pop(body["lora_name"], None) is not None
        return (200 if known else 400), {"success": known, "error_message": ""}


class Rewards:
    """togi's reward server: a score is a function of the conversation."""

    owner = "togi"

    def __init__(self, server: Server) -> None:
        self.server = server
        self.paths: dict[str, Callable[[Any], Answer]] = {"/v1/scores": self.scores}

    def scores(self, body: Any) -> Answer:
        self.server.fits("scores", body, {"model": str, "items": list})
        marks = [hashlib.sha256(json.dumps(item).encode()).digest() for item in body["items"]]
        scores = [mark[0] / 64 - 2 for mark in marks]
        return 200, {"model": body["model"], "scores": scores, "errors": [None] * len(scores)}


Speaks = type[VLLM] | type[SGLang] | type[Rewards]


def rows(logprobs: Sequence[float | None], ids: Sequence[int]) -> list[Any]:
    return [[logprob, token, None] for logprob, token in zip(logprobs, ids, strict=True)]


PROTOCOLS: dict[str, Speaks] = {"vllm": VLLM, "sglang": SGLang, "rewards": Rewards}


def read(folder: str) -> str:
    """The identity of the weights in a folder: the hash of the file that holds them."""
    (path,) = Path(folder).glob("*model.safetensors")
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        if self.path in self.server.pages:
            self._send(200, self.server.pages[self.path]())
            return
        if self.path != "/v1/models":
            self._send(404, {"detail": "Not Found"})
            return
        self._send(200, {"data": [{"id": "policy", "owned_by": self.server.speaks.owner, "max_model_len": 256}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.calls.append((self.path, body))
        time.sleep(self.server.delay)
        found = self.server.speaks.paths.get(self.path)
        self._send(*((404, {"detail": "Not Found"}) if found is None else found(body)))

    def _send(self, status: int, value: Any) -> None:
        text = isinstance(value, str)
        body = value.encode() if text else b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "text/plain" if text else "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


@contextmanager
def policy_server(speaks: "Speaks", letters: list[int]) -> Iterator[Server]:
    """A fake that answers while the block lasts."""
    server = Server(speaks, letters)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":  # PROTOCOL PORT LETTERS, for tests that kill it
    alone = Server(PROTOCOLS[sys.argv[1]], json.loads(sys.argv[3]), int(sys.argv[2]))
    alone.delay = 0.02
    alone.serve_forever()
