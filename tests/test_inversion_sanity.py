"""What must hold of any implementation, with the weights that come with flowprior."""

from functools import partial

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


@pytest.fixture(scope="module")
def flow():
    return flowprior.load("weights/glow_layers_32")


SIGMA = 0.1

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


def test_without_a_penalty_the_noise_is_fitted_and_bayes_rule_prefers_to_remove_it(flow):
    models = next(LayerModels(image_size=32).batches("test", 4, dequantized=False))[1]
    x = flow.to_unit_range(models)
    y = x + SIGMA * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    latents = flow.encode(y - 0.5)[0].flatten(1)
    recover = partial(invert, flow, denoising(flow.image_shape), y, sigma=SIGMA)

    fitted = recover(solver=MAP(beta=0.0), latents=latents, iterations=5)
    assert fitted.residual.max() < 0.01
    assert any("noise is fitted" in warning for warning in fitted.warnings)
    assert (psnr(fitted.x, x) - psnr(y, x)).abs().max() < 0.1

    found = {
        beta: recover(solver=MAP(beta), start=y.clamp(0, 1), iterations=40) for beta in (1, 99)
    }
    assert psnr(found[1].x, x).mean() > psnr(y, x).mean() + 4
    negative_log_posterior = [
        0.5 * ((e.x - y) / SIGMA).square().sum() + 0.5 * e.z.square().sum()
        for e in (fitted, found[1])
    ]
    assert negative_log_posterior[1] < negative_log_posterior[0]
    # Too much of it draws the latents to 0, and the images away from the data.
    assert (found[99].z.flatten(1).norm(dim=1) < found[1].z.flatten(1).norm(dim=1)).all()
    assert (found[99].residual > found[1].residual).all()
    assert psnr(found[99].x, x).mean() < psnr(found[1].x, x).mean() - 4
