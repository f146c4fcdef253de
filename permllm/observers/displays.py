"""The two ways to show progress on standard error: a live area, or plain lines."""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

import attrs
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from permllm.observers.stages import Stage
from permllm.printing import plain
from permllm.units import clock, duration, percent

SECONDS_BETWEEN_LINES = 10.0
"""Within a stage, plain lines come no more often than this."""

WORTH_AN_END = 1.0
"""A stage that took fewer seconds gets no line at its end."""


class Display(Protocol):
    """Shows a stage in progress, and lines that stay."""

    def line(self, text: str, style: str = "") -> None:
        """Show a line that stays."""

    def stage(self, stage: Stage | None, note: str = "") -> None:
        """Show how far a stage is, with a note such as the loss; None: nothing goes on."""

    def close(self) -> None:
        """Stop showing what goes on. Anything shown later opens the display again."""


def best_display() -> Display:
    """A live area on a terminal, plain lines elsewhere."""
    console = Console(stderr=True)
    # Rich takes FORCE_COLOR for a terminal, which a log file is not.
    live = console.is_terminal and not console.is_dumb_terminal and sys.stderr.isatty()
    return LiveDisplay(console) if live else LineDisplay()


def _to_stderr(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        # Nobody reads it any more; the run is worth more than its progress lines.
        pass


@attrs.define(eq=False)
class LineDisplay:
    """Plain lines with the time of day, for logs."""

    write: Callable[[str], None] = _to_stderr
    now: Callable[[], float] = time.monotonic
    current: Stage | None = None
    last: float = 0.0
    ended: bool = True

    def line(self, text: str, style: str = "") -> None:
        """Write a line; styles are for terminals."""
        self.write(f"{datetime.now():%H:%M:%S} {plain(text)}\n")

    def stage(self, stage: Stage | None, note: str = "") -> None:
        """Write a line where a stage begins and ends, and now and then between."""
        now = self.now()
        if stage is not self.current:
            self._end(now)
            self.current, self.last, self.ended = stage, now, stage is None
            if stage:
                self.line(f"  {stage.name}")
        if stage is None:
            return
        if stage.finished:
            self._end(now)
        elif now - self.last >= SECONDS_BETWEEN_LINES:
            self.last = now
            self.line(f"  {stage.name}: {self._how_far(stage, now)}{note and f' ({note})'}")

    def close(self) -> None:
        """Forget the stage: it did not end."""
        self.current, self.ended = None, True

    def _end(self, now: float) -> None:
        """Say once how long the stage took, where it was long."""
        stage = self.current
        if stage and not self.ended and now - stage.began >= WORTH_AN_END:
            self.line(f"  {stage.name}: done in {duration(now - stage.began)}")
        self.ended = True

    @staticmethod
    def _how_far(stage: Stage, now: float) -> str:
        if not stage.measurable:
            return f"{duration(now - stage.began)} so far"
        left = stage.left(now)
        rest = "" if left is None else f", about {clock(left)} left"
        return f"{percent(stage.share, 0)}, {stage.done} of {stage.total}{rest}"


@attrs.define(eq=False)
class LiveDisplay:
    """Lines that stay, and below them one or two that change."""

    console: Console
    now: Callable[[], float] = time.monotonic
    current: Stage | None = None
    note: str = ""
    live: Live | None = None

    def line(self, text: str, style: str = "") -> None:
        """Print a line above the live area; only warnings and errors may wrap."""
        if style in ("yellow", "red"):
            self.console.print(Text(plain(text), style=style))
        else:
            self.console.print(
                Text(plain(text), style=style), no_wrap=True, overflow="ellipsis", crop=True
            )

    def stage(self, stage: Stage | None, note: str = "") -> None:
        """Show a stage from now on; the area draws itself anew while nobody calls."""
        self.current, self.note = stage, note
        if stage and not self.live:
            self.live = Live(
                console=self.console,
                get_renderable=self.render,
                refresh_per_second=4,
                transient=True,
            )
            self.live.start()
            # A terminal without a cursor is what an unforeseen end would leave.
            atexit.register(self.close)

    def close(self) -> None:
        """Take the live area away and give the cursor back."""
        if self.live:
            self.live.stop()
            self.live = None
            atexit.unregister(self.close)
        self.current = None

    def render(self) -> RenderableType:
        """The live area: stage, bar, units and times, and under it the note."""
        stage, now = self.current, self.now()
        if stage is None:
            return Text()
        grid = Table.grid(expand=True, padding=(0, 2, 0, 0))
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for _ in range(3):
            grid.add_column(no_wrap=True)
        measured = stage.measurable
        bar = ProgressBar(
            total=stage.total,
            completed=stage.done,
            width=max(8, min(30, self.console.width // 5)),
            pulse=not measured,
            animation_time=now,
        )
        count = f"{stage.done}/{stage.total}" if measured else ""
        grid.add_row(
            Text(f"  {plain(stage.name)}"), bar, Text(count), Text(self._times(stage, now))
        )
        if not self.note:
            return grid
        note = Text(f"  {plain(self.note)}", style="dim", no_wrap=True, overflow="ellipsis")
        return Group(grid, note)

    @staticmethod
    def _times(stage: Stage, now: float) -> str:
        left = stage.left(now)
        passed = clock(now - stage.began)
        return passed if left is None else f"{passed}, {clock(left)} left"
