"""The state of one batch on disk, so that a killed inversion resumes where it was."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flowprior.argument_types import check_types
from flowprior.identity import identity
from flowprior.io import atomic_path

if TYPE_CHECKING:
    from flowprior.inversion.problem import Problem
    from flowprior.inversion.solving import Observer, Run, Solver


class Checkpoint:
    """A file with the state of a run and of its observers, replaced every `seconds`.

    Args:
        path: the file; its folder is made.
        seconds: time between two writes.
    """

    def __init__(self, path: str | Path, seconds: float = 60.0) -> None:
        check_types(Checkpoint.__init__, locals())
        self.path = Path(path)
        self.seconds = seconds
        self._written = time.monotonic()
        self._owner = ""

    def belongs_to(self, solver: "Solver", problem: "Problem") -> None:
        """Say what will be run: `restore` refuses a file of anything else."""
        names = {field.name for field in fields(problem)} - {"condition_cost"}
        known = {name: getattr(problem, name) for name in sorted(names)}
        known["forward"] = problem.forward.physics
        parts = identity({"solver": solver, **known, "indices": list(problem.indices)})
        self._owner = hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def restore(self, run: "Run", observers: Sequence["Observer"]) -> int:
        """Put run and observers where they were; returns the last iteration, -1 without a file.

        Raises:
            ValueError: the file is damaged, or of another problem, solver or observers.
        """
        if not self.path.exists():
            return -1
        kept = self._read(run.x.device)
        stateful = _stateful(observers)
        if kept["owner"] != self._owner or len(kept["observers"]) != len(stateful):
            raise self._unusable("it is of another problem, solver or observers")
        run.load_state_dict(kept["run"])
        for observer, state in zip(stateful, kept["observers"], strict=True):
            observer.load_state_dict(state)
        return kept["iteration"]

    def _read(self, device: torch.device) -> dict[str, Any]:
        try:
            kept = torch.load(self.path, map_location=device, weights_only=True)
        except Exception as error:  # what is no pickle may raise anything
            raise self._unusable("it is damaged or no checkpoint") from error
        names = {"owner", "iteration", "run", "observers"}
        if not isinstance(kept, dict) or set(kept) != names:
            raise self._unusable("it is no checkpoint of an inversion")
        return kept

    def _unusable(self, reason: str) -> ValueError:
        return ValueError(f"checkpoint {self.path}: {reason}; remove it to start anew")

    def note(self, iteration: int, run: "Run", observers: Sequence["Observer"]) -> None:
        """Write the file if `seconds` have passed."""
        if time.monotonic() - self._written >= self.seconds:
            self.write(iteration, run, observers)

    def write(self, iteration: int, run: "Run", observers: Sequence["Observer"]) -> None:
        """Replace the file as a whole; raises OSError if it cannot be written."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "owner": self._owner,
            "iteration": iteration,
            "run": run.state_dict(),
            "observers": [observer.state_dict() for observer in _stateful(observers)],
        }
        with atomic_path(self.path) as temporary:
            torch.save(state, temporary)
        self._written = time.monotonic()

    def remove(self) -> None:
        """Remove the file, once the run is done."""
        self.path.unlink(missing_ok=True)


def _stateful(observers: Sequence["Observer"]) -> list[Any]:
    return [observer for observer in observers if hasattr(observer, "state_dict")]
