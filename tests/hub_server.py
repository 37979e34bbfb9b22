"""A minimal model hub: repositories of one commit each. It answers the hub library's downloads and accepts its uploads:
small files inside the commit, large ones before it by git LFS."""

import base64
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
    token: str
    address: str
    large: dict[str, bytes]

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

    def do_PUT(self) -> None:
        content = self.body()
        self.large[hashlib.sha256(content).hexdigest()] = content
        self.reply(200, b"", {}, True)

    def do_POST(self) -> None:
        path, body = self.path.partition("?")[0], self.body()
        if self.headers.get("Authorization") != f"Bearer {self.token}":
            self.reply(401, b'{"error": "Invalid username or password."}', {}, True)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.repositories.setdefault(name, {})
            self.told({"url": f"{self.address}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self.told({"errors": [], "warnings": []})
        elif path.endswith("/info/lfs/objects/batch"):
            wanted = [(each["oid"], each["size"]) for each in json.loads(body)["objects"]]
            href = f"{self.address}/lfs"
            self.told(
                {
                    "transfer": "basic",
                    "objects": [{"oid": o, "size": n, "actions": {"upload": {"href": href}}} for o, n in wanted],
                }
            )
        else:
            self.commit("/".join(path.split("/")[3:5]), path.split("/")[5], body)

    def commit(self, name: str, verb: str, body: bytes) -> None:
        """Answers how each file is to be uploaded, or accepts a commit."""
        if verb == "preupload":
            sizes = {each["path"]: each["size"] for each in json.loads(body)["files"]}
            modes = {p: "lfs" if p.endswith((".safetensors", ".parquet")) else "regular" for p in sizes}
            self.told({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})
            return
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.repositories[name][value["path"]] = self.large[value["oid"]]
        self.told({"success": True, "commitUrl": f"{self.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def told(self, value: object) -> None:
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, True)

    def reply(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing."""


@contextmanager
def serving(repositories: Repositories, token: str = "") -> Iterator[str]:
    """Address of a hub of these repositories (name: {file: content}) while `with` lasts. Writing needs the token."""
    kind = type("Hub", (_Hub,), {"repositories": repositories, "token": token, "large": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    kind.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield kind.address
    finally:
        server.shutdown()
        server.server_close()
