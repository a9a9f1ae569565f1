"""How often operators are applied: what a method costs where they are PDE solves."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from flowprior.checks import check_integer

_COUNTING = Lock()


@dataclass(eq=False)
class Calls:
    """How often an operator was applied to each image, (B,) int64 each.

    Not among them are calls that are made once for all images, though their time counts, and those
    of a trial that finds out how many rows may be computed at once.

    Args:
        forward: applications of A.
        adjoint: applications of the adjoint of its derivative, as in gradients.
    """

    forward: Tensor
    adjoint: Tensor

    @classmethod
    def none(cls, images: int, device: torch.device | str = "cpu") -> "Calls":
        """None so far, of so many images."""
        return cls(*(torch.zeros(images, dtype=torch.int64, device=device) for _ in range(2)))

    def add(self, kind: str, rows: Tensor, times: Tensor | int) -> None:
        """Count more of them, "forward" or "adjoint", for the images `rows` (k,) `times` (k,)."""
        counts = getattr(self, kind)
        with _COUNTING:  # several rows are computed at once, on threads
            counts.index_add_(0, rows, torch.as_tensor(times).to(counts).expand(len(rows)))

    def __add__(self, other: "Calls") -> "Calls":
        return Calls(self.forward + other.forward, self.adjoint + other.adjoint)

    def __call__(self, iteration: int, run: object) -> None:
        """Do nothing: as an observer they are kept in checkpoints."""

    def restart(self) -> None:
        """Count from 0 again."""
        self.forward.zero_()
        self.adjoint.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """The counts."""
        return {"forward": self.forward, "adjoint": self.adjoint}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from such counts."""
        self.forward.copy_(state["forward"])
        self.adjoint.copy_(state["adjoint"])


_counted: ContextVar[tuple[Calls, Tensor] | None] = ContextVar("counted", default=None)


@contextmanager
def counting(calls: Calls | None, rows: Tensor) -> Iterator[None]:
    """Within it `count_calls` counts for the images `rows` (k,); without `calls` as around it."""
    with _set(_counted.get() if calls is None else (calls, rows)):
        yield


@contextmanager
def uncounted() -> Iterator[None]:
    """Within it `count_calls` does nothing."""
    with _set(None):
        yield


@contextmanager
def _set(value: tuple[Calls, Tensor] | None) -> Iterator[None]:
    token = _counted.set(value)
    try:
        yield
    finally:
        _counted.reset(token)


def count_calls(forward: int = 0, adjoint: int = 0) -> None:
    """Say how often the operator is applied while a condition is made of data (`Condition.of`).

    They are added to those of each image whose data these are (`Estimate.calls`). Elsewhere, and on
    a thread that was started meanwhile, it does nothing.

    Args:
        forward: applications of A.
        adjoint: applications of its adjoint.

    Raises:
        ValueError: names the argument that is no number of times.
    """
    check_integer("forward", forward, least=0)
    check_integer("adjoint", adjoint, least=0)
    if (found := _counted.get()) is not None:
        calls, rows = found
        calls.add("forward", rows, forward)
        calls.add("adjoint", rows, adjoint)
