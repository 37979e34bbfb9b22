"""Decides when a request may be sent: rate limits, pauses that a server asks for, waits between tries.

Timing affects no result, so the jitter needs no seed.
"""

import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

FIRST_WAIT, LONGEST_WAIT = 0.25, 20.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 15.0
_jitter = random.Random()


@dataclass(slots=True)
class Pace:
    """A limit per minute, kept by even spacing: it holds in any minute, and there are no bursts."""

    per_minute: int | None
    free_at: float = 0.0

    def wait(self, amount: int = 1) -> float:
        """Uses `amount` of the limit; returns the seconds to wait until that is allowed."""
        if self.per_minute is None:
            return 0.0
        now = time.monotonic()
        start = max(now, self.free_at)
        self.free_at = start + 60.0 * amount / self.per_minute
        return start - now


@dataclass(slots=True)
class Gate:
    """Closed while a server accepts no requests (429). `busy_since` is the time since which it refuses all of them."""

    opens_at: float = 0.0
    busy_since: float | None = None
    pauses: int = 0

    def wait(self) -> float:
        """Seconds until the gate opens, with jitter, so that the waiting requests do not all continue at once."""
        return max(0.0, self.opens_at - time.monotonic()) * _jitter.uniform(1.0, 1.25)

    def close(self, seconds: float | None) -> None:
        """Records a 429, with its Retry-After if it has one. Many at once lengthen the pause only once."""
        now = time.monotonic()
        if self.busy_since is None:
            self.busy_since = now
        if seconds is not None:
            self.opens_at = max(self.opens_at, now + seconds)
        elif now >= self.opens_at:
            self.opens_at = now + min(FIRST_PAUSE * 2**self.pauses, LONGEST_PAUSE)
            self.pauses += 1

    def answered(self) -> None:
        """Records that the server answers."""
        self.busy_since, self.pauses = None, 0

    def busy_for(self) -> float:
        """Seconds since which every answer has been a refusal."""
        return 0.0 if self.busy_since is None else time.monotonic() - self.busy_since


def backoff(tries: int) -> float:
    """Seconds to wait after `tries` failed tries: doubles each time up to a limit, with jitter."""
    return min(FIRST_WAIT * 2**tries, LONGEST_WAIT) * _jitter.uniform(0.5, 1.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After header (seconds or a date) asks for, or None without a readable one. Names in
    `headers` must be in lower case."""
    said = headers.get("retry-after", "").strip()
    try:
        seconds = float(said)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(said)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
