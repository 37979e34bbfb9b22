"""Several servers with one model: picks the least busy one, and skips a dead one until it is time to retry it."""

import time
from dataclasses import dataclass

FIRST_REST, LONGEST_REST = 1.0, 30.0


@dataclass(slots=True)
class Replica:
    """One server. After a failed connection it is not used until `rests_until`."""

    base: str
    under_way: int = 0
    asked: int = 0
    failures: int = 0
    rests_until: float = 0.0


@dataclass(slots=True)
class Replicas:
    """All servers of an endpoint. `down_since` is the time since which all fail, None while one answers."""

    all: list[Replica]
    down_since: float | None = None

    def pick(self) -> Replica | None:
        """The server to ask next, or None while all are resting."""
        now = time.monotonic()
        awake = [each for each in self.all if each.rests_until <= now]
        return min(awake, key=lambda each: (each.under_way, each.asked), default=None)

    def rest_left(self) -> float:
        """Seconds until the first server may be tried again."""
        return max(0.0, min(each.rests_until for each in self.all) - time.monotonic())

    def failed(self, replica: Replica) -> bool:
        """Records that a server cannot be reached; True for the first failure in a row."""
        now = time.monotonic()
        first = replica.failures == 0
        if replica.rests_until <= now:  # requests that fail together count once
            replica.rests_until = now + min(FIRST_REST * 2**replica.failures, LONGEST_REST)
            replica.failures += 1
        if self.down_since is None and all(each.failures for each in self.all):
            self.down_since = now
        return first

    def answered(self, replica: Replica) -> None:
        """Records that a server answers."""
        replica.failures, replica.rests_until, self.down_since = 0, 0.0, None

    def down_for(self) -> float:
        """Seconds for which no server could be reached."""
        return 0.0 if self.down_since is None else time.monotonic() - self.down_since
