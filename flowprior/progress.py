"""Progress of a sweep: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console

_FIRST_LINE, _NEXT_LINES = 2.0, 30.0
_DAY = 86400.0


class SweepProgress:
    """Counts, rate and remaining time of images while the block runs.

    Args:
        total: number of images in the sweep.
        done: those done in earlier runs, which the rate does not count.
        console: where to show it.
    """

    def __init__(self, total: int, done: int, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self._console = console
        self._next_line = time.monotonic() + _FIRST_LINE
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("images{task.fields[rate]},"),
            Remaining(),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
            speed_estimate_period=_DAY,  # a batch may take longer than a shorter one
        )
        self._task = self._bar.add_task("", total=total, completed=done, rate="")
        self._bar.advance(self._task, 0)  # the clock of the first batch starts here

    def start(self, what: str) -> None:
        """Name what is being measured now."""
        self._bar.update(self._task, description=what if len(what) <= 18 else f"{what[:17]}…")

    def advance(self, images: int) -> None:
        """Count images that are finished."""
        self._bar.advance(self._task, images)
        self._bar.update(self._task, rate=self._rate())
        now = time.monotonic()
        if self._bar.disable and now >= self._next_line:
            self._console.print(self.text(), highlight=False)
            self._next_line = now + _NEXT_LINES

    def text(self) -> str:
        """``12/40 images, 3.1 images/s, 0:00:09 left``; no rate before anything is done."""
        task = self._bar.tasks[0]
        counts = f"{task.completed:.0f}/{task.total:.0f} images{self._rate()}"
        left = task.time_remaining
        return counts if left is None else f"{counts}, {timedelta(seconds=round(left))} left"

    def _rate(self) -> str:
        speed = self._bar.tasks[0].speed
        if not speed:
            return ""
        return f", {speed:.3g} images/s" if speed >= 1 else f", {1 / speed:.3g} s/image"

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
