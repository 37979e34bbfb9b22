"""A display that records its notes."""

import signal
from typing import Any


class Notes:
    """A display that records its notes."""

    def __init__(self, signals: int = 0) -> None:
        self.notes: list[str] = []
        self.signals = signals  # number raised when a stage starts, before the run has processes

    def start(self, stage: str, kind: str) -> None:
        for _ in range(self.signals):
            signal.raise_signal(signal.SIGTERM)

    def cached(self, stage: str, kind: str) -> None: ...
    def event(self, event: dict[str, Any]) -> None: ...
    def done(self, stage: str, seconds: float) -> None: ...
    def closing(self, closing: Any) -> None: ...

    def note(self, message: str) -> None:
        self.notes.append(message)
