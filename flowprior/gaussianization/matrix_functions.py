"""Functions of small symmetric and square matrices, with exact derivatives.

The derivatives are those of the functions, not of the eigenvectors that compute them: they stay
finite where eigenvalues are equal.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def inverse_sqrt(matrix: Tensor) -> Tensor:
    """The symmetric inverse square root of symmetric positive definite matrices (B, D, D)."""
    return _InverseSqrt.apply(matrix)


def nearest_orthogonal(matrix: Tensor) -> Tensor:
    """The orthogonal polar factor M (MᵀM)^(−1/2) of square matrices (B, D, D).

    Accurate to about machine precision times the square of the condition number.
    """
    return _NearestOrthogonal.apply(matrix)


class _InverseSqrt(torch.autograd.Function):
    """With M = QΛQᵀ, dM^(−1/2) = Q (K ∘ QᵀdMQ) Qᵀ; K holds the divided differences of λ^(−1/2)."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        finite = matrix.isfinite().all(-1).all(-1)[..., None]
        unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        values, vectors = torch.linalg.eigh(torch.where(finite[..., None], matrix, unit))
        roots = torch.where(finite, values.sqrt(), torch.nan)
        ctx.save_for_backward(roots, vectors)
        return (vectors / roots[..., None, :]) @ vectors.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        roots, vectors = ctx.saved_tensors
        row, column = roots[..., :, None], roots[..., None, :]
        inner = vectors.mT @ grad @ vectors / (row * column * (row + column))
        return -(vectors @ inner @ vectors.mT)


class _NearestOrthogonal(torch.autograd.Function):
    """With M = PΣQᵀ, dPQᵀ = P ((A − Aᵀ)_ij / (σ_i + σ_j)) Qᵀ for A = PᵀdMQ."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        gram = matrix.mT @ matrix
        finite = gram.isfinite().all(-1).all(-1)[..., None]
        unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        squares, right = torch.linalg.eigh(torch.where(finite[..., None], gram, unit))
        squares = torch.where(finite, squares, torch.nan)
        smallest = torch.finfo(matrix.dtype).tiny
        sigma = squares.clamp_min(smallest).sqrt()
        left = (matrix @ right) / sigma[..., None, :]
        ctx.save_for_backward(left, sigma, right)
        return left @ right.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        left, sigma, right = ctx.saved_tensors
        inner = left.mT @ grad @ right
        inner = (inner - inner.mT) / (sigma[..., :, None] + sigma[..., None, :])
        return left @ inner @ right.mT
