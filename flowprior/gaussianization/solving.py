"""Shared parts of the batched solvers."""

import torch
from torch import Tensor

START_SAMPLES = 2048
MAX_ITERATIONS = 40
ITERATIONS_AFTER_START = 15
"""Newton iterations when starting from the root of the subsample, which is near."""


def subsample(x: Tensor) -> Tensor:
    """About `START_SAMPLES` evenly spaced columns of x (B, n), from which a solver starts."""
    return x[:, :: x.shape[1] // START_SAMPLES].contiguous()


def settled(change: Tensor, value: Tensor) -> Tensor:
    """Rows whose last Newton step was so small that they have converged, (B,) bool.

    They do not move any more, whatever the other rows still need.
    """
    tolerance = torch.finfo(value.dtype).eps ** 0.6
    return change.abs() <= tolerance * (1 + value.abs())


def all_done(moving: Tensor) -> bool:
    """Whether no row moves any more; always False on a GPU and in a compiled graph.

    Asking a GPU means waiting for it, and a compiled graph has no such branches. There the solvers
    make all their iterations, the last of which change nothing.
    """
    if torch.compiler.is_compiling() or moving.device.type != "cpu":
        return False
    return not bool(moving.any())
