"""The exact posteriors of docs/rosenbrock.py, and the weights that it is about."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

import flowprior
from datamodules import Rosenbrock

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("rosenbrock", ROOT / "docs" / "rosenbrock.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_exact_moments_are_those_of_weighted_draws_of_the_prior(study):
    matrix, y = study.problem()
    exact = study.Exact.of(matrix, y)
    mean, covariance = exact.moments()
    z = torch.randn(400_000, 2, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    x = study.Density().generate(z)[..., 0, 0]
    for row in range(3):
        misfit = 0.5 * ((x @ matrix.T - y[row]) / study.NOISE).square().sum(1)
        weights = torch.softmax(-misfit, 0)
        found = weights @ x
        assert ((found - mean[row]) / exact.deviation()[row]).abs().max() < 0.02
        spread = (weights[:, None] * (x - found)).T @ (x - found)
        assert (spread - covariance[row]).norm() < 0.05 * covariance[row].norm()
        evidence = torch.logsumexp(-misfit, 0) - math.log(len(x))
        evidence -= 2 * math.log(study.NOISE * math.sqrt(2 * math.pi))
        assert evidence.item() == pytest.approx(exact.log_evidence[row].item(), abs=0.02)


def test_the_exact_posterior_does_not_differ_from_itself(study):
    exact = study.Exact.of(*study.problem())
    chosen = exact.log_density.exp().multinomial(50, generator=torch.Generator().manual_seed(0))
    divergence = exact.divergence_of(exact.grid[chosen], exact.log_density.gather(1, chosen))
    assert divergence.abs().max() < 1e-9


def test_the_density_is_that_of_its_generator(study):
    density = study.Density()
    z = torch.randn(5, 2, 1, 1).double()
    x, log_det = density.decode(z)
    normal = flowprior.latent.standard_normal_log_prob(z)
    torch.testing.assert_close(density.log_prob(x), normal - log_det)


@pytest.mark.parametrize("count", [1, 17])
def test_the_weights_have_learned_the_posteriors_of_their_data(study, count):
    flow = flowprior.load(ROOT / "weights" / "rosenbrock").double()
    _, _, y = next(Rosenbrock().pairs("test", count))
    exact = study.Exact.of(torch.eye(2).double(), y.double())
    z = torch.randn(count, 2000, 2, generator=torch.Generator().manual_seed(0)).double()
    x, log_det = study._decoded(flow, z, y.double())
    log_density = -0.5 * z.square().sum(2) - math.log(2 * math.pi) - log_det
    divergence = exact.divergence_of(x, log_density)
    assert divergence.min() > -0.01
    assert divergence.median() < 0.06
    mean, _ = exact.moments()
    assert ((x.mean(1) - mean) / exact.deviation()).abs().mean() < 0.2
