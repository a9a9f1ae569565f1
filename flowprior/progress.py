"""Progress of a sweep: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console

_FIRST_LINE, _NEXT_LINES = 2.0, 30.0


class Meter:
    """Rate and remaining time, from the images done in this run alone.

    Args:
        total: number of images in the sweep.
        done: those done in earlier runs.
        clock: seconds.
    """

    def __init__(self, total: int, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.done = done
        self.underway = 0.0
        self._before = done
        self._clock = clock
        self._start = self._latest = clock()

    def advance(self, images: int) -> None:
        """Count images that are finished."""
        self.done += images
        self._latest = self._clock()

    def report(self, images: float) -> None:
        """Say how many images' worth of work is done in those that are not finished."""
        self.underway = images
        self._latest = self._clock()

    def text(self) -> str:
        """``12/40 images, 3.1 images/s, 0:00:09 left``; no rate before anything is done."""
        counts = f"{self.done}/{self.total} images"
        elapsed = self._latest - self._start
        worth = min(self.done + self.underway, self.total)
        if worth == self._before or elapsed <= 0:
            return counts
        rate = (worth - self._before) / elapsed
        remaining = (self.total - worth) / rate - (self._clock() - self._latest)
        speed = f"{rate:.3g} images/s" if rate >= 1 else f"{1 / rate:.3g} s/image"
        return f"{counts}, {speed}, {timedelta(seconds=round(max(0, remaining)))} left"


class SweepProgress:
    """Shows a `Meter` while the block runs."""

    def __init__(self, meter: Meter, console: Console) -> None:
        from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
        from rich.table import Column
        from rich.text import Text

        class MeterColumn(ProgressColumn):
            def render(self, task: object) -> Text:
                return Text(meter.text())

        self.meter = meter
        self._console = console
        self._next_line = time.monotonic() + _FIRST_LINE
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            MeterColumn(Column(no_wrap=True)),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=meter.total, completed=meter.done)

    def start(self, what: str) -> None:
        """Name what is being measured now."""
        self._bar.update(self._task, description=what if len(what) <= 18 else what[:17] + "…")

    def advance(self, images: int) -> None:
        """Count images that are finished."""
        self.meter.advance(images)
        self._show()

    def report(self, images: float) -> None:
        """Say how many images' worth of work is done in those that are not finished."""
        self.meter.report(images)
        self._show()

    def _show(self) -> None:
        self._bar.update(self._task, completed=self.meter.done + self.meter.underway)
        now = time.monotonic()
        if self._bar.disable and now >= self._next_line:
            self._console.print(self.meter.text(), highlight=False)
            self._next_line = now + _NEXT_LINES

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
