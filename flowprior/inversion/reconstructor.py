"""Reconstructors of deepinv as solvers."""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowprior.argument_types import check_fields
from flowprior.inversion.images import ImageRun, row_seed
from flowprior.inversion.problem import Problem
from flowprior.inversion.solving import Solver


@dataclass(frozen=True)
class Reconstructor(Solver):
    """A reconstructor of deepinv, such as `deepinv.models.ArtifactRemoval`.

    It is called as `model(y, physics)`, one image at a time and with a seed for each, because
    stopping rules and random numbers would mix the images of a batch. It takes one iteration.

    Args:
        model: called with data (1, ...) and the deepinv physics; it gives an image (1, C, H, W).
            Each image gets a fresh copy, so that the model may change itself.

    Raises:
        ValueError: the model is no module; later, if its image has another shape, or if the
            operator has parameters of its own for each image.
    """

    model: nn.Module
    differentiates: ClassVar[bool] = False
    uses_start: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.model, nn.Module):
            raise ValueError(f"model must be a torch module, got {self.model!r}")

    def begin(self, problem: Problem) -> "ReconstructorRun":
        """Start from the given images or grey ones; the first iteration reconstructs."""
        if problem.forward.images is not None:
            raise ValueError("Reconstructor needs a physics that is the same for all images")
        return ReconstructorRun(self.model, problem)


class ReconstructorRun(ImageRun):
    """The batch of a `Reconstructor`."""

    def __init__(self, model: nn.Module, problem: Problem) -> None:
        super().__init__(problem)
        self.model = model
        self.done = False

    @property
    def active(self) -> Tensor:
        """All finite rows, until they have been reconstructed."""
        return self.finite & (not self.done)

    def step(self) -> None:
        """Reconstruct every image by itself."""
        self.x = torch.cat([self._reconstructed(row) for row in range(len(self.x))])
        self.done = True
        self.measure()

    def _reconstructed(self, row: int) -> Tensor:
        problem = self.problem
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(row_seed(problem, row))
            model = copy.deepcopy(self.model)
            y = _in_precision_of(model, problem.y[row : row + 1])
            x = model(y, problem.forward.physics)
        if x.shape[1:] != self.x.shape[1:]:
            raise ValueError(
                f"model must give images {tuple(self.x.shape[1:])}, got {tuple(x.shape[1:])}"
            )
        return x.detach().to(self.x)

    def state_dict(self) -> dict[str, Any]:
        """Images, values and whether they are done."""
        return {**super().state_dict(), "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state."""
        super().load_state_dict(state)
        self.done = state["done"]


def _in_precision_of(model: nn.Module, y: Tensor) -> Tensor:
    """Data in the precision of a network's parameters, if it has any."""
    known = [p.dtype for p in model.parameters() if p.is_floating_point()]
    if not known or y.real.dtype in known:
        return y
    return y.to(known[0].to_complex() if y.is_complex() else known[0])
