"""The output of `togi run`: a live line in a terminal, a quiet log elsewhere, JSON lines on demand."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from togi.core.errors import OutputClosed, TogiError
from togi.core.settings import takes
from togi.core.tables import rendered, table
from togi.core.terminal import json_text, printable, say
from togi.stages.table import STAGES


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """The results of a finished run: its id, the path of its report, the command to chat with each model, and what it
    spent on servers. `rows` are those of its before/after table, with the keys of `COLUMNS`."""

    run: str
    report: str
    chats: Mapping[str, str] = field(default_factory=dict)
    rows: Sequence[Sequence[str]] = ()
    spent: Sequence[str] = ()


COLUMNS = ("metric", "before", "after", "difference", "")


class Display(Protocol):
    """Shows stages and their events."""

    def start(self, stage: str, kind: str) -> None: ...
    def cached(self, stage: str, kind: str) -> None: ...
    def event(self, event: dict[str, Any]) -> None: ...
    def done(self, stage: str, seconds: float) -> None: ...
    def note(self, message: str) -> None: ...
    def closing(self, closing: Closing) -> None: ...


class Pace:
    """The speed of the work and the time left. The first unit includes the loading of a model and the second one
    warm-up (kernels compile, memory is allocated), so the clock starts after both and averages the last RECENT
    units."""

    WARM_UP = 2
    RECENT = 20

    def __init__(self) -> None:
        self.what = ""
        self.heard = 0
        self.recent: deque[tuple[float, int]] = deque(maxlen=self.RECENT)

    def take(self, now: float, done: int, what: str) -> None:
        """Records at time `now` (seconds) that `done` units of `what` are done."""
        if done == 1 or what != self.what:  # work of earlier runs must not count for this one's rate
            self.what, self.heard = what, 0
            self.recent.clear()
        self.heard += 1
        if self.heard >= self.WARM_UP:
            self.recent.append((now, done))

    def rate_and_rest(self, total: int) -> str:
        """ "3.1/s, 0:12 left"; empty while nothing is known."""
        if len(self.recent) < 2:
            return ""
        (begun, before), (now, done) = self.recent[0], self.recent[-1]
        return rate_and_rest(done - before, total - before, now - begun)


def rate_and_rest(done: int, total: int, seconds: float) -> str:
    """ "3.1/s, 0:12 left" or "4.2 s each, 1:03 left" for work that took `seconds`; empty while nothing is known."""
    if not done or seconds <= 0:
        return ""
    rate = done / seconds
    pace = f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g} s each"
    return f"{pace}, {clock((total - done) / rate)} left"


def clock(seconds: float) -> str:
    """ "0:07", "12:30", "2:05:00" """
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def first_words(kind: str) -> str:
    """What a stage does before it reports progress."""
    stage = STAGES.get(kind)
    loads = stage is not None and (takes(stage.settings, "model") or takes(stage.settings, "scorer"))
    return "loading model" if loads else "reading records"


class _Lines(Console):
    """A console on standard error that does not end the process when its reader has closed it."""

    def on_broken_pipe(self) -> None:
        raise OutputClosed("the reader of the output has closed it")


class Human:
    """Lines for people. In a terminal the running stage has one line that is redrawn; in a log it writes one every
    15 s, and one when all units of a kind are done, if there are metrics."""

    EVERY_SECONDS = 15.0
    BAR, SHORT = 24, 6  # widths of the bar in characters, and where the terminal is too narrow for all words
    AROUND = 8  # characters of the line beside the count, the bar and the words

    def __init__(self) -> None:
        self.console: Console = _Lines(stderr=True, highlight=False, soft_wrap=True)
        self.live: Live | None = None
        self.begun = self.last = 0.0
        self.pace = Pace()
        self.spinner = Spinner("dots")
        self.words = ""
        self.at: dict[str, Any] | None = None  # the last progress event
        self.told: dict[str, Any] | None = None  # the last one that was written to a log

    def start(self, stage: str, kind: str) -> None:
        self.begun = self.last = time.monotonic()
        self.pace, self.at, self.words = Pace(), None, first_words(kind)
        self._print((stage, "bold"), (f" ({kind})", "dim"))
        if self.console.is_terminal:
            live = Live(console=self.console, transient=True, refresh_per_second=8, get_renderable=self._line)
            self.live = live
            live.start(refresh=True)

    def cached(self, stage: str, kind: str) -> None:
        self._close()
        self._print((stage, "bold"), (f" ({kind})", "dim"), " finished earlier, not repeated")

    def event(self, event: dict[str, Any]) -> None:
        if event["event"] != "progress" or (self.at is not None and event["what"] != self.at["what"]):
            self._tell_end()
        if event["event"] == "log":
            self._print(f"  {event['message']}")
        elif event["event"] == "alarm":
            self._print((f"  ALARM {event['name']}: {event['message']}", "bold yellow"))
        elif event["event"] == "progress":
            self._progress(event)

    def _progress(self, event: dict[str, Any]) -> None:
        now = time.monotonic()
        self.pace.take(now, event["done"], event["what"])
        self.at = event
        if self.live is None and now - self.last >= self.EVERY_SECONDS:
            self.last = now
            self._tell(event)

    def _tell(self, event: dict[str, Any]) -> None:
        self.told = event
        self._print("  " + "  ".join(part for part in self._parts(event) if part))

    def _tell_end(self) -> None:
        """Writes to a log how far the work came, if it is done, has metrics, and that was not written yet."""
        at = self.at
        if self.live is None and at is not None and at is not self.told and at["done"] == at["total"] and at["note"]:
            self._tell(at)

    def _parts(self, event: dict[str, Any]) -> tuple[str, str, str]:
        rest = self.pace.rate_and_rest(event["total"])
        return f"{event['done']}/{event['total']} {event['what']}", rest, event["note"]

    def _line(self) -> RenderableType:
        """The line that is redrawn: a spinner and the progress."""
        spent = clock(time.monotonic() - self.begun)
        row = Table.grid(padding=(0, 1))
        if self.at is None:
            row.add_row(" ", self.spinner, Text(self.words, "dim"), Text(spent, "dim"))
            return row
        count, rest, note = (printable(part) for part in self._parts(self.at))
        told = "  ".join(part for part in (rest or spent, note) if part)
        room = self.console.width - self.AROUND - cell_len(count) - cell_len(told)
        width = min(self.BAR, max(self.SHORT, room))
        bar = ProgressBar(total=max(1, self.at["total"]), completed=self.at["done"], width=width)
        words = Text(told, "dim", no_wrap=True, overflow="ellipsis")
        row.add_row(" ", self.spinner, Text(count, no_wrap=True), bar, words)
        return row

    def done(self, stage: str, seconds: float) -> None:
        self._tell_end()
        self._close()
        self._print("  ", ("done", "green"), f" in {seconds:.1f} s")

    def note(self, message: str) -> None:
        self._close()
        self._print(f"  {message}")

    def closing(self, closing: Closing) -> None:
        self._close()
        lines = [
            f"run:    {closing.run}",
            f"report: {closing.report}",
            *(f"chat:   {command}" for command in closing.chats.values()),
            *(f"spent:  {words}" for words in closing.spent),
        ]
        compared = table(COLUMNS, closing.rows, right=(1, 2, 3))
        if self.console.is_terminal:
            links = Text("\n".join(map(printable, lines)), overflow="fold")
            parts = [compared, links] if closing.rows else [links]
            self.console.print(Panel(Group(*parts), title="done", expand=False, border_style="green"), soft_wrap=False)
            return
        if closing.rows:
            for line in rendered(compared, colour=False).splitlines():
                self._print(f"  {line}")
        for line in lines:
            self._print(f"  {line}")

    def _print(self, *parts: str | tuple[str, str]) -> None:
        """Prints one line of texts, some with a style; none is parsed as markup."""
        styled = [(part, "") if isinstance(part, str) else part for part in parts]
        self.console.print(Text.assemble(*((printable(text), style) for text, style in styled)))

    def _close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None


class Watched:
    """A display whose reader may close the output, as `tee` does at a Ctrl-C: it shows nothing from then on. `lost` is
    the reason; `gone` is called once, and can let the work be saved and end.

    Messages of a signal handler during a write wait until the write ends, because streams are not reentrant.
    """

    def __init__(self, display: Display) -> None:
        self.display = display
        self._showing = False
        self._waiting: list[Callable[[], None]] = []
        self.lost: TogiError | None = None
        self.gone: Callable[[], None] = lambda: None

    def _show(self, show: Callable[[], None]) -> None:
        if self.lost is not None:
            return
        self._waiting.append(show)
        if self._showing:
            return
        self._showing = True
        try:
            while self._waiting:
                self._waiting.pop(0)()
        except (TogiError, OSError) as error:
            self.lost = error if isinstance(error, TogiError) else OutputClosed(f"nothing can be shown: {error}")
            self.gone()
        finally:
            self._showing = False

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

    def closing(self, closing: Closing) -> None:
        self._show(lambda: self.display.closing(closing))


class Silent:
    """Shows nothing."""

    def start(self, stage: str, kind: str) -> None: ...
    def cached(self, stage: str, kind: str) -> None: ...
    def event(self, event: dict[str, Any]) -> None: ...
    def done(self, stage: str, seconds: float) -> None: ...
    def note(self, message: str) -> None: ...
    def closing(self, closing: Closing) -> None: ...


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

    def closing(self, closing: Closing) -> None:
        rows = [
            dict(zip(("metric", "before", "after", "difference", "verdict"), row, strict=True)) for row in closing.rows
        ]
        spent, chats = list(closing.spent), dict(closing.chats)
        self._line(event="end", run=closing.run, report=closing.report, chat=chats, table=rows, spent=spent)
