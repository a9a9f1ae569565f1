"""How often operators are applied: what a method costs where they are PDE solves."""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor

_COUNTING = Lock()


@dataclass(eq=False)
class Calls:
    """How often an operator was applied to each image, (B,) int64 each.

    Calls by which a solver finds out how many rows it may compute at once are not counted, nor what
    all images share.

    Args:
        forward: applications of A.
        adjoint: applications of the adjoint of its derivative, in gradients and by `A_adjoint`.
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

    def copy(self) -> "Calls":
        """The counts as they are now."""
        return Calls(self.forward.clone(), self.adjoint.clone())

    def __call__(self, iteration: int, run: object) -> None:
        """Do nothing: as an observer they are kept in checkpoints."""

    def state_dict(self) -> dict[str, Tensor]:
        """The counts."""
        return {"forward": self.forward, "adjoint": self.adjoint}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from such counts."""
        self.forward.copy_(state["forward"])
        self.adjoint.copy_(state["adjoint"])


class CountedOperator:
    """A copy of an operator, whose methods A and A_adjoint are counted while there are `rows`.

    What one of them calls of the other is part of it, and not counted.

    Attributes:
        physics: the copy; what has neither method is given as it is.
        rows: numbers of the images (k,) that calls are for; None counts nothing.

    Args:
        physics: the operator, which stays as it is.
        calls: to count on.
    """

    def __init__(self, physics: Any, calls: Calls) -> None:
        self.calls = calls
        self.rows: Tensor | None = None
        self.physics = copy(physics) if hasattr(physics, "A") else physics
        self._inside = False
        for kind, name in (("forward", "A"), ("adjoint", "A_adjoint")):
            if self.physics is not physics and hasattr(physics, name):
                setattr(self.physics, name, self._counted(kind, getattr(self.physics, name)))

    def _counted(self, kind: str, method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def called(*args: Any, **kwargs: Any) -> Tensor:
            if self._inside:
                return method(*args, **kwargs)
            if self.rows is not None:
                self.calls.add(kind, self.rows, 1)
            self._inside = True
            try:
                return method(*args, **kwargs)
            finally:
                self._inside = False

        return called
