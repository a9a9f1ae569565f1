"""BM3D, for denoising."""

import importlib.util
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowprior.argument_types import check_fields
from flowprior.checks import check_positive
from flowprior.inversion.problem import Problem
from flowprior.inversion.reconstructor import ReconstructorRun
from flowprior.inversion.solving import Solver
from flowprior.physics.noise import SNR, Gaussian
from flowprior.priors import Prior

SMALLEST = 9
"""The package crashes on images of one block, 8×8."""


@dataclass(frozen=True)
class BM3D(Solver):
    """Denoise by block matching and 3-D filtering, on the CPU. It takes one iteration.

    It needs the package bm3d, an extra whose licence allows non-commercial use only.

    Reference: Dabov, Foi, Katkovnik & Egiazarian, Image denoising by sparse 3-D transform-domain
    collaborative filtering (2007).

    Args:
        strength: the noise level that BM3D assumes, in units of the known one; > 0.

    Raises:
        ValueError: strength is not positive; later, if the package is missing, the operator is not
            the identity, the noise is not Gaussian, or a side has fewer than 9 pixels.
    """

    strength: float = 1.0
    differentiates: ClassVar[bool] = False
    uses_start: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive("strength", self.strength)

    def check(self, prior: Prior | None, who: str = "") -> None:
        """See `Solver.check`; also finds out whether the package is installed."""
        super().check(prior, who)
        if importlib.util.find_spec("bm3d") is None:
            raise ValueError(f'{who}BM3D needs the package bm3d: pip install "flowprior[bm3d]"')

    def begin(self, problem: Problem) -> ReconstructorRun:
        """Start from the given images or grey ones; the first iteration denoises."""
        noise = problem.misfit(None, "BM3D")
        if not isinstance(noise, Gaussian | SNR):
            raise ValueError(f"noise: BM3D needs Gaussian noise, got {type(noise).__name__}")
        if min(problem.image_shape[1:]) < SMALLEST:
            height, width = problem.image_shape[1:]
            raise ValueError(
                f"BM3D needs images of at least {SMALLEST}×{SMALLEST} pixels, got {height}×{width}"
            )
        _check_identity(problem)
        return ReconstructorRun(_Denoiser(self.strength, noise), problem)


class _Denoiser(nn.Module):
    """BM3D as a reconstructor of one image."""

    def __init__(self, strength: float, noise: Gaussian | SNR) -> None:
        super().__init__()
        self.strength, self.noise = strength, noise

    def forward(self, y: Tensor, physics: Any) -> Tensor:
        """Image (1, C, H, W) of noisy data of that shape."""
        import deepinv

        level = 1 / self.noise.standardised(y + 1, y).flatten(1).mean(1)
        return deepinv.models.BM3D()(y, self.strength * level)


def _check_identity(problem: Problem) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (len(problem.y), *problem.image_shape)
    probe = torch.rand(shape, generator=generator).to(problem.like)
    with torch.no_grad():
        predicted = problem.forward(probe)
    same_kind = predicted.shape == probe.shape and predicted.dtype == probe.dtype
    if not same_kind or not torch.allclose(predicted, probe):
        raise ValueError(
            f"physics: BM3D only denoises, where A(x) = x; {problem.forward.name} is not that"
        )
