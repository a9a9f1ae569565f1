"""What solvers over images share: where they start, what they measure, their random numbers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowprior.inversion.batch_invariant import by_rows
from flowprior.inversion.descent import Values, chosen
from flowprior.inversion.problem import Problem


def first_images(problem: Problem) -> Tensor:
    """Images (B, C, H, W) to start from: the given ones, or grey."""
    if problem.start is not None:
        return problem.start.to(problem.like)
    return problem.like.new_full((len(problem.y), *problem.image_shape), 0.5)


class ImageRun:
    """Base of runs over images: a subclass changes `x` in `step` and calls `measure`.

    Attributes:
        finite: rows whose images have stayed finite, (B,); the others keep the last finite ones.

    Args:
        problem: the batch.
        x: images (B, C, H, W) to start from, in [0, 1]; by default the given ones, or grey.
    """

    z = None
    rows_per_call = 1
    """Images in each call of the operator (`batch_invariant.rows_per_call`)."""

    def __init__(self, problem: Problem, x: Tensor | None = None) -> None:
        self.problem = problem
        self.x = first_images(problem) if x is None else x
        self._kept = self.x.clone()  # a subclass may change `x` in place
        self.finite = self.x.isfinite().flatten(1).all(1)
        self.values: Values = {}
        self.measure()

    @property
    def active(self) -> Tensor:
        """Rows that are finite: they move until the last iteration."""
        return self.finite

    @torch.no_grad()
    def measure(self) -> None:
        """Update the misfit, if the noise is known.

        Rows that are no longer finite go back to their last finite images.
        """
        self.finite = self.finite & self.x.isfinite().flatten(1).all(1)
        self.x = chosen(self.finite, self.x, self._kept)
        self._kept = self.x.clone()
        if self.problem.noise is not None:
            self.values = {"misfit": self._by_rows(self._misfit, self.x)}

    def misfit_gradient(self, x: Tensor) -> Tensor:
        """Gradient of the misfit at images x (B, C, H, W), of the same shape."""
        return self._by_rows(self._gradient, x)

    def _by_rows(self, function: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
        return by_rows(function, x, self.problem.rows, size=self.rows_per_call)

    def _misfit(self, x: Tensor, rows: Tensor) -> Tensor:
        noise = self.problem.misfit(None, type(self).__name__)
        return noise.misfit(self.problem.forward(x, rows), self.problem.y[rows])

    def _gradient(self, x: Tensor, rows: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self._misfit(x, rows).sum(), x)[0]

    def state_dict(self) -> dict[str, Any]:
        """Images, values and which rows are finite."""
        return {"x": self.x, "values": self.values, "finite": self.finite}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state."""
        self.x, self._kept = state["x"], state["x"].clone()
        self.values, self.finite = state["values"], state["finite"]


def row_seed(problem: Problem, row: int, *stage: int) -> int:
    """Seed of the random numbers of one image, which depends on (seed, index, stage) alone."""
    # 32 bits, which are all that torch's CPU generator looks at.
    key = (problem.seed, int(problem.indices[row]), *stage)
    return int(np.random.SeedSequence(key).generate_state(1)[0])
