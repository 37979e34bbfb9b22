"""1,000 chats, 64 in flight, against a server in a separate process that takes 50 ms, and 20,000 stored answers.

    python benchmarks/client.py [--repeats 5]
    chrt -r 10 python benchmarks/client.py      on a shared machine: real-time scheduling, for all sides

`bare` is an asyncio client of 30 lines that stores and checks nothing: the bound is 16 rounds of 50 ms, 0.8 s. `togi`
writes a reservation before each request, checks and stores each answer, and returns them in order. `openai` is the
openai library. Sides are separate processes, interleaved; medians are compared. Results: results/client.json.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import HERE, RESULTS, console, cpu_facts, revision, show
from openai import AsyncOpenAI

from togi.client.answers import Answer, Choice, dump
from togi.client.client import Client
from togi.client.endpoint import Endpoint, Tokens
from togi.client.requests import ChatRequest, request_key
from togi.client.store import AnswerStore, keep_answer
from togi.core.records import Message, SamplingParams

REQUESTS, IN_FLIGHT, STORED = 1000, 64, 20_000
LIMIT = 1.3
"""Largest accepted time of togi, as a multiple of the bare client's."""
TEXTS = [f"question {number}: " + "word " * 50 for number in range(REQUESTS)]


async def bare(port: int, texts: Sequence[str]) -> int:
    """30 lines of asyncio: 64 connections, each asking one request after another."""
    left, found = iter(texts), []

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for text in left:
            chat = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 64}
            body = json.dumps(chat).encode()
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            said = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(said.split(b"content-length:")[1].split(b"\r\n")[0])
            found.append(json.loads(await reader.readexactly(length))["choices"][0]["message"]["content"])
        writer.close()

    await asyncio.gather(*(connection() for _ in range(IN_FLIGHT)))
    return len(found)


async def library(port: int, texts: Sequence[str]) -> int:
    """The openai library, as its documentation uses it."""
    slots = asyncio.Semaphore(IN_FLIGHT)
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:

        async def one(text: str) -> str | None:
            async with slots:
                reply = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": text}], max_tokens=64
                )
                return reply.choices[0].message.content

        return len(await asyncio.gather(*map(one, texts)))


def chats(texts: Sequence[str]) -> list[ChatRequest]:
    """The same chats as togi's requests."""
    params = SamplingParams(max_tokens=64)
    return [ChatRequest(messages=(Message("user", text),), params=params) for text in texts]


def endpoint(port: int) -> Endpoint:
    """The server, as a recipe would declare it."""
    return Endpoint(name="teacher", urls=(f"http://127.0.0.1:{port}/v1",), model="m", concurrency=IN_FLIGHT)


def ask(port: int, texts: Sequence[str]) -> int:
    """togi, with an empty store."""
    with (
        tempfile.TemporaryDirectory() as folder,
        AnswerStore(Path(folder) / "answers.sqlite") as store,
        Client(endpoint(port), store, run="0" * 12) as client,
    ):
        return sum(isinstance(found, Answer) for found in client.ask(chats(texts)))


def stored(port: int, texts: Sequence[str]) -> tuple[int, float, float]:
    """togi, with 20,000 answers in the store: their number, and the wall-clock and CPU seconds."""
    made, asked = endpoint(port), chats([f"{text} {number}" for text in texts for number in range(STORED // REQUESTS)])
    body = dump(Answer(choices=(Choice(text="word " * 60, finish="stop"),), usage=Tokens(60, 60)))
    with tempfile.TemporaryDirectory() as folder, AnswerStore(Path(folder) / "answers.sqlite") as store:
        names = [(request_key(request, "m", ""), 0) for request in asked]
        store.write(lambda db: [keep_answer(db, name, "m@", body) for name in names])
        with Client(made, store, run="0" * 12) as client:
            start, worked = time.perf_counter(), time.process_time()
            count = sum(isinstance(found, Answer) for found in client.ask(asked))
            return count, time.perf_counter() - start, time.process_time() - worked


SIDES: dict[str, Callable[[int, Sequence[str]], Any]] = {
    "bare": lambda port, texts: asyncio.run(bare(port, texts)),
    "togi": ask,
    "openai": lambda port, texts: asyncio.run(library(port, texts)),
    "togi, stored": stored,
}


def measure(side: str, port: int) -> dict[str, float]:
    """One repeat, in this process, after a warm-up with 64 requests."""
    SIDES[side](port, TEXTS[:IN_FLIGHT])
    start, worked = time.perf_counter(), time.process_time()
    found = SIDES[side](port, TEXTS)
    if not isinstance(found, tuple):
        found = found, time.perf_counter() - start, time.process_time() - worked
    return dict(zip(("count", "seconds", "processor_seconds"), found, strict=True))


def repeat(side: str, port: int) -> dict[str, float]:
    """One repeat, in a separate process."""
    command = [sys.executable, __file__, "--side", side, "--port", str(port)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=5, help="repeats of each side, interleaved")
    options.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.side:
        print(json.dumps(measure(given.side, given.port)))
        return
    server = subprocess.Popen([sys.executable, HERE / "sides/chat_server.py"], stdout=subprocess.PIPE)
    assert server.stdout is not None
    port, load = int(server.stdout.readline()), cpu_facts()["load_average"]
    rows: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    try:
        for turn in range(given.repeats):
            for side in list(SIDES)[:: 1 if turn % 2 == 0 else -1]:
                rows[side].append(repeat(side, port))
    finally:
        server.kill()
        server.wait()
    report(rows, given.repeats, load)


def report(rows: dict[str, list[dict[str, float]]], repeats: int, load: float) -> None:
    """Prints and writes the results."""
    median = {side: statistics.median(row["seconds"] for row in found) for side, found in rows.items()}
    work = {side: statistics.median(row["processor_seconds"] for row in found) for side, found in rows.items()}
    ratio, rate = median["togi"] / median["bare"], STORED / median["togi, stored"]
    table = [[side, f"{median[side]:.3f}", f"{work[side]:.3f}", f"{rows[side][0]['count']:,.0f}"] for side in rows]
    show("chats at 64 in flight, server of 50 ms", ["side", "seconds", "processor's", "answers"], table)
    console.print(f"togi / bare: {ratio:.2f} (limit {LIMIT}); from the store: {rate:,.0f} answers a second")
    record = {
        "name": "client",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": revision(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "machine": {**cpu_facts(), "load_average": load},
        "scheduling": "real time" if os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR) else "shared",
        "repeats": repeats,
        "togi_over_bare": ratio,
        "stored_answers_per_second": rate,
        "median_seconds": median,
        "median_processor_seconds": work,
        "rows": rows,
    }
    (RESULTS / "client.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
