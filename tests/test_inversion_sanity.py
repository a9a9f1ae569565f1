"""What must hold of any implementation, with the weights that come with flowprior."""

import pytest
import torch

import flowprior
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
