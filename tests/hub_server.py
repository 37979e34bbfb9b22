"""A model hub of a few lines: repositories of one commit each, answered as the hub library asks for them."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Repositories = dict[str, dict[str, bytes]]


class _Hub(BaseHTTPRequestHandler):
    repositories: Repositories

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0].removeprefix("/").removeprefix("api/")
        kind = next((kind for kind in ("models/", "datasets/") if path.startswith(kind)), "")
        owner, name, verb, _, *rest = [*path.removeprefix(kind).split("/"), "", "", ""]
        files = self.repositories.get(f"{owner}/{name}")
        if files is None:
            self.reply(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, body)
        elif verb == "revision":
            siblings = [{"rfilename": file} for file in files]
            self.reply(
                200, json.dumps({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings}).encode(), {}, body
            )
        elif verb == "tree":
            listed = [
                {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for p, c in files.items()
            ]
            self.reply(200, json.dumps(listed).encode(), {}, body)
        else:
            content = files["/".join(part for part in rest if part)]
            self.reply(200, content, {"ETag": hashlib.sha1(content).hexdigest(), "X-Repo-Commit": COMMIT}, body)

    def reply(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def serving(repositories: Repositories) -> Iterator[str]:
    """The address of a hub that holds these repositories (name: {file: content}) while `with` lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"repositories": repositories}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
