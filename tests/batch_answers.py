"""The batch endpoint of the hostile server: stores files and batches as OpenAI does."""

import json
import time
from collections import Counter


class Batches:
    """A batch ends `seconds` after it was created; `share` of its lines are answered, the rest expire."""

    def __init__(self, answers, seconds, share):
        self.answers, self.seconds, self.share = answers, seconds, share
        self.files, self.batches, self.stats = {}, {}, Counter(batches=0, lines=0)

    def reply(self, method, path, content):
        """(status, value[, headers, raw content]) of the reply to a request."""
        path = path.partition("?")[0].removeprefix("/v1/")
        if method == "POST" and path == "files":
            return 200, {"id": self.keep(content.split(b"application/jsonl\r\n\r\n")[1].rpartition(b"\r\n--")[0])}
        if method == "POST":
            return 200, self.begin(json.loads(content))
        if path == "batches":
            return 200, {"data": [self.shown(name) for name in self.batches]}
        if path.startswith("batches/"):
            return 200, self.shown(path.removeprefix("batches/"))
        return 200, None, (), self.files[path.split("/")[1]]

    def keep(self, content):
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return name

    def begin(self, wanted):
        lines = [json.loads(line) for line in self.files[wanted["input_file_id"]].splitlines()]
        self.stats["batches"] += 1
        self.stats["lines"] += len(lines)
        answered = [self.line(line) for line in lines[: max(1, int(len(lines) * self.share))]]
        output = self.keep("\n".join(json.dumps(line) for line in reversed(answered)).encode())
        name = f"batch-{len(self.batches)}"
        self.batches[name] = {"id": name, "metadata": wanted["metadata"], "output_file_id": output, "made": time.time()}
        return self.shown(name)

    def line(self, line):
        body = self.answers.reply(line["url"], line["body"])
        return {"custom_id": line["custom_id"], "response": {"status_code": 200, "body": body}, "error": None}

    def shown(self, name):
        batch = self.batches[name]
        over = time.time() - batch["made"] >= self.seconds
        status = ("completed" if self.share == 1.0 else "expired") if over else "in_progress"
        return {**batch, "status": status} if over else {"id": name, "status": status, "metadata": batch["metadata"]}
