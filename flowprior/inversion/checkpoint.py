"""The state of one batch on disk, so that a killed inversion goes on where it was."""

import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flowprior.io import atomic_path

if TYPE_CHECKING:
    from flowprior.inversion.solving import Observer, Run


class Checkpoint:
    """A file with the state of a run and of its observers, replaced now and then.

    Args:
        path: the file; its folder is made. It is only fit for the same solver and problem.
        seconds: time between two writes.
    """

    def __init__(self, path: str | Path, seconds: float = 60.0) -> None:
        self.path = Path(path)
        self.seconds = seconds
        self._written = time.monotonic()

    def restore(self, run: "Run", observers: Sequence["Observer"]) -> int:
        """Put run and observers where they were; the last iteration done, -1 without a file.

        Raises:
            ValueError: the file is damaged, or of another problem.
        """
        if not self.path.is_file():
            return -1
        try:
            kept = torch.load(self.path, map_location=run.x.device, weights_only=True)
            run.load_state_dict(kept["run"])
            for observer, state in zip(_stateful(observers), kept["observers"], strict=True):
                observer.load_state_dict(state)
            return kept["iteration"]
        except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"checkpoint {self.path} cannot be used: {reason}; remove it to start anew"
            ) from error

    def note(self, iteration: int, run: "Run", observers: Sequence["Observer"]) -> None:
        """Write the file if it is time to."""
        if time.monotonic() - self._written >= self.seconds:
            self.write(iteration, run, observers)

    def write(self, iteration: int, run: "Run", observers: Sequence["Observer"]) -> None:
        """Write the file, all of it or nothing; raises OSError if it cannot be written."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "iteration": iteration,
            "run": run.state_dict(),
            "observers": [observer.state_dict() for observer in _stateful(observers)],
        }
        with atomic_path(self.path) as temporary:
            torch.save(state, temporary)
        self._written = time.monotonic()

    def remove(self) -> None:
        """Remove the file, once what it was for is done."""
        self.path.unlink(missing_ok=True)


def _stateful(observers: Sequence["Observer"]) -> list[Any]:
    return [observer for observer in observers if hasattr(observer, "state_dict")]
