"""Solvers with a posterior: known posteriors, batches, kills, options, diagnostics."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from flowprior.inversion import Checkpoint, Posterior, invert
from flowprior.latent import Latent
from flowprior.posterior import Coupling, FullGaussian, Langevin, LowRank, Variational
from flowprior.posterior.diagnostics import effective_draws, r_hat
from flowprior.priors import Prior
from tests.inversion_problems import (
    Interrupted,
    LinearGaussian,
    Shifted,
    blur,
    identity,
    interrupt_at,
    small_decoder,
    small_glow,
    two_part_decoder,
)

FAMILIES = [FullGaussian(), LowRank(3), Coupling(depth=3, hidden=4), Coupling(depth=2, hidden=3)]
SOLVERS = {
    "Langevin": Langevin(chains=2, warm_up=4, leapfrog=2, descent_iterations=3),
    "Langevin, dense": Langevin(chains=3, warm_up=12, leapfrog=1, metric="dense"),
    "Coupling": Variational(Coupling(hidden=4), draws=4, descent_iterations=3),
    "LowRank": Variational(LowRank(2), draws=4, descent_iterations=0),
    "FullGaussian": Variational(FullGaussian(), draws=2),
}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Known:
    """A linear problem with its exact posterior in the latent: means (B, n) and covariance."""

    def __init__(self, size=4, measurements=8, sigma=0.1, count=2):
        self.prior = LinearGaussian(mean=0.5, scale=0.2, size=size).requires_grad_(False)
        self.sigma, n = sigma, size * size
        self.matrix = normal(measurements, n, seed=1) / math.sqrt(measurements)
        self.truth = 0.5 + 0.2 * normal(count, 1, size, size, seed=2)
        self.y = self.physics(self.truth) + sigma * normal(count, measurements, seed=3)
        hessian = torch.eye(n) + 0.04 / sigma**2 * self.matrix.T @ self.matrix
        self.covariance = hessian.inverse()
        centred = self.y - 0.5 * self.matrix.sum(1)
        self.mean = 0.2 / sigma**2 * centred @ self.matrix @ self.covariance
        self.deviation = self.covariance.diagonal().sqrt()

    def physics(self, x):
        return x.flatten(1) @ self.matrix.T

    def solve(self, solver, iterations, **options):
        return invert(
            self.prior,
            self.physics,
            self.y,
            sigma=self.sigma,
            solver=solver,
            iterations=iterations,
            **options,
        )


@pytest.fixture(scope="module")
def known():
    return Known()


@pytest.mark.parametrize(("metric", "leapfrog"), [("diagonal", 8), ("dense", 4)])
def test_langevin_draws_from_a_known_posterior(known, metric, leapfrog):
    found = known.solve(Langevin(metric=metric, leapfrog=leapfrog), 2500)
    z = found.posterior.draws.flatten(3).transpose(1, 2).flatten(0, 1)
    assert ((z.mean(0) - known.mean) / known.deviation).abs().max() < 0.05
    assert (z.std(0) / known.deviation - 1).abs().max() < 0.05
    assert not any("chains" in w or "effective" in w for w in found.warnings)
    assert found.posterior.r_hat.max() < 1.01
    assert found.posterior.effective.min() > 1000
    x = 0.5 + 0.2 * z.mean(0).view_as(found.x)
    torch.testing.assert_close(found.x, x)


def exact_moments(posterior, size):
    """Means (B, n) and covariances (B, n, n) of distributions that are normal."""
    units = torch.cat([torch.zeros(1, size), torch.eye(size)]).double()
    rows = posterior.family(posterior.parameters, units.expand(len(posterior.parameters), -1, -1))
    root = rows[:, 1:] - rows[:, :1]
    return rows[:, 0], root.mT @ root


@pytest.mark.parametrize("family", [FullGaussian(), LowRank(8)])
def test_variational_finds_a_known_posterior(known, family):
    found = known.solve(Variational(family), 1500)
    mean, covariance = exact_moments(found.posterior, 16)
    assert ((mean - known.mean) / known.deviation).abs().max() < 0.05
    error = torch.linalg.matrix_norm(covariance - known.covariance, ord=2)
    assert (error < 0.05 * torch.linalg.matrix_norm(known.covariance, ord=2)).all()
    deviation = covariance.diagonal(dim1=1, dim2=2).sqrt()
    assert (deviation / known.deviation - 1).abs().max() < 0.05
    # −log of the evidence: at β = 1 the objective reaches it.
    covariance = 0.04 * known.matrix @ known.matrix.T + known.sigma**2 * torch.eye(8)
    centred = known.y - 0.5 * known.matrix.sum(1)
    normal = torch.distributions.MultivariateNormal(torch.zeros(8).double(), covariance)
    constant = 0.5 * 8 * math.log(2 * math.pi * known.sigma**2)
    expected = -normal.log_prob(centred) - constant
    torch.testing.assert_close(found.history["objective"][-1], expected, rtol=0.01, atol=0.1)


def test_a_flow_finds_a_known_posterior(known):
    found = known.solve(Variational(Coupling(depth=4, hidden=16)), 1500)
    z = found.posterior.latents(20_000, seed=0)
    assert ((z.mean(0) - known.mean) / known.deviation).abs().max() < 0.05
    assert (z.std(0) / known.deviation - 1).abs().max() < 0.05
    for row in range(2):
        error = torch.cov(z[:, row].T) - known.covariance
        largest = torch.linalg.matrix_norm(known.covariance, ord=2)
        assert torch.linalg.matrix_norm(error, ord=2) < 0.1 * largest


def test_without_the_entropy_the_distribution_collapses(known):
    spread = {}
    for beta in (0.0, 0.5, 1.0):
        found = known.solve(Variational(LowRank(8), beta=beta), 800)
        spread[beta] = found.posterior.latents(500, seed=0).std(0).mean() / known.deviation.mean()
    assert spread[0.0] < 0.05
    assert 0.55 < spread[0.5] < 0.85  # √½
    assert 0.95 < spread[1.0] < 1.05
