"""Errors of requests: try again, give up this request, or end the run with one clear message."""

import re

from togi.client.answers import Failure, Reason
from togi.client.endpoint import Endpoint
from togi.client.transport import Reply
from togi.core.errors import InputError, StageError, TogiError

STORED = "every answer so far is stored; the same command continues from here"
SPENT = re.compile(r"insufficient_quota|exceeded your current quota|billing", re.I)
TOO_LONG = re.compile(r"context[_ ](?:length|window)|maximum context|max_model_len|too long|too many tokens", re.I)
NO_MODEL = re.compile(
    r"model\b.{0,80}(?:not (?:be )?found|does ?n[o']t exist|not exist|unknown|not served|no such)"
    r"|pinned to .{0,200}requested",  # transformers serve
    re.I | re.S,
)
OVERLOADED = 529
BUSY = (429, OVERLOADED)
PASSING = (408, 409, 425)


class Again(Exception):
    """This try failed; another may succeed. `counts`: it counts against the limit on tries; `at_once`: retry without
    waiting."""

    def __init__(self, reason: Reason, message: str, *, counts: bool = True, at_once: bool = False) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.counts, self.at_once = counts, at_once


class GivenUp(Exception):
    """This request gets no answer; others may."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(reason=reason, message=message)


class Busy(Exception):
    """The server accepts no requests for `seconds`, or for an unknown time if None."""

    def __init__(self, message: str, seconds: float | None) -> None:
        super().__init__(message)
        self.seconds = seconds


def check_status(reply: Reply, endpoint: Endpoint, url: str) -> None:
    """Raises the error for a reply other than 200: Again, GivenUp, Busy, or the TogiError that ends the run."""
    status = reply.status
    if status == 200:
        return
    said = f"{url} answers {status}: {reply.words() or 'nothing'}"
    if status in BUSY:
        if SPENT.search(reply.words()):
            raise StageError(f"model {endpoint.name}: the account has no credit left ({said}); {STORED}")
        raise Busy(said, reply.retry_after)
    if status >= 500 or status in PASSING:
        raise Again("server", said)
    if fatal := _fatal(reply, endpoint, url, said):
        raise fatal
    raise GivenUp("too_long" if status == 413 or TOO_LONG.search(reply.words()) else "refused", said)


def _fatal(reply: Reply, endpoint: Endpoint, url: str, said: str) -> TogiError | None:
    """The error for a reply that every request would get, or None if others may succeed."""
    status, name = reply.status, f"model {endpoint.name}"
    if 300 <= status < 400 or status < 200:
        return InputError(
            f"{name}: {url} redirects to {reply.location or 'nowhere'}; togi does not follow redirects, because that "
            "would send the key to another address; set url to the final address"
        )
    if status in (401, 403):
        where = f"check the key in {endpoint.key_env}" if endpoint.key_env else "set key_env to the key's variable"
        return InputError(f"{name}: {url} refuses the key ({status}: {reply.words()}); {where}")
    if status == 402:
        return StageError(f"{name}: the account has no credit left ({said}); {STORED}")
    if status in (400, 404) and NO_MODEL.search(reply.words()):
        return not_served(endpoint, url, reply.words())
    if status in (404, 405):
        return InputError(
            f"{name}: {url} does not exist ({status}); url must be the base, such as http://host:8000/v1, and "
            "the server must support this kind of request"
        )
    return None


def not_served(endpoint: Endpoint, url: str, why: str) -> InputError:
    """The error for a model that a server does not have."""
    return InputError(
        f"model {endpoint.name}: {url} does not serve {endpoint.model!r} ({why}); set model to what it serves"
    )


def down(endpoint: Endpoint, why: str, seconds: float, *, ever: bool) -> TogiError:
    """The error for servers that cannot be reached; `ever`: whether one has answered before."""
    if ever:
        return StageError(f"model {endpoint.name}: no server has answered for {seconds:.0f} s ({why}); {STORED}")
    return InputError(f"model {endpoint.name}: {why}; start the server, or correct url")
