"""The batch endpoint of the hostile server: stores files and batches as OpenAI does."""

import json
import time
from collections import Counter


class Batches:
    """A batch ends `seconds` after it was created; `share` of its lines are answered, the rest expire. With `odd` there
    are also batches and lines with values of wrong types."""

    def __init__(self, answers, seconds, share, odd=False):
        self.answers, self.seconds, self.share, self.odd = answers, seconds, share, odd
        self.files, self.batches, self.stats = {}, {}, Counter(batches=0, lines=0)

    def reply(self, method, path, content):
        """(status, value[, headers, raw content]) of the reply to a request."""
        path = path.partition("?")[0].removeprefix("/v1/")
        if method == "POST" and path == "files":
            return 200, {"id": self.keep(content.split(b"application/jsonl\r\n\r\n")[1].rpartition(b"\r\n--")[0])}
        if method == "POST":
            return 200, self.begin(json.loads(content))
        if path == "batches":
            odd = [5, {}, {"metadata": 5}, {"metadata": [], "id": 5}] if self.odd else []
            return 200, {"data": [*odd, *(self.shown(name) for name in self.batches)]}
        name = path.split("/")[1]
        if name not in (*self.batches, *self.files):
            return 404, {"error": {"message": f"No such object: {name}"}}
        if path.startswith("batches/"):
            return 200, self.shown(name)
        return 200, None, (), self.files[name]

    def keep(self, content):
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return name

    def begin(self, wanted):
        lines = [json.loads(line) for line in self.files[wanted["input_file_id"]].splitlines()]
        self.stats["batches"] += 1
        self.stats["lines"] += len(lines)
        answered = [self.line(line) for line in lines[: max(1, int(len(lines) * self.share))]]
        answered += [odd for line in lines for odd in odd_lines(line["custom_id"])] if self.odd else []
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


def odd_lines(custom_id):
    """Lines for a request that no client can read."""
    refused = {"status_code": 400, "body": None}
    return [
        5,
        {"custom_id": [], "response": {}},
        {"custom_id": custom_id, "response": 5},
        {"custom_id": custom_id, "response": refused, "error": "no \ud800"},
        {"custom_id": custom_id, "response": {"status_code": 200, "body": 7}},
    ]
