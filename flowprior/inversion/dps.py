"""Diffusion models as priors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowprior.argument_types import check_fields
from flowprior.checks import check_integer, check_positive
from flowprior.inversion.batch_invariant import by_rows, rows_per_call
from flowprior.inversion.denoisers import frozen_denoiser, make_denoiser, missing_stages
from flowprior.inversion.images import ImageRun, row_seed
from flowprior.inversion.problem import Problem
from flowprior.inversion.solving import Solver
from flowprior.inversion.warned import Warned

CURVATURE = 7
"""Exponent of the noise schedule (Karras et al. 2022, eq. 5)."""


@dataclass(frozen=True)
class DPS(Solver):
    r"""Diffusion posterior sampling: draws of a diffusion model, drawn towards the data.

    A diffusion model is a denoiser D(x, σ) = E[clean image | x] that has seen all noise levels.
    From x₀ ~ N(0, σ₀² I) on, `stages` steps lower the level from `first_level` to `last_level`:

    .. math:: x_{k+1} = D + \frac{\sigma_{k+1}^2}{\sigma_k^2} (x_k - D)
        + \sigma_{k+1} \sqrt{1 - \frac{\sigma_{k+1}^2}{\sigma_k^2}}\,\varepsilon
        - \zeta\,s_k s_{k+1}\, \nabla_{x_k} \|y - A(D)\|, \qquad D = D(x_k, \sigma_k)

    with s² = 1 + 4σ²: the published step, in coordinates where noise is added to images in [0, 1]
    rather than mixed with images in [−1, 1]. The images are D, at the end x, averaged over `draws`:
    one draw looks like an image of the prior, the mean of many has the smaller error. Starting
    images, the noise model and its level are not used.

    References: Chung et al., Diffusion posterior sampling for general noisy inverse problems
    (2023), algorithm 1; Karras et al., Elucidating the design space of diffusion-based generative
    models (2022).

    Args:
        denoiser: called with images (k, C, H, W) in [0, 1] and noise levels (k,), as those of
            `deepinv.models`; it gives images of the same shape.
        weights: safetensors file of the denoiser's parameters; None for those that it has.
        step_size: ζ > 0; choose it on validation images.
        draws: number of draws of each image, at least 1.
        stages: number of iterations, at least 2; fewer iterations stop where noise is left.
        first_level: σ₀, far above 1, as far as the denoiser has seen such noise.
        last_level: below `first_level`; what is left of the noise is then removed.

    Raises:
        ValueError: names the option, or the weights are missing, damaged or of another network;
            later, if the denoiser does not take the images.
    """

    denoiser: nn.Module
    weights: str | None = None
    step_size: float = 1.0
    draws: int = 1
    stages: int = 100
    first_level: float = 20.0
    last_level: float = 0.01
    uses_start: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "denoiser", make_denoiser(self.denoiser, self.weights))
        for name in ("step_size", "first_level", "last_level"):
            check_positive(name, getattr(self, name))
        check_integer("draws", self.draws, least=1)
        check_integer("stages", self.stages, least=2)
        if self.last_level >= self.first_level:
            raise ValueError(
                f"last_level must be below first_level={self.first_level}, got {self.last_level}"
            )

    @property
    def levels(self) -> list[float]:
        """σ_0 … σ_K: of the start, of each stage's end, and 0 at the end."""
        first, last = (x ** (1 / CURVATURE) for x in (self.first_level, self.last_level))
        shares = (k / (self.stages - 1) for k in range(self.stages))
        return [*((first + share * (last - first)) ** CURVATURE for share in shares), 0.0]

    def begin(self, problem: Problem) -> "DPSRun":
        """Start from noise."""
        return DPSRun(self, problem)


class DPSRun(ImageRun):
    """The batch of a `DPS`."""

    def __init__(self, solver: DPS, problem: Problem) -> None:
        self.model = frozen_denoiser(solver.denoiser, problem)
        self.solver, self.levels, self.done = solver, solver.levels, 0
        self.problem = problem
        self.noisy = self.levels[0] * self._noise()
        with torch.no_grad():
            self.size = rows_per_call(self._guided, self.noisy[:1], problem.rows[:1])
        self.clean, self.pull = self._evaluated()
        super().__init__(problem, self.clean.mean(1))

    @property
    def active(self) -> Tensor:
        """All finite rows, until the last stage."""
        return self.finite & (self.done < self.solver.stages)

    def step(self) -> None:
        """Lower the noise level of all draws."""
        level, following = self.levels[self.done : self.done + 2]
        share = (following / level) ** 2
        drift = self.clean + share * (self.noisy - self.clean)
        fresh = following * math.sqrt(1 - share)
        self.done += 1
        change_of_coordinates = math.sqrt((1 + 4 * level**2) * (1 + 4 * following**2))
        self.noisy = drift - self.solver.step_size * change_of_coordinates * self.pull
        if following > 0:
            self.noisy = self.noisy + fresh * self._noise()
            self.clean, self.pull = self._evaluated()
        else:
            self.clean = self.noisy
        self.x = self.clean.mean(1)
        self.measure()

    def _evaluated(self) -> tuple[Tensor, Tensor]:
        """Denoised draws and gradients of their distances from the data, (B, draws, C, H, W)."""
        return by_rows(self._guided, self.noisy, self.problem.rows, size=self.size)

    def _guided(self, noisy: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        shape = noisy.shape
        x = noisy.detach().flatten(0, 1).requires_grad_()
        with torch.enable_grad():
            clean = self.model(x, x.new_full((len(x),), self.levels[self.done])).view(shape)
            error = self.problem.forward.several(clean, rows) - self.problem.y[rows][:, None]
            distance = torch.linalg.vector_norm(error.flatten(2), dim=2)
            (pull,) = torch.autograd.grad(distance.sum(), x)
        return clean.detach(), pull.view(shape)

    def _noise(self) -> Tensor:
        """N(0, I), (B, draws, C, H, W): the same for an image and a stage wherever it stands."""
        shape = (self.solver.draws, *self.problem.image_shape)
        rows = range(len(self.problem.y))
        return torch.stack([self._noise_of(row, shape) for row in rows]).to(self.problem.like)

    def _noise_of(self, row: int, shape: Sequence[int]) -> Tensor:
        seed = row_seed(self.problem, row, self.done)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def warnings(self) -> list[Warned]:
        """That stages are missing."""
        return missing_stages(self.done, self.solver.stages)

    def state_dict(self) -> dict[str, Any]:
        """Images, values, draws and the number of stages done."""
        draws = {"noisy": self.noisy, "clean": self.clean, "pull": self.pull}
        return {**super().state_dict(), **draws, "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state."""
        super().load_state_dict(state)
        self.noisy, self.clean, self.pull = state["noisy"], state["clean"], state["pull"]
        self.done = state["done"]
