"""What `togi run` shows: a live line in a terminal, a quiet log elsewhere, JSON lines on demand."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from togi.core.errors import OutputClosed, TogiError
from togi.core.terminal import json_text, printable, say


class Display(Protocol):
    """Hears about stages and their events."""

    def start(self, stage: str, kind: str) -> None: ...
    def cached(self, stage: str, kind: str) -> None: ...
    def event(self, event: dict[str, Any]) -> None: ...
    def done(self, stage: str, seconds: float) -> None: ...
    def note(self, message: str) -> None: ...


def rate_and_rest(done: int, total: int, seconds: float) -> str:
    """ "3.1/s, 0:12 left" or "4.2 s each, 1:03 left" of work that took `seconds`; empty before anything is known."""
    if not done or seconds <= 0:
        return ""
    rate = done / seconds
    rest = int((total - done) / rate)
    pace = f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g} s each"
    return f"{pace}, {rest // 60}:{rest % 60:02d} left"


class _Lines(Console):
    """A console on standard error that leaves the process to end itself when its reader has left."""

    def on_broken_pipe(self) -> None:
        raise OutputClosed("what reads the output has left")


class Human:
    """Lines for people. In a terminal the running stage has one line that is redrawn; in a log a line every 15 s."""

    EVERY_SECONDS = 15.0
    RECENT = 20  # units of work that the rate is taken from

    def __init__(self) -> None:
        self.console: Console = _Lines(stderr=True, highlight=False, soft_wrap=True)
        self.live: Live | None = None
        self.last = 0.0
        self.what = ""
        self.recent: deque[tuple[float, int]] = deque(maxlen=self.RECENT)

    def start(self, stage: str, kind: str) -> None:
        self.last = time.monotonic()
        self.what = ""
        self._print((stage, "bold"), (f" ({kind})", "dim"))
        if self.console.is_terminal:
            self.live = Live(Text(""), console=self.console, transient=True, refresh_per_second=4)
            self.live.start()

    def cached(self, stage: str, kind: str) -> None:
        self._close()
        self._print((stage, "bold"), (f" ({kind})", "dim"), " finished before, not done again")

    def event(self, event: dict[str, Any]) -> None:
        if event["event"] == "log":
            self._print(f"  {event['message']}")
        elif event["event"] == "alarm":
            self._print((f"  ALARM {event['name']}: {event['message']}", "bold yellow"))
        elif event["event"] == "progress":
            self._progress(event)

    def _progress(self, event: dict[str, Any]) -> None:
        now = time.monotonic()
        if event["done"] == 1 or event["what"] != self.what:  # what earlier runs did says nothing about this one's rate
            self.what = event["what"]
            self.recent.clear()
        self.recent.append((now, event["done"]))  # the first one alone says nothing: it holds the loading of a model
        begun, before = self.recent[0]
        fresh = event["done"] - before
        rest = rate_and_rest(fresh, fresh + event["total"] - event["done"], now - begun)
        parts = [f"{event['done']}/{event['total']} {event['what']}", rest, event["note"]]
        line = "  " + "  ".join(part for part in parts if part)
        if self.live is not None:
            self.live.update(Text(printable(line), style="dim"))
        elif now - self.last >= self.EVERY_SECONDS:
            self.last = now
            self._print(line)

    def done(self, stage: str, seconds: float) -> None:
        self._close()
        self._print("  ", ("done", "green"), f" in {seconds:.1f} s")

    def note(self, message: str) -> None:
        self._close()
        self._print(f"  {message}")

    def _print(self, *parts: str | tuple[str, str]) -> None:
        """One line of texts, some with a style; none is read as markup."""
        styled = [(part, "") if isinstance(part, str) else part for part in parts]
        self.console.print(Text.assemble(*((printable(text), style) for text, style in styled)))

    def _close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None


class Watched:
    """A display whose reader may leave, as `tee` does at a Ctrl-C: nothing is shown from then on. `lost` says why;
    `gone` is called once, and can let the work end in good order."""

    def __init__(self, display: Display) -> None:
        self.display = display
        self.lost: TogiError | None = None
        self.gone: Callable[[], None] = lambda: None

    def _show(self, show: Callable[[], None]) -> None:
        if self.lost is not None:
            return
        try:
            show()
        except (TogiError, OSError) as error:
            self.lost = error if isinstance(error, TogiError) else OutputClosed(f"nothing can be shown: {error}")
            self.gone()

    def start(self, stage: str, kind: str) -> None:
        self._show(lambda: self.display.start(stage, kind))

    def cached(self, stage: str, kind: str) -> None:
        self._show(lambda: self.display.cached(stage, kind))

    def event(self, event: dict[str, Any]) -> None:
        self._show(lambda: self.display.event(event))

    def done(self, stage: str, seconds: float) -> None:
        self._show(lambda: self.display.done(stage, seconds))

    def note(self, message: str) -> None:
        self._show(lambda: self.display.note(message))


class JsonLines:
    """Every event as one JSON line on standard output."""

    def _line(self, **value: Any) -> None:
        say(json_text(value))

    def start(self, stage: str, kind: str) -> None:
        self._line(event="start", stage=stage, type=kind)

    def cached(self, stage: str, kind: str) -> None:
        self._line(event="cached", stage=stage, type=kind)

    def event(self, event: dict[str, Any]) -> None:
        if event["event"] not in ("done",):
            self._line(**event)

    def done(self, stage: str, seconds: float) -> None:
        self._line(event="done", stage=stage, seconds=round(seconds, 3))

    def note(self, message: str) -> None:
        self._line(event="note", message=message)
