"""Where an inversion starts."""

import torch
from torch import Tensor

from flowprior.flows import Flow
from flowprior.gaussianization import Reparameterization
from flowprior.inversion.invert import invert
from flowprior.inversion.objective import Objective


def smoothed(x: Tensor, deviation: float = 5.0) -> Tensor:
    """Images (B, C, H, W) under a Gaussian of this standard deviation in pixels, mirrored borders.

    The start of a tomography, after Li & Denli, Gaussianization layers, section 4.2.
    """
    if not 0 < deviation < float("inf"):
        raise ValueError(f"deviation must be positive and finite, got {deviation}")
    from scipy.ndimage import gaussian_filter

    sigmas = (0, 0, deviation, deviation)
    return torch.from_numpy(gaussian_filter(x.detach().cpu().numpy(), sigmas)).to(x)


def project_to_latents(
    prior: Flow,
    images: Tensor,
    *,
    reparameterization: Reparameterization | None = None,
    beta: float = 0.0,
    iterations: int = 100,
    seed: int = 0,
) -> Tensor:
    r"""Latents v (B, ...) whose images come closest to some (B, C, H, W) in [0, 1].

    Minimises ½‖f(h(v)) − x₀‖² − β log p_X(f(h(v))), β per nat, by L-BFGS from one draw of N(0, I).

    Reference: Li & Denli, Gaussianization layers, eq. 39–40, whose misfit has no ½: β there is
    twice this one.
    """
    found = invert(
        prior,
        lambda x: x,
        images,
        reparameterization=reparameterization,
        objective=Objective(beta=beta),
        iterations=iterations,
        seed=seed,
    )
    return found.v
