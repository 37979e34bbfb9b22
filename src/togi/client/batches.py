"""The batch endpoint of a provider: answers all requests of one file within a day, at a lower price.

    POST /files (a line per request) -> POST /batches -> GET /batches/ID until it has ended -> GET /files/ID/content

A batch has a row in the store from before its file is sent until its answers are stored. So a restarted run resumes the
batch that a killed run began. It finds the batch by its id or, if the killed run did not know the id yet, by the tag in
the batch's metadata. The cost of the whole batch is reserved before it is sent, and settled by the usage of its
answers.
"""

import asyncio
import json
import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from togi.client.accounts import Account, fits, reserve, settle, spending
from togi.client.answers import Failure, Whole, dump
from togi.client.endpoint import NO_TOKENS, Tokens
from togi.client.exchange import Exchange
from togi.client.requests import AnyRequest, ChatRequest, CompletionRequest, EmbedRequest
from togi.client.store import Name, keep_answer, read_answer
from togi.client.transport import Reply
from togi.client.troubles import STORED
from togi.client.wire import usage_of
from togi.client.wire_base import Broken, printable, shown
from togi.core.errors import InputError, StageError
from togi.core.records import SamplingParams
from togi.core.seeds import digest

FIRST_POLL, LONGEST_POLL = 1.0, 60.0
ROUNDS = 3
"""The number of batches that a request is sent in before it counts as failed."""
GONE = (404, 410)
ENDED = ("completed", "failed", "expired", "cancelled")
BOUNDARY = "togi-4f1c0b7e9a2d"

Asked = dict[Name, AnyRequest]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Row:
    """A batch that has begun: the tokens reserved for it, and the ids of its file and batch on the server."""

    tag: str
    run: str
    reserved: Tokens
    file: str
    batch: str


class _Gone(Exception):
    """The server no longer has a batch, or a file of one; the message is its path."""


class Batches:
    """Answers requests of one exchange in batches."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.account = exchange.account

    async def answer(self, asked: Asked) -> dict[Name, Failure]:
        """Stores the answers to `asked`, which are all of one kind, and returns the requests that failed.

        Raises StageError if the budget does not allow one more request, or a batch is refused.
        """
        failed = await self._go_on()
        for _ in range(ROUNDS):
            left = await self._missing(asked)
            while left:
                part = await self._affordable(left)
                failed |= await self._finished(await self._begin(part), part)
                left = {name: request for name, request in left.items() if name not in part}
        left = await self._missing(asked)
        return {name: failed.get(name, Failure(reason="server", message="no answer in its batches")) for name in left}

    async def _missing(self, asked: Asked) -> Asked:
        """The requests without an answer."""

        def work(db: sqlite3.Connection) -> Asked:
            return {name: request for name, request in asked.items() if read_answer(db, name) is None}

        return await self.exchange.write(work)

    async def _affordable(self, asked: Asked) -> Asked:
        """The first requests, as many as the budget allows. Raises StageError if it allows none."""
        spent = (await self.exchange.write(lambda db: spending(db, self.account))).tokens
        part: Asked = {}
        for name, request in asked.items():
            spent += self.exchange.cost(request)
            if not fits(self.account, spent):
                break
            part[name] = request
        if not part:
            raise self.exchange.end(await self.exchange.spent(self.exchange.cost(next(iter(asked.values())))))
        return part

    # --- one batch ----------------------------------------------------------------------------------------------------

    async def _go_on(self) -> dict[Name, Failure]:
        """Finishes the batches that an earlier run began but did not finish, whatever requests they hold."""

        def work(db: sqlite3.Connection) -> list[_Row]:
            wanted = "SELECT tag, run, open_input, open_output, file, batch FROM batches WHERE model = ? ORDER BY tag"
            rows = db.execute(wanted, (self._name,)).fetchall()
            return [_Row(tag, run, Tokens(read, written), file, batch) for tag, run, read, written, file, batch in rows]

        failed: dict[Name, Failure] = {}
        for row in await self.exchange.write(work):
            if not row.file:  # it was never sent
                await self._forget(row)
                continue
            log.info("model %s: resuming batch %s", self.exchange.endpoint.name, row.batch or row.tag)
            failed |= await self._finished(row)
        return failed

    @property
    def _name(self) -> str:
        """The key of the batches' rows: the model's name in the recipe, and its model@revision on the server."""
        return f"{self.account.model}={self.exchange.label}"

    async def _begin(self, part: Asked) -> _Row:
        """Reserves the cost of a batch and sends its file."""
        reserved = NO_TOKENS
        for request in part.values():
            reserved += self.exchange.cost(request)
        row = _Row(digest([_custom(name) for name in part])[:32], self.account.run, reserved, "", "")

        def work(db: sqlite3.Connection) -> None:
            reserve(db, _unbounded(self.account), reserved)
            db.execute(
                "INSERT OR REPLACE INTO batches (tag, run, model, open_input, open_output) VALUES (?, ?, ?, ?, ?)",
                (row.tag, row.run, self._name, reserved.input, reserved.output),
            )

        await self.exchange.write(work)
        reply = await self.exchange.control("POST", "/files", self._file(part), _FORM)
        row = replace(row, file=_id(reply, "the file"))
        await self.note_place(row)
        return row

    def _file(self, part: Asked) -> bytes:
        """The form with one line per request."""
        lines = []
        for name, request in part.items():
            call = self.exchange.dialect.call(request, self.exchange.endpoint.model)
            line = {"custom_id": _custom(name), "method": "POST", "url": f"/v1{call.path}", "body": call.body}
            lines.append(json.dumps(line, ensure_ascii=False))
        return _form({"purpose": "batch"}, "\n".join(lines).encode("utf-8", "replace"))

    async def _finished(self, row: _Row, asked: Asked | None = None) -> dict[Name, Failure]:
        """Waits for a batch, stores its answers, and returns its failures. `asked` are its requests; if None, they are
        read from its file. A batch that the server no longer has counts as spent, and its requests have no answer."""
        try:
            if asked is None:
                sent = await self._look(f"/files/{row.file}/content")
                asked = dict(filter(None, map(_request_of, _lines(sent.body))))
            return await self._finish(row, asked)
        except _Gone as gone:
            log.warning(
                "model %s: the server no longer has %s of batch %s, which counts as paid; its requests are sent again",
                self.exchange.endpoint.name,
                gone,
                row.batch or row.tag,
            )
            await self._forget(row, used=row.reserved)
            return {}

    async def _look(self, path: str) -> Reply:
        """The good reply to a GET. Raises _Gone if the server does not have that object."""
        reply = await self.exchange.control("GET", path, failing=GONE)
        if reply.status in GONE:
            raise _Gone(path)
        return reply

    async def _finish(self, row: _Row, asked: Asked) -> dict[Name, Failure]:
        if not row.batch:
            row = replace(row, batch=await self._start(row, asked))
            await self.note_place(row)
        said = await self._ended(row)
        lines: list[Any] = []
        for key in ("output_file_id", "error_file_id"):
            if isinstance(said.get(key), str):
                reply = await self._look(f"/files/{said[key]}/content")
                lines += _lines(reply.body)
        if said["status"] == "failed" and not lines:
            await self._forget(row)
            raise self.exchange.end(
                StageError(
                    f"model {self.exchange.endpoint.name}: batch {row.batch} was refused: {_errors(said)}; {STORED}"
                )
            )
        return await self._keep(row, asked, lines)

    async def _start(self, row: _Row, asked: Asked) -> str:
        """The id of the batch for a file that was sent. Starts the batch if the server does not have it yet."""
        reply = await self.exchange.control("GET", "/batches?limit=100")
        for each in _data(reply):
            if _part(each, "metadata").get("togi") == row.tag and isinstance(each.get("id"), str):
                return each["id"]
        first = next(iter(asked.values()))
        path = self.exchange.dialect.call(first, self.exchange.endpoint.model).path
        wanted = {"input_file_id": row.file, "endpoint": f"/v1{path}", "completion_window": "24h"}
        body = json.dumps({**wanted, "metadata": {"togi": row.tag}}).encode()
        return _id(await self.exchange.control("POST", "/batches", body), "the batch")

    async def _ended(self, row: _Row) -> dict[str, Any]:
        """Waits until a batch has ended, and returns the server's description of it."""
        wait = FIRST_POLL
        while True:
            said = _object(await self._look(f"/batches/{row.batch}"))
            if said.get("status") in ENDED:
                return said
            await asyncio.sleep(wait)
            wait = min(wait * 1.5, LONGEST_POLL)

    async def _keep(self, row: _Row, asked: Asked, lines: Sequence[Any]) -> dict[Name, Failure]:
        """Stores the answers of a batch, settles its reservation and deletes its row, in one transaction."""
        failed: dict[Name, Failure] = {}
        found: dict[Name, Whole] = {}
        for line in lines:
            name = _name_of(line)
            if name not in asked:
                continue
            answer = self._read(asked[name], line)
            if isinstance(answer, Failure):
                failed[name] = answer
            else:
                found[name] = answer
        used = NO_TOKENS
        for answer in found.values():
            used += answer.usage

        def work(db: sqlite3.Connection) -> None:
            for name, answer in found.items():
                keep_answer(db, name, self.exchange.label, dump(answer))
            settle(db, replace(self.account, run=row.run), row.reserved, used)
            db.execute("DELETE FROM batches WHERE tag = ?", (row.tag,))

        await self.exchange.write(work)
        return failed

    def _read(self, request: AnyRequest, line: dict[str, Any]) -> Whole | Failure:
        """The answer in a line of a batch's output, or a Failure with the reason why there is none."""
        response = _part(line, "response")
        body = response.get("body")
        if response.get("status_code") != 200:
            words = printable(str(line.get("error") or body)[:300])
            if "max_completion_tokens" in words:
                self.exchange.dialect.max_tokens = "max_completion_tokens"
            return Failure(reason="refused", message=words)
        try:
            answer = self.exchange.dialect.read(request, body)
        except Broken as broken:
            return Failure(reason="filtered" if broken.filtered else "broken", message=str(broken))
        return replace(answer, usage=usage_of(body) or self.exchange.cost(request))

    # --- its row ------------------------------------------------------------------------------------------------------

    async def note_place(self, row: _Row) -> None:
        """Stores the ids of a batch and of its file."""
        values = (row.file, row.batch, row.tag)
        await self.exchange.write(lambda db: db.execute("UPDATE batches SET file = ?, batch = ? WHERE tag = ?", values))

    async def _forget(self, row: _Row, used: Tokens = NO_TOKENS) -> None:
        """Replaces the reservation of a batch by what it used, and deletes its row."""

        def work(db: sqlite3.Connection) -> None:
            settle(db, replace(self.account, run=row.run), row.reserved, used)
            db.execute("DELETE FROM batches WHERE tag = ?", (row.tag,))

        await self.exchange.write(work)


_FORM = f"multipart/form-data; boundary={BOUNDARY}"


def _unbounded(account: Account) -> Account:
    """The account without its budget, which was checked before."""
    return Account(account.run, account.model)


def _request_of(line: dict[str, Any]) -> tuple[Name, AnyRequest] | None:
    """The request in a line of a sent file, with only the fields that are needed to read its answer; None if the server
    has changed the line."""
    try:
        return _name_of(line), _request_in(line["body"])
    except (KeyError, TypeError, AttributeError, InputError):
        return None


def _request_in(body: dict[str, Any]) -> AnyRequest:
    if "input" in body:
        return EmbedRequest(texts=tuple(body["input"]))
    logprobs = body.get("top_logprobs", 0) if "messages" in body else body.get("logprobs", 0)
    params = SamplingParams(n=body["n"], stop=tuple(body.get("stop", ())), logprobs=logprobs)
    if "messages" in body:
        return ChatRequest(messages=(), params=params)
    return CompletionRequest(prompt=body["prompt"], params=params)


def _form(values: dict[str, str], content: bytes) -> bytes:
    """A multipart form with a file of JSON lines."""
    parts = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in values.items()]
    disposition = 'Content-Disposition: form-data; name="file"; filename="togi.jsonl"'
    head = f"--{BOUNDARY}\r\n{disposition}\r\nContent-Type: application/jsonl\r\n\r\n"
    return "".join(parts).encode() + head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


def _custom(name: Name) -> str:
    return f"{name[0].hex()}-{name[1]}"


def _name_of(line: Any) -> Name:
    """The name of the request that a line answers, or a name that matches no request if it cannot be read."""
    key, _, index = str(line.get("custom_id") if isinstance(line, dict) else "").partition("-")
    try:
        return bytes.fromhex(key), int(index)
    except ValueError:
        return b"", -1


def _lines(content: bytes) -> list[Any]:
    """The objects in JSON lines. Lines that are not JSON objects are skipped, so their requests count as unanswered."""
    found = []
    for line in content.splitlines():
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return [each for each in found if isinstance(each, dict)]


def _object(reply: Reply) -> dict[str, Any]:
    try:
        value = reply.json()
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _data(reply: Reply) -> list[dict[str, Any]]:
    rows = _object(reply).get("data")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _id(reply: Reply, what: str) -> str:
    found = _object(reply).get("id")
    if not isinstance(found, str) or not found:
        raise StageError(f"{what} of a batch has no id in {reply.body[:80]!r}; does the server have a batch endpoint?")
    return found


def _part(value: dict[str, Any], key: str) -> dict[str, Any]:
    """An object within an object; empty if it is missing or something else."""
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _errors(said: dict[str, Any]) -> str:
    errors = _part(said, "errors").get("data")
    found = [each for each in errors if isinstance(each, dict)] if isinstance(errors, list) else []
    words = "; ".join(str(each["message"]) if "message" in each else shown(each) for each in found)
    return printable(words[:300]) or "no reason given"
