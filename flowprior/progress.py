"""Progress of something long: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console

_FIRST_LINE, _NEXT_LINES = 2.0, 30.0
_DAY = 86400.0
_LABEL, _BAR = 24, 10  # characters, of 80


class SweepProgress:
    """Counts, rate and remaining time of images, or of others, while the block runs.

    Args:
        total: their number in all.
        done: those done in earlier runs, which the rate does not count.
        console: where to show it.
        unit: what is counted.
    """

    def __init__(self, total: int, done: int, console: Console, unit: str = "image") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self._console, self._unit, self._done = console, unit, done
        self._next_line = time.monotonic() + _FIRST_LINE
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=_BAR),
            MofNCompleteColumn(),
            TextColumn(f"{unit}s{{task.fields[rate]}},"),
            Remaining(),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
            speed_estimate_period=_DAY,  # a batch may take longer than a shorter one
        )
        self._task = self._bar.add_task("", total=total, completed=done, rate="")
        (self._state,) = self._bar.tasks
        self._bar.advance(self._task, 0)  # the clock of the first batch starts here

    def start(self, what: str) -> None:
        """Say what is being done now; of a long text, its end."""
        short = what if len(what) <= _LABEL else f"…{what[1 - _LABEL :]}"
        self._bar.update(self._task, description=short)

    def advance(self, count: int) -> None:
        """Count what is finished."""
        self._state.completed = self._done
        self._done += count
        self._bar.advance(self._task, count)
        self._bar.update(self._task, rate=self._rate())
        self._tell()

    def show_part(self, part: float) -> None:
        """Show that this many more are done, which may be a fraction; the rate does not count them.

        What is left of a batch after its last iteration may take longer than these.
        """
        self._state.completed = min(self._done + part, self._state.total)
        self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        if self._bar.disable and now >= self._next_line:
            self._console.print(self.text(), highlight=False)
            self._next_line = now + _NEXT_LINES

    def text(self) -> str:
        """``glow, 12/40 images, 3.1 images/s, 0:00:09 left``; no rate before anything is done."""
        task = self._state
        what = f"{task.description}, " if task.description else ""
        counts = f"{what}{int(task.completed)}/{task.total:.0f} {self._unit}s{self._rate()}"
        left = task.time_remaining
        return counts if left is None else f"{counts}, {timedelta(seconds=round(left))} left"

    @property
    def seconds_left(self) -> float:
        """At the rate so far; 0 before anything is done."""
        return self._state.time_remaining or 0.0

    def _rate(self) -> str:
        speed = self._state.speed
        if not speed:
            return ""
        unit = self._unit
        return f", {speed:.3g} {unit}s/s" if speed >= 1 else f", {1 / speed:.3g} s/{unit}"

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
