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


def settled(change: Tensor, value: Tensor) -> bool:
    """Whether Newton's last steps were so small that quadratic convergence is at its end.

    Looks only where it costs nothing: a GPU would have to be waited for, and a compiler cannot
    know. There the solvers make all their iterations, the last of which change nothing.
    """
    if torch.compiler.is_compiling() or change.device.type != "cpu":
        return False
    tolerance = torch.finfo(value.dtype).eps ** 0.6
    return bool((change.abs() <= tolerance * (1 + value.abs())).all())
