"""Denoisers as priors."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from flowprior.inversion.batch_invariant import by_rows, rows_per_call
from flowprior.inversion.checks import check_positive
from flowprior.inversion.problem import Problem
from flowprior.inversion.proximal import ProximalRun
from flowprior.inversion.solving import Solver
from flowprior.physics.checks import check_number


@dataclass(frozen=True)
class PlugAndPlay(Solver):
    r"""Alternate a gradient step of the misfit with a denoiser D in place of a proximal map.

    .. math:: x_{k+1} = D(x_k - \tau \nabla \mathrm{misfit}(x_k), \sigma_k), \qquad
        \sigma_k = s \sqrt{\tau} + \max(\sigma_0 - s \sqrt{\tau}, 0)\, 0.9^k

    τ is the inverse of the misfit's largest curvature, σ²/‖A‖² for Gaussian noise, so that s = 1 is
    Bayes' rule if D were the most probable image given one with noise of σ_k. A denoiser that
    ignores the noise level does the same in every iteration, whatever s is. It starts from the
    given images, or from grey.

    References: Venkatakrishnan, Bouman & Wohlberg, Plug-and-play priors for model based
    reconstruction (2013); the falling noise level is that of Zhang et al., Plug-and-play image
    restoration with deep denoiser prior (2021).

    Args:
        denoiser: called with images (k, C, H, W) in [0, 1] and noise levels (k,), as those of
            `deepinv.models`; it gives images of the same shape.
        weights: safetensors file of the denoiser's parameters; None for those that it has.
        strength: s > 0; choose it on validation images.
        first_level: σ₀ ≥ 0, the noise level of the first iteration, on images in [0, 1]. 0 uses the
            last one throughout.

    Raises:
        ValueError: names the option; later, if the denoiser does not take the images, the operator
            is not linear or the noise is not Gaussian.
    """

    denoiser: nn.Module
    weights: str | None = None
    strength: float = 1.0
    first_level: float = 0.3

    def __post_init__(self) -> None:
        if not isinstance(self.denoiser, nn.Module):
            raise ValueError(f"denoiser must be a torch module, got {self.denoiser!r}")
        check_positive("strength", self.strength)
        check_number("first_level", self.first_level, least=0)
        if self.weights is not None:
            self.loaded()

    def begin(self, problem: Problem) -> "PlugAndPlayRun":
        """Start from the given images, or from grey ones."""
        return PlugAndPlayRun(self, problem)

    def loaded(self) -> nn.Module:
        """A frozen copy of the denoiser with its weights.

        Raises:
            ValueError: the file is missing, damaged, or of another network.
        """
        model = copy.deepcopy(self.denoiser).eval().requires_grad_(False)
        if self.weights is None:
            return model
        try:
            model.load_state_dict(load_file(self.weights))
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"weights={Path(self.weights)}: expected a safetensors file of the parameters of "
                f"{type(model).__name__}: {reason}"
            ) from error
        return model


DECAY = 0.9


class PlugAndPlayRun(ProximalRun):
    """The batch of a `PlugAndPlay`."""

    def __init__(self, solver: PlugAndPlay, problem: Problem) -> None:
        self.model = solver.loaded().to(problem.like)
        _check_denoiser(self.model, problem)
        super().__init__(problem, "PlugAndPlay")
        self.last = solver.strength * self.step_size.flatten().sqrt()
        self.level = self.last.clamp(min=solver.first_level)
        row = (self.x[:1], self.level[:1])
        with torch.no_grad():
            self.size = rows_per_call(self.model, *row)

    @torch.no_grad()
    def step(self) -> None:
        """Descend, denoise, and lower the noise level."""
        x = self.descended(self.x)
        self.x = by_rows(self.model, x, self.level, size=self.size)
        self.level = self.last + DECAY * (self.level - self.last)
        self.measure()

    def state_dict(self) -> dict[str, Any]:
        """Images, values and noise levels."""
        return {**super().state_dict(), "level": self.level}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state."""
        super().load_state_dict(state)
        self.level = state["level"]


@torch.no_grad()
def _check_denoiser(model: nn.Module, problem: Problem) -> None:
    """Raise ValueError unless the denoiser gives images of the shape that it takes."""
    grey = problem.like.new_full((1, *problem.image_shape), 0.5)
    try:
        found = getattr(model(grey, grey.new_full((1,), 0.1)), "shape", None)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        found = " ".join(str(error).split())[:200]
    if found != grey.shape:
        raise ValueError(
            f"denoiser: {type(model).__name__} must turn images {tuple(grey.shape)} and noise "
            f"levels (1,) into images of that shape, got {found}"
        )
