"""A fast server that answers every chat after 50 ms, to measure clients. Prints its port."""

import asyncio
import json

SECONDS = 0.05
ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 60}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 60, "completion_tokens": 60, "total_tokens": 120},
}
BODY = json.dumps(ANSWER).encode()
MODELS = json.dumps({"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "nobody"}]}).encode()


def reply(body: bytes) -> bytes:
    """A whole HTTP reply."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


class Chats(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.read = transport, b""

    def data_received(self, data: bytes) -> None:
        """Answers each complete request after the delay."""
        self.read += data
        while (end := self.read.find(b"\r\n\r\n")) >= 0:
            head = self.read[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n")[0]) if at >= 0 else 0
            if len(self.read) < end + 4 + length:
                return
            self.read = self.read[end + 4 + length :]
            found = reply(MODELS if head.startswith(b"get") else BODY)
            asyncio.get_running_loop().call_later(SECONDS, self.transport.write, found)


async def main() -> None:
    """Serves until it is killed."""
    server = await asyncio.get_running_loop().create_server(Chats, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
