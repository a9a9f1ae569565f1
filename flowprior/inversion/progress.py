"""A sign of life of an inversion."""

from flowprior.inversion.solving import Run
from flowprior.progress import SweepProgress


class Progress:
    """Iterations, mean loss (or misfit) and time left, on stderr: an observer of `solve`.

    A bar on a terminal; elsewhere a line after 2 seconds, and then every 30.

    Args:
        iterations: their maximum number, as in the call that it observes.
    """

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations
        self._bar: SweepProgress | None = None

    def __call__(self, iteration: int, run: Run) -> None:
        """Show where the run is; the first call starts the clock."""
        name = "loss" if "loss" in run.values else "misfit"
        values = run.values[name][run.finite]
        text = f"{name} {values.mean():.4g}" if len(values) else "no finite row"
        if self._bar is None:
            self._bar = self._started(iteration)
            self._bar.start(text)
        else:
            self._bar.start(text)
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
