"""Serving: `togi serve` against `transformers serve` and vLLM on CPU, over HTTP.

32 chats at once with the same system prompt of about 500 tokens, 48 new tokens each, greedy; tokens per second, and the
time to the first token with 1 and with 32 requests in flight. All servers are up and are asked in turn; the others are
idle meanwhile. One tokenizer counts the tokens of the received texts.
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
import urllib.request
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket
from typing import Any

from harness import PYTHONS, RESULTS, TUNED, console, parser, prepare, show, times, write
from transformers import AutoTokenizer

IN_FLIGHT, TOKENS = 32, 48
TINY_TOKENS = 8
RULE = "Answer in whole sentences, in the language of the question, and say so when you do not know. "
THINGS = ("a river", "a clock", "the moon", "a bridge", "bread", "a violin", "snow", "a lighthouse")
LIMITS = {"transformers serve": 3.0, "vLLM, eager": 1.0}
"""The target speed of togi relative to each peer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One server: its command with {port} in it, the model's name in requests, and its share of the repeats."""

    name: str
    command: list[str]
    model: str
    env: dict[str, str] = field(default_factory=dict)
    share: float = 1.0


@dataclass(slots=True)
class Running:
    """A running server and its measurements."""

    server: Server
    process: subprocess.Popen[bytes]
    port: int
    rows: list[dict[str, float]] = field(default_factory=list)
    error: str = ""

    def median(self, key: str) -> float:
        """Median over the repeats."""
        return statistics.median(row[key] for row in self.rows)


def servers(options: argparse.Namespace, model: str, cache: str) -> list[Server]:
    """togi and its peers, with the same weights in the same type on the same cores."""
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[options.precision]
    (Path(cache) / "hub").mkdir()
    library = [str(Path(sys.executable).parent / "transformers"), "serve", "--port", "{port}", "--device", "cpu"]
    vllm = [str(PYTHONS["vllm"]), "-m", "vllm.entrypoints.openai.api_server", "--port", "{port}", "--enforce-eager"]
    sizes = ["--model", model, "--served-model-name", "bench", "--max-model-len", "2048", "--max-num-seqs", "32"]
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))[: options.threads]))
    alone = {"VLLM_CPU_OMP_THREADS_BIND": cpus, "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"}
    togi = [sys.executable, "-m", "togi", "serve", model, "--name", "bench", "--port", "{port}", "--dtype", dtype]
    found = [
        Server(name="togi serve", command=togi, model="bench"),
        Server(name="vLLM, eager", command=[*vllm, *sizes, "--dtype", dtype], model="bench", env=alone),
        Server(
            name="transformers serve",
            command=[*library, "--dtype", dtype],
            model=model,
            env={"HF_HOME": cache},
            share=0.0,
        ),
    ]
    if options.batched:
        found.append(
            Server(
                name="transformers serve, batched",
                command=[*library, "--dtype", dtype, "--continuous-batching"],
                model=model,
                env={"HF_HOME": cache},
                share=0.0,
            )
        )
    return [each for each in found if not options.only or each.name in options.only]


# --- asking -----------------------------------------------------------------------------------------------------------


async def stream(port: int, model: str, system: str, question: str, tokens: int) -> tuple[float, str]:
    """Seconds to the first token of one streamed chat, and its whole text. Raises RuntimeError for an error."""
    turns = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    asked = {"model": model, "messages": turns, "max_tokens": tokens, "temperature": 0, "stream": True}
    body = json.dumps(asked).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    began, first, text = time.perf_counter(), 0.0, ""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{status.decode().strip()}: {(await reader.read(4000)).decode(errors='replace')[-300:]}")
    while line := await reader.readline():
        if not line.startswith(b"data: {"):
            continue
        choices = json.loads(line.removeprefix(b"data: "))["choices"]
        piece = choices[0]["delta"].get("content") if choices else None
        if piece:
            first = first or time.perf_counter() - began
            text += piece
    writer.close()
    return first, text


async def ask(
    running: Running, system: str, count: int, tokens: int, turn: int
) -> tuple[float, list[float], list[str]]:
    """Seconds of `count` chats at once, seconds to the first token of each, and their texts."""
    questions = [
        f"Tell a long story, number {turn * count + at}, about {THINGS[at % len(THINGS)]}." for at in range(count)
    ]
    began = time.perf_counter()
    found = await asyncio.gather(
        *(stream(running.port, running.server.model, system, question, tokens) for question in questions)
    )
    return time.perf_counter() - began, [first for first, _ in found], [text for _, text in found]


def measure(running: Running, system: str, tokens: int, turn: int, tokenizer: Any) -> dict[str, float]:
    """One repeat: one chat alone, then 32 at once."""
    _, (alone,), _ = asyncio.run(ask(running, system, 1, tokens, turn))
    seconds, firsts, texts = asyncio.run(ask(running, system, IN_FLIGHT, tokens, turn))
    written = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    return {
        "seconds": seconds,
        "tokens": written,
        "tokens_per_second": written / seconds,
        "first_alone": alone,
        "first_of_32": statistics.median(firsts),
        "last_first_of_32": max(firsts),
    }


# --- servers ----------------------------------------------------------------------------------------------------------


def start(server: Server, threads: int) -> Running:
    """Starts a server on the cores that all servers share."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
    env = {**os.environ, **TUNED, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", **server.env}
    command = ["taskset", "-c", cpus, *(part.replace("{port}", str(port)) for part in server.command)]
    log = (RESULTS / f"serving-{server.name.replace(' ', '_').replace(',', '')}.log").open("wb")
    return Running(server, subprocess.Popen(command, env=env, stdout=log, stderr=log), port)


def wait_for(running: Running, seconds: float) -> None:
    """Waits until a server answers; records an error if it does not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and running.process.poll() is None:
        with suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{running.port}/health", timeout=5).close()
            return
        time.sleep(0.5)
    running.error = f"did not come up (code {running.process.poll()}); see its log in results/"


def stop(running: Running) -> None:
    """Ends a server."""
    running.process.terminate()
    try:
        running.process.wait(20)
    except subprocess.TimeoutExpired:
        running.process.kill()
        running.process.wait()


def rounds(found: list[Running], system: str, options: argparse.Namespace, tokenizer: Any) -> None:
    """Asks each server in turn, in alternating order, after one warm-up."""
    tokens = TINY_TOKENS if options.tiny else TOKENS
    for running in found:
        if not running.error:
            try:
                asyncio.run(ask(running, system, 2, 4, -1))
            except (RuntimeError, OSError) as error:
                running.error = str(error)
    for turn in range(options.repeats):
        for running in found if turn % 2 == 0 else list(reversed(found)):
            if running.error or (turn > 0 and turn >= options.repeats * running.server.share):
                continue
            console.print(f"repeat {turn + 1}: {running.server.name}")
            try:
                running.rows.append(measure(running, system, tokens, turn, tokenizer))
            except (RuntimeError, OSError) as error:
                running.error = str(error)


# --- telling ----------------------------------------------------------------------------------------------------------


def report(found: list[Running], precision: str) -> dict[str, float | None]:
    """Prints a table; returns our speed over each peer's."""
    ours = next((each for each in found if each.server.name == "togi serve" and each.rows), None)
    rows, ratios = [], {}
    for each in found:
        if not each.rows:
            console.print(f"[red]{each.server.name}: {each.error}[/red]")
            continue
        ratio = ours.median("tokens_per_second") / each.median("tokens_per_second") if ours else None
        ratios[each.server.name] = ratio
        firsts = [f"{each.median(key):.2f}" for key in ("first_alone", "first_of_32", "last_first_of_32")]
        asked = LIMITS.get(each.server.name)
        goal = f" [{asked:.0f}]" if asked else ""
        rows.append([each.server.name, f"{each.median('tokens_per_second'):.1f}", times(ratio) + goal, *firsts])
    columns = ["server", "tokens/s", "togi is faster by [asked]", "first token alone, s", "of 32, s", "last of 32, s"]
    show(f"serving, {precision}: {IN_FLIGHT} chats at once", columns, rows)
    return ratios


def main() -> None:
    """Command line."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    arguments.add_argument("--batched", action="store_true", help="transformers serve with continuous batching as well")
    arguments.add_argument("--start-seconds", type=float, default=180, help="longest time for a server to start")
    arguments.set_defaults(repeats=3, fp32_mode="default")
    options = arguments.parse_args()
    config = prepare(options)
    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    length = len(tokenizer(RULE, add_special_tokens=False)["input_ids"])
    system = RULE * max((200 if options.tiny else 500) // length, 1)
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as cache, ExitStack() as stack:
        found = []
        for server in servers(options, config["model"], cache):
            found.append(start(server, options.threads))
            stack.callback(stop, found[-1])
        for running in found:
            wait_for(running, options.start_seconds)
        rounds(found, system, options, tokenizer)
    ratios = report(found, options.precision)
    sides = {each.server.name: {"rows": each.rows, "error": each.error} for each in found}
    work = {"in_flight": IN_FLIGHT, "tokens": TOKENS, "system_tokens": length * (len(system) // len(RULE))}
    write("serving", options, {options.precision: {"work": work, "sides": sides, "ratios": ratios}})


if __name__ == "__main__":
    main()
