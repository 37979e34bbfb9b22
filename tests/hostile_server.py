"""A server with every fault that networks and servers have, run as a separate process.

    python hostile_server.py '{"faults": ["drop", "429"], "rate": 0.3}'

It prints its port. The fault of a request depends on the request and on how often the server has seen it, so a client
that retries gets through in the end. It counts the requests it received and the answers it gave: GET /stats.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from email.utils import formatdate

from batch_answers import Batches
from client_answers import Answers, digest

KEPT_TRYING = 3
"""A request seen more often than this is answered well, unless `always` or `busy_after` says otherwise."""
RETRY = ("429", "429-date", "429-bare")


class Server:
    """A request has one of `faults` with probability `rate`; `always` affects every request; `delay` is in seconds."""

    def __init__(
        self,
        *,
        faults=(),
        rate=0.0,
        always="",
        delay=0.0,
        key="",
        busy_after=None,
        retry_after="0.05",
        port=0,
        batch_seconds=0.0,
        batch_share=1.0,
        batch_odd=False,
        **model,
    ):
        self.faults, self.rate, self.always, self.delay, self.port = faults, rate, always, delay, port
        self.key, self.busy_after, self.retry_after = key, busy_after, retry_after
        self.answers = Answers(**model)
        self.batches = Batches(self.answers, batch_seconds, batch_share, batch_odd)
        self.seen, self.good, self.stats = Counter(), Counter(), Counter()
        self.started = time.monotonic()

    async def serve(self):
        server = await asyncio.start_server(self.connection, "127.0.0.1", self.port, backlog=1024, limit=2**24)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    async def connection(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, path, _ = head.split(" ", 2)
                headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
                content = await reader.readexactly(int(headers.get("content-length", 0)))
                if not await self.exchange(writer, method, path, headers, content):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def exchange(self, writer, method, path, headers, content):
        """Answers one request; returns whether the connection stays open."""
        if path == "/answered":
            return await self.send(writer, 200, sum(self.good.values()))
        if path == "/stats":
            wanted = {"seen": dict(self.seen), "good": dict(self.good), **self.stats, **self.batches.stats}
            return await self.send(writer, 200, wanted)
        self.stats["requests"] += 1
        if path.startswith(("/v1/files", "/v1/batches")):
            return await self.send(writer, *self.batches.reply(method, path, content))
        if self.key and headers.get("authorization") != f"bearer {self.key}".lower():
            return await self.send(writer, 401, {"error": {"message": "Incorrect API key provided"}})
        if method == "GET":
            return await self.get(writer, path)
        self.stats["under_way"] += 1
        self.stats["most"] = max(self.stats["most"], self.stats["under_way"])
        try:
            return await self.post(writer, path, json.loads(content))
        finally:
            self.stats["under_way"] -= 1

    async def get(self, writer, path):
        found = self.answers.models() if path == "/v1/models" else {"error": "no such path"}
        return await self.send(writer, 200 if path == "/v1/models" else 404, found)

    async def post(self, writer, path, body):
        name = digest([path, body]).hex()[:16]
        self.seen[name] += 1
        if self.delay:
            await asyncio.sleep(self.delay)
        if body.get("model", self.answers.model) != self.answers.model:
            message = f"The model `{body['model']}` does not exist."
            return await self.send(writer, 404, {"error": {"message": message, "code": "model_not_found"}})
        if refused := self.answers.refused(body):
            return await self.send(writer, 400, {"error": {"message": f"{refused}: not supported"}})
        fault = self.fault(name)
        if fault:
            self.stats[fault] += 1
        reply = self.answers.reply(path, body)
        if reply is None:
            return await self.send(writer, 404, {"detail": "Not Found"})
        if fault:
            return await getattr(self, "do_" + fault.replace("-", "_"))(writer, reply)
        self.good[name] += 1
        usage = reply.get("usage", {}) if isinstance(reply, dict) else {}
        self.stats["tokens"] += usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0)
        return await self.send(writer, 200, reply)

    def fault(self, name):
        """The fault of a request; "" for none."""
        if self.always:
            return self.always
        if self.busy_after is not None and self.stats["requests"] > self.busy_after:
            return "429"
        if not self.faults or self.seen[name] > KEPT_TRYING:
            return ""
        chance = digest([name, self.seen[name]])
        if chance[0] / 256 >= self.rate:
            return ""
        return self.faults[chance[1] % len(self.faults)]

    async def send(self, writer, status, value, headers=(), raw=None):
        content = json.dumps(value).encode() if raw is None else raw
        lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(content)}", *headers]
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        await writer.drain()
        return True

    # --- faults -------------------------------------------------------------------------------------------------------

    async def do_drop(self, writer, reply):
        writer.transport.abort()
        return False

    async def do_half(self, writer, reply):
        content = json.dumps(reply).encode()
        writer.write(
            f"HTTP/1.1 200 X\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content[: len(content) // 2]
        )
        await writer.drain()
        return False

    async def do_half_chunk(self, writer, reply):
        content = json.dumps(reply).encode()[:40]
        writer.write(
            b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n" + b"%x\r\n" % len(content) + content + b"\r\n"
        )
        await writer.drain()
        return False

    async def do_stream(self, writer, reply):
        writer.write(b'HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\n\r\ndata: {"choices": []}\n\n')
        await writer.drain()
        return False

    async def do_429(self, writer, reply):
        return await self.send(writer, 429, {"error": "slow down"}, [f"Retry-After: {self.retry_after}"])

    async def do_429_date(self, writer, reply):
        return await self.send(
            writer, 429, {"error": "slow down"}, [f"Retry-After: {formatdate(time.time(), usegmt=True)}"]
        )

    async def do_429_bare(self, writer, reply):
        return await self.send(writer, 429, {"error": "slow down"})

    async def do_500(self, writer, reply):
        return await self.send(writer, 500, {"error": {"message": "out of luck"}})

    async def do_400(self, writer, reply):
        return await self.send(writer, 400, {"error": {"message": "maximum context length is 4096 tokens"}})

    async def do_wrong_json(self, writer, reply):
        return await self.send(writer, 200, None, raw=b'{"choices": [')

    async def do_other_json(self, writer, reply):
        return await self.send(writer, 200, {"choices": "none"})

    async def do_fewer(self, writer, reply):
        return await self.send(writer, 200, {**reply, "choices": reply["choices"][:-1]})

    async def do_unended(self, writer, reply):
        return await self.send(
            writer, 200, {**reply, "choices": [c | {"finish_reason": None} for c in reply["choices"]]}
        )

    async def do_order(self, writer, reply):
        key = "choices" if "choices" in reply else "data"
        return await self.send(writer, 200, {**reply, key: list(reversed(reply[key]))})

    async def do_nan(self, writer, reply):
        return await self.send(
            writer, 200, None, raw=json.dumps(reply).replace('"probs": [', '"probs": [NaN, ').encode()
        )

    async def do_half_character(self, writer, reply):
        raw = json.dumps(reply).replace('"content": "', '"content": "\\ud800')
        return await self.send(writer, 200, None, raw=raw.encode())

    async def do_much_usage(self, writer, reply):
        return await self.send(writer, 200, {**reply, "usage": {"prompt_tokens": 2**70, "completion_tokens": 2**70}})

    async def do_error_in_200(self, writer, reply):
        return await self.send(writer, 200, {"error": {"message": "the model is overloaded"}})

    async def do_redirect(self, writer, reply):
        return await self.send(writer, 307, {}, ["Location: http://elsewhere.example/v1/chat/completions"])

    async def do_drip(self, writer, reply):
        content = json.dumps(reply).encode()
        writer.write(f"HTTP/1.1 200 X\r\nContent-Length: {len(content)}\r\n\r\n".encode())
        for number in range(len(content)):
            writer.write(content[number : number + 1])
            await writer.drain()
            await asyncio.sleep(0.2)
        return True


if __name__ == "__main__":
    asyncio.run(Server(**json.loads(sys.argv[1])).serve())
