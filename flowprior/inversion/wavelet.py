"""Sparse wavelet coefficients."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowprior.argument_types import check_fields
from flowprior.checks import check_choice, check_integer, check_number
from flowprior.inversion.problem import Problem
from flowprior.inversion.proximal import FISTARun
from flowprior.inversion.solving import Solver

Family = Literal["haar", "db2", "db4"]
_HALF, _ROOT = math.sqrt(0.5), math.sqrt(3)
LOW_PASS: dict[str, tuple[float, ...]] = {
    "haar": (_HALF, _HALF),
    "db2": tuple(_HALF / 4 * c for c in (1 + _ROOT, 3 + _ROOT, 3 - _ROOT, 1 - _ROOT)),
    "db4": (
        0.23037781330885523,
        0.7148465705525415,
        0.6308807679295904,
        -0.02798376941698385,
        -0.18703481171888114,
        0.030841381835986965,
        0.032883011666982945,
        -0.010597401784997278,
    ),
}


@dataclass(frozen=True)
class Wavelet(Solver):
    r"""Minimise misfit(A(x), y) + λ ‖Ψx‖₁ over x, by FISTA with restarts.

    Ψ are the detail coefficients of an orthonormal Daubechies wavelet transform that continues
    images periodically, so that its proximal map is exact: it shrinks each coefficient. The step
    size comes from the operator by power iteration. It starts from the given images, or from grey.

    Args:
        weight: λ ≥ 0, in nats per unit of a coefficient; choose it on validation images.
        family: "haar", "db2" or "db4", with 1, 2 or 4 vanishing moments.
        levels: number of scales; the sides of the images must be multiples of 2^levels. None takes
            as many as there can be, up to 4.

    Raises:
        ValueError: names the option; later, if the operator is not linear or the noise is not
            Gaussian, or the sides of the images do not suit `levels`.
    """

    weight: float
    family: Family = "haar"
    levels: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_number("weight", self.weight, least=0)
        check_choice("family", self.family, tuple(LOW_PASS))
        if self.levels is not None:
            check_integer("levels", self.levels, least=1)

    def begin(self, problem: Problem) -> "WaveletRun":
        """Start from the given images, or from grey ones."""
        return WaveletRun(self, self.scales(problem.image_shape), problem)

    def scales(self, image_shape: tuple[int, int, int]) -> int:
        """Number of levels for images (C, H, W); a ValueError unless they allow it."""
        common = math.gcd(*image_shape[1:])
        levels = self.levels or next((n for n in (4, 3, 2, 1) if common % 2**n == 0), 1)
        if common % 2**levels:
            raise ValueError(
                f"levels={self.levels}: expected images whose sides are multiples of {2**levels}, "
                f"got {image_shape[1]}×{image_shape[2]}"
            )
        return levels


class WaveletRun(FISTARun):
    """The batch of a `Wavelet`; `values["log_prior"]` is −λ‖Ψx‖₁."""

    def __init__(self, solver: Wavelet, levels: int, problem: Problem) -> None:
        self.weight, self.levels = solver.weight, levels
        self.low_pass = LOW_PASS[solver.family]
        super().__init__(problem, "Wavelet")

    def penalty(self, x: Tensor) -> Tensor:
        """λ‖Ψx‖₁ of images x (B, C, H, W)."""
        size = details(self._transformed(x), self.levels).abs()
        return self.weight * size.flatten(1).sum(1, dtype=torch.float64)

    def shrunk(self, x: Tensor) -> Tensor:
        """Soft thresholding of the details by λ times the step size."""
        coefficients = self._transformed(x)
        shrunk = torch.nn.functional.relu(coefficients.abs() - self.weight * self.step_size)
        shrunk = details(shrunk * coefficients.sign() - coefficients, self.levels)
        return inverse(coefficients + shrunk, self.low_pass, self.levels)

    def _transformed(self, x: Tensor) -> Tensor:
        return transform(x, self.low_pass, self.levels)


def details(coefficients: Tensor, levels: int) -> Tensor:
    """Coefficients (B, C, H, W) with 0 for those of the coarsest image, the upper left block."""
    found = coefficients.clone()
    height, width = (side >> levels for side in found.shape[-2:])
    found[..., :height, :width] = 0
    return found


def transform(x: Tensor, low_pass: tuple[float, ...], levels: int) -> Tensor:
    """Orthonormal wavelet coefficients of periodic images (B, C, H, W), of the same shape.

    The upper left block of half the size is an image of half the resolution, transformed again.
    """
    found = x.clone()
    for level in range(levels):
        height, width = (side >> level for side in x.shape[-2:])
        block = _analysed(found[..., :height, :width], low_pass, -2)
        found[..., :height, :width] = _analysed(block, low_pass, -1)
    return found


def inverse(coefficients: Tensor, low_pass: tuple[float, ...], levels: int) -> Tensor:
    """Images (B, C, H, W) of such coefficients."""
    found = coefficients.clone()
    for level in reversed(range(levels)):
        height, width = (side >> level for side in found.shape[-2:])
        block = _synthesised(found[..., :height, :width], low_pass, -1)
        found[..., :height, :width] = _synthesised(block, low_pass, -2)
    return found


def _high_pass(low_pass: tuple[float, ...]) -> list[float]:
    """The quadrature mirror filter."""
    return [(-1) ** place * tap for place, tap in enumerate(reversed(low_pass))]


def _analysed(x: Tensor, low_pass: tuple[float, ...], dim: int) -> Tensor:
    """Filter and keep every second entry: low frequencies, then high ones."""
    halves = [
        sum(tap * x.roll(-place, dim) for place, tap in enumerate(taps)).unflatten(dim, (-1, 2))
        for taps in (low_pass, _high_pass(low_pass))
    ]
    return torch.cat([half.select(dim, 0) for half in halves], dim)


def _synthesised(x: Tensor, low_pass: tuple[float, ...], dim: int) -> Tensor:
    """Adjoint, and inverse, of `_analysed`."""
    low, high = (
        torch.stack([half, torch.zeros_like(half)], dim).flatten(dim - 1, dim)
        for half in x.chunk(2, dim)
    )
    pairs = zip(low_pass, _high_pass(low_pass), strict=True)
    return sum(
        (tap * low + other * high).roll(place, dim) for place, (tap, other) in enumerate(pairs)
    )
