"""Shows how far an inversion is."""

from contextlib import ExitStack

from flowprior.checks import check_integer
from flowprior.inversion.solving import Run
from flowprior.progress import SweepProgress


class Progress:
    """Iterations, mean loss (or misfit) and time left, on stderr: an observer of `solve`.

    A bar on a terminal; elsewhere a line after 2 seconds, and then every 30.

    Args:
        iterations: their maximum number, as in the call that it observes.

    Raises:
        ValueError: it is no whole number of at least 0.
    """

    def __init__(self, iterations: int) -> None:
        check_integer("iterations", iterations, least=0)
        self.iterations = iterations
        self._bar: SweepProgress | None = None
        self._open = ExitStack()

    def __call__(self, iteration: int, run: Run) -> None:
        """Show where the run is; the first call starts the clock."""
        first = self._bar is None
        if first:
            self._bar = self._open.enter_context(self._started(iteration))
        self._bar.start(_text(run))
        if not first:
            self._bar.advance(1)

    def close(self) -> None:
        """Take the bar away; `solve` does so at the end, also after an error."""
        self._open.close()
        self._bar = None

    def _started(self, iteration: int) -> SweepProgress:
        from rich.console import Console

        return SweepProgress(self.iterations, iteration, Console(stderr=True), "iteration")


def _text(run: Run) -> str:
    """Mean over the finite rows; empty without a value, as of data whose noise is not known."""
    name = next((name for name in ("loss", "misfit") if name in run.values), None)
    if name is None:
        return ""
    values = run.values[name][run.finite]
    return f"{name} {values.mean():.4g}" if len(values) else "no finite row"
