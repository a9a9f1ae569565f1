"""Shows how far an inversion is."""

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from flowprior.argument_types import check_types
from flowprior.checks import check_integer
from flowprior.inversion.solving import Observer, Run
from flowprior.progress import SweepProgress

LONG = 2.0
"""Seconds after which an inversion shows its progress on a terminal unasked."""


class Progress:
    """Iterations, mean loss (or misfit) and time left, on stderr: an observer of `solve`.

    A bar on a terminal; elsewhere a line after 2 seconds, and then every 30.

    Args:
        iterations: their maximum number, as in the call that it observes.
        after: seconds for which nothing is shown, so that what is short stays quiet.

    Raises:
        ValueError: iterations is no whole number of at least 0.
    """

    def __init__(self, iterations: int, after: float = 0.0) -> None:
        check_types(Progress.__init__, locals())
        check_integer("iterations", iterations, least=0)
        self.iterations, self.after = iterations, after
        self._since: float | None = None
        self._bar: SweepProgress | None = None
        self._open = ExitStack()

    def __call__(self, iteration: int, run: Run) -> None:
        """Show where the run is; the first call starts the clock."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since < self.after:
            return
        first = self._bar is None
        if first:
            self._bar = self._open.enter_context(self._started(iteration))
        self._bar.start(_text(run))
        if not first:
            self._bar.advance(1)

    def close(self) -> None:
        """Take the bar away; `solve` does so at the end, also after an error."""
        self._open.close()
        self._bar = self._since = None

    def _started(self, iteration: int) -> SweepProgress:
        from rich.console import Console

        return SweepProgress(self.iterations, iteration, Console(stderr=True), "iteration")


def with_progress(
    observers: Sequence[Observer], iterations: int, wanted: bool | None
) -> Sequence[Observer]:
    """The observers, and one that shows progress if it is wanted; None: on a terminal, if long."""
    if not isinstance(observers, Sequence):
        return observers
    if wanted is None:
        shown = any(isinstance(observer, Progress) for observer in observers)
        wanted = not shown and sys.stderr is not None and sys.stderr.isatty()
        return [*observers, Progress(iterations, after=LONG)] if wanted else observers
    return [*observers, Progress(iterations)] if wanted else observers


def _text(run: Run) -> str:
    """Mean over the finite rows; empty without a value, as of data whose noise is not known."""
    name = next((name for name in ("loss", "misfit") if name in run.values), None)
    if name is None:
        return ""
    values = run.values[name][run.finite]
    return f"{name} {values.mean():.4g}" if len(values) else "no finite row"
