"""Shows how far an inversion is."""

from flowprior.inversion.checks import check_whole
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
        check_whole("iterations", iterations, 0)
        self.iterations = iterations
        self._bar: SweepProgress | None = None

    def __call__(self, iteration: int, run: Run) -> None:
        """Show where the run is; the first call starts the clock."""
        begins = self._bar is None
        if begins:
            self._bar = self._started(iteration)
        self._bar.start(_value(run))
        if not begins:
            self._bar.advance(1)

    def close(self) -> None:
        """Take the bar away; `solve` does so at the end, also after an error."""
        if self._bar is not None:
            self._bar.__exit__()
        self._bar = None

    def _started(self, iteration: int) -> SweepProgress:
        from rich.console import Console

        console = Console(stderr=True)
        return SweepProgress(self.iterations, iteration, console, "iteration").__enter__()


def _value(run: Run) -> str:
    """Mean loss of the finite rows, or misfit; nothing where the noise is not known."""
    for name in ("loss", "misfit"):
        if name in run.values:
            values = run.values[name][run.finite]
            return f"{name} {values.mean():.4g}" if len(values) else "no finite row"
    return ""
