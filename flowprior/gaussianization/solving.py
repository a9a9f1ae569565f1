"""What the batched solvers share."""

import torch
from torch import Tensor

START_SAMPLES = 2048
MAX_ITERATIONS = 40
ITERATIONS_AFTER_START = 15
"""Of Newton's method from a root of a part of the row, which is near."""


def subsample(x: Tensor) -> Tensor:
    """Some `START_SAMPLES` evenly spaced columns of x (B, n): enough to start a solver from."""
    return x[:, :: x.shape[1] // START_SAMPLES].contiguous()


def settled(change: Tensor, value: Tensor) -> Tensor:
    """Which rows' last Newton steps were so small that quadratic convergence is at its end, (B,).

    They move no further, whatever the other rows of the batch still need.
    """
    tolerance = torch.finfo(value.dtype).eps ** 0.6
    return change.abs() <= tolerance * (1 + value.abs())


def all_done(moving: Tensor) -> bool:
    """Whether no row moves, looked at only where that costs nothing.

    A GPU would have to be waited for, and a compiler cannot know: there the solvers make all their
    iterations, the last of which change nothing.
    """
    if torch.compiler.is_compiling() or moving.device.type != "cpu":
        return False
    return not bool(moving.any())
