"""Denoisers as priors."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowprior.argument_types import check_fields
from flowprior.checks import check_integer, check_positive
from flowprior.inversion.batch_invariant import by_rows, rows_per_call
from flowprior.inversion.denoisers import frozen_denoiser, make_denoiser, missing_stages
from flowprior.inversion.problem import Problem
from flowprior.inversion.proximal import ProximalRun
from flowprior.inversion.solving import Solver
from flowprior.inversion.warned import Warned


@dataclass(frozen=True)
class PlugAndPlay(Solver):
    r"""Half-quadratic splitting with a denoiser D in place of a prior, in `stages` iterations.

    .. math:: z_k = \arg\min_z \mathrm{misfit}(z) + \frac{s}{2\sigma_k^2} \|z - x_{k-1}\|^2,
        \qquad x_k = D(z_k, \sigma_k)

    The noise level σ_k falls geometrically from σ₀ to that of the data, σ/‖A‖, or to `last_level`;
    the first step is 10 conjugate gradients. A denoiser that ignores the noise level is the same in
    every iteration. It starts from the given images, or from grey, and ends after `stages`
    iterations: fewer stop where the noise level is still high.

    Reference: Zhang et al., Plug-and-play image restoration with deep denoiser prior (2021), eq. 6;
    there s is called λ, and is between 0.19 and 0.55.

    Args:
        denoiser: called with images (k, C, H, W) in [0, 1] and noise levels (k,), as those of
            `deepinv.models`; it gives images of the same shape.
        weights: safetensors file of the denoiser's parameters; None for those that it has.
        strength: s > 0; choose it on validation images.
        first_level: σ₀ > 0, on images in [0, 1], as far as the denoiser has seen such noise; holes
            in the data need a high one.
        stages: number of iterations, at least 2.
        last_level: noise level of the last iteration, at most σ₀; σ/‖A‖ by default. Choose it on
            validation images: where A leaves much open, a denoiser does more at a higher level.

    Raises:
        ValueError: names the option, or the weights are missing, damaged or of another network;
            later, if the denoiser does not take the images, the operator is not linear or the
            noise is not Gaussian.
    """

    denoiser: nn.Module
    weights: str | None = None
    strength: float = 0.23
    first_level: float = 0.5
    stages: int = 24
    last_level: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "denoiser", make_denoiser(self.denoiser, self.weights))
        check_positive("strength", self.strength)
        check_positive("first_level", self.first_level)
        check_integer("stages", self.stages, least=2)
        if self.last_level is not None and not 0 < self.last_level <= self.first_level:
            raise ValueError(
                f"last_level must be in (0, first_level={self.first_level}], got {self.last_level}"
            )

    def begin(self, problem: Problem) -> "PlugAndPlayRun":
        """Start from the given images, or from grey ones."""
        return PlugAndPlayRun(self, problem)


class PlugAndPlayRun(ProximalRun):
    """The batch of a `PlugAndPlay`."""

    def __init__(self, solver: PlugAndPlay, problem: Problem) -> None:
        self.model = frozen_denoiser(solver.denoiser, problem)
        super().__init__(problem, "PlugAndPlay")
        self.solver, self.done = solver, 0
        with torch.no_grad():
            self.size = rows_per_call(self.model, self.x[:1], self._levels()[:1])

    @property
    def active(self) -> Tensor:
        """All finite rows, until the last stage."""
        return self.finite & (self.done < self.solver.stages)

    def step(self) -> None:
        """Fit the data near the images, and denoise."""
        levels = self._levels()
        z = self.fitted(self.x, self.solver.strength / levels.square().view(-1, 1, 1, 1))
        with torch.no_grad():
            self.x = by_rows(self.model, z, levels, size=self.size).to(z)
        self.done += 1
        self.measure()

    def _levels(self) -> Tensor:
        """Noise levels (B,) of this stage."""
        first, share = self.solver.first_level, self.done / (self.solver.stages - 1)
        # In Python, because powers of a tensor are rounded differently at different places.
        last = self.step_size.flatten().sqrt().tolist()
        if self.solver.last_level is not None:
            last = [self.solver.last_level] * len(last)
        return self.x.new_tensor([first * (level / first) ** share for level in last])

    def warnings(self) -> list[Warned]:
        """That stages are missing."""
        return missing_stages(self.done, self.solver.stages)

    def state_dict(self) -> dict[str, Any]:
        """Images, values and the number of stages done."""
        return {**super().state_dict(), "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state."""
        super().load_state_dict(state)
        self.done = state["done"]
