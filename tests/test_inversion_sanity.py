"""What must hold of any implementation, with the weights that come with flowprior.

Denoising as in Asim et al., Invertible generative models for inverse problems (2020): without a
penalty the noise is fitted (22 dB there), with a good one it is not (30 dB).
"""

import pytest
import torch

import flowprior
from datamodules import LayerModels
from flowprior.inversion import (
    MAP,
    Discrepancy,
    Restarts,
    TotalVariation,
    csgm,
    glow_ip,
    invert,
)
from flowprior.metrics import psnr
from flowprior.physics import denoising

SIGMA = 0.1


@pytest.fixture(scope="module")
def flow():
    return flowprior.load("weights/glow_layers_32")


@pytest.fixture(scope="module")
def noisy(flow):
    """Test models (B, 1, 32, 32) in [0, 1] and noisy data of them."""
    models = next(LayerModels(image_size=32).batches("test", 4, dequantized=False))[1]
    x = flow.to_unit_range(models)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return x, x + SIGMA * noise


def denoised(flow, y, beta):
    """From the latents of the data."""
    solver = MAP(beta, projection_iterations=20)
    physics = denoising(flow.image_shape)
    return invert(flow, physics, y, sigma=SIGMA, solver=solver, start=y.clamp(0, 1), iterations=40)


def test_penalty_and_misfit_balance(flow, noisy):
    """Without a penalty the noise is fitted, with Bayes' rule it is removed, and β = 100 blurs."""
    x, y = noisy
    found = {beta: denoised(flow, y, beta) for beta in (0.0, 1.0, 100.0)}
    scores = {beta: psnr(estimate.x, x).mean() for beta, estimate in found.items()}
    assert abs(scores[0.0] - psnr(y.clamp(0, 1), x).mean()) < 3
    assert scores[1.0] > scores[0.0] + 4
    assert scores[1.0] > scores[100.0] + 2
    residuals = torch.stack([estimate.residual for estimate in found.values()])
    assert (residuals.diff(dim=0) > 0).all()
    assert residuals[0].max() < 0.7
    assert any("noise is fitted" in warning for warning in found[0.0].warnings)
    norms = torch.stack([estimate.z.flatten(1).norm(dim=1) for estimate in found.values()])
    assert (norms.diff(dim=0) < 0).all()


SOLVERS = {
    "latent norm": MAP(beta=1e-3),
    "image density": MAP(beta=1e-3, penalty="log_density"),
    "no penalty": MAP(penalty="none"),
    "Adam": MAP(beta=1e-3, optimizer="adam", learning_rate=0.05),
    "CSGM": csgm(gamma=1e-6, learning_rate=0.05),
    "GlowIP": glow_ip(gamma=1e-6, learning_rate=0.05),
    "restarts": Restarts(MAP(beta=1e-3), count=2),
    "discrepancy": Discrepancy(MAP(beta=1e-3), stage=20),
    "total variation": TotalVariation(0.01),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_clean_images_of_the_range_are_recovered(flow, name):
    """A = I, data without noise to speak of, truths that the flow itself generates."""
    x = flow.to_unit_range(flow.sample(2, 0.7, generator=torch.Generator().manual_seed(0)))
    iterations = 160 if name in ("Adam", "CSGM", "GlowIP") else 80
    found = invert(
        flow,
        denoising(flow.image_shape),
        x,
        sigma=1e-2,
        solver=SOLVERS[name],
        iterations=iterations,
    )
    assert psnr(found.x, x).min() > 30
