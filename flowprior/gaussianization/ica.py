"""Rotation of whitened patches towards independent components."""

import torch
from torch import Tensor

from flowprior.argument_types import check_types
from flowprior.gaussianization.matrix_functions import nearest_orthogonal


def ica(v: Tensor, iterations: int = 10, damping: float = 0.8) -> Tensor:
    r"""Rotate whitened matrices by damped FastICA with the contrast log cosh.

    W ← α E[v tanh(wᵢᵀv)] − E[1 − tanh²(wᵢᵀv)] wᵢ for all columns wᵢ, then to the nearest orthogonal
    matrix; starting at W = I, always `iterations` times, so that the map is smooth. The sign of a
    column, which alternates between iterations, is chosen so that the diagonal is positive.

    Computed in float64. With fewer than about ten samples per dimension, the iteration finds
    directions in which noise looks heavy-tailed (see the guide on Gaussianization).

    Reference: Li & Denli, Gaussianization layers, eq. 9 and 24, algorithm 1.

    Args:
        v: (B, D, N), as `whiten` returns it.
        iterations: number of fixed-point iterations; 0 gives W = I.
        damping: α in (0, 1].

    Returns:
        WᵀV, (B, D, N).

    Raises:
        ValueError: the shape or an option is wrong.
    """
    check_types(ica, {"v": v, "iterations": iterations, "damping": damping})
    if v.ndim != 3:
        raise ValueError(f"ica: v must be (B, D, N), got {tuple(v.shape)}")
    if iterations < 0 or not 0 < damping <= 1:
        raise ValueError(
            f"ica: needs iterations >= 0 and damping in (0, 1], got {iterations} and {damping}"
        )
    exact = v.double()
    rotation = torch.eye(v.shape[1], dtype=torch.float64, device=v.device).expand(len(v), -1, -1)
    for _ in range(iterations):
        rotation = nearest_orthogonal(_fixed_point(rotation, exact, damping))
    diagonal = rotation.diagonal(dim1=1, dim2=2)
    rotation = rotation * torch.where(diagonal < 0, -1.0, 1.0)[:, None, :]
    return rotation.to(v.dtype).mT @ v


def _fixed_point(rotation: Tensor, v: Tensor, damping: float) -> Tensor:
    activation = torch.tanh(rotation.mT @ v)
    slope = 1 - activation.square().mean(2)
    return v @ activation.mT * (damping / v.shape[2]) - rotation * slope[:, None, :]
