"""What tells that a prior does not cover the data."""

from dataclasses import replace

import pytest
import scipy.stats
import torch

from flowprior.inversion import (
    MAP,
    Discrepancy,
    Restarts,
    TotalVariation,
    invert,
    make_problem,
    surprise,
)
from flowprior.inversion.coverage import FAR, UNLIKELY, _normal
from flowprior.physics import SNR, Gaussian, Laplace
from tests.inversion_problems import LinearGaussian, blur, identity, images_of, mask

SIGMA = 0.1
PRIOR = LinearGaussian(scale=0.2, size=8)
WORDS = "does not cover what was measured"


def data(count, operator=blur, offset=0.0):
    x = images_of(PRIOR, count, scale=1.0) + offset
    return Gaussian(SIGMA).add(operator(x), seed=0, indices=range(count))


def named(found):
    return [warning for warning in found.warnings if WORDS in warning]


def test_of_draws_of_a_linear_prior_is_bounded():
    found = invert(PRIOR, blur, data(200), sigma=SIGMA, iterations=40)
    assert not named(found)
    for level in (0.0, 0.5, 1.0, 1.5, 2.0):
        expected = min(1.0, 2 * scipy.stats.norm.sf(level))
        share = (found.surprise > level).double().mean()
        assert share < expected + 3 * (expected / 200) ** 0.5
    # The residual of the blur, which the latents explain little of, comes near its bound.
    assert (found.surprise > 0).double().mean() > 0.1


def test_is_of_the_norm_of_the_latent_and_of_the_residual():
    problem = make_problem(PRIOR, identity, data(3), sigma=SIGMA)
    z = torch.full((3, 1, 8, 8), 1e-3).double()
    z[1] = 1.3
    residual = torch.tensor([0.8, 0.9, 1.4]).double()
    found = surprise(z, residual, problem)
    squares = 64 * torch.stack([residual[0], z[1, 0, 0, 0], residual[2]]).square()
    expected = scipy.stats.norm.isf(scipy.stats.chi2.sf(squares, 64))
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=0.05)


def test_data_that_are_not_observed_do_not_count():
    y = mask(data(4, identity))
    found = invert(PRIOR, mask, y, sigma=SIGMA, iterations=40)
    seen = torch.arange(8) % 2 == 1
    alone = invert(PRIOR, lambda x: x[..., seen], y[..., seen], sigma=SIGMA, iterations=40)
    torch.testing.assert_close(found.surprise, alone.surprise)


@pytest.mark.parametrize("solver", [MAP(), Restarts(MAP(), 2), MAP(tolerance=1e-3)])
def test_other_images_are_named(solver):
    y = data(4)
    y[2] = data(4, offset=2.0)[2]
    found = invert(PRIOR, blur, y, sigma=SIGMA, solver=solver, iterations=40)
    (warning,) = named(found)
    assert warning.startswith("row 2: the surprise is up to")
    assert found.surprise[2] > FAR
    assert (found.surprise[[0, 1, 3]] < UNLIKELY).all()


def test_images_whose_loss_still_falls_are_not_named():
    y = data(2, offset=2.0)
    solver = MAP(optimizer="adam")
    found = invert(PRIOR, blur, y, sigma=SIGMA, solver=solver, iterations=3)
    assert (found.surprise > FAR).all()
    assert not named(found)


@pytest.mark.parametrize(
    "solver",
    [
        MAP(beta=0.5),
        MAP(penalty="log_density"),
        MAP(penalty="none"),
        MAP(misfit=Gaussian(0.2)),
        Discrepancy(MAP()),
        TotalVariation(1.0),
    ],
)
def test_nothing_is_said_of_other_minima(solver):
    found = invert(PRIOR, blur, data(2, offset=2.0), sigma=SIGMA, solver=solver, iterations=5)
    assert found.surprise is None
    assert not named(found)


def test_it_takes_normal_noise():
    y = data(2, offset=2.0)
    assert invert(PRIOR, blur, y, noise=Laplace(SIGMA), iterations=3).surprise is None
    assert invert(PRIOR, blur, y, noise=SNR(10.0), iterations=3).surprise is not None
    assert invert(PRIOR, blur, y, solver=MAP(misfit=Gaussian(SIGMA))).surprise is None


@pytest.mark.parametrize("count", [1, 5, 17, 33])
def test_an_image_does_not_depend_on_its_batch(count):
    y = data(33)
    whole = invert(PRIOR, blur, y, sigma=SIGMA, iterations=5).surprise
    part = invert(PRIOR, blur, y[-count:], sigma=SIGMA, iterations=5, indices=range(33 - count, 33))
    assert torch.equal(part.surprise, whole[-count:])


def test_complex_data_count_twice():
    y = data(2, identity)
    problem = make_problem(PRIOR, identity, y, sigma=SIGMA)
    twice = replace(problem, y=torch.complex(y, y))
    residual, z = torch.full((2,), 1.2).double(), torch.zeros(2, 64).double()
    expected = scipy.stats.norm.isf(scipy.stats.chi2.sf(1.44 * 128, 128))
    found = surprise(z, residual, twice)
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=0, atol=0.05)


@pytest.mark.parametrize("count", [1, 5, 17, 33])
def test_a_surprise_does_not_depend_on_its_batch(count):
    generator = torch.Generator().manual_seed(0)
    squares, degrees = 100 * torch.rand(200, generator=generator).double(), torch.tensor(60)
    whole = _normal(squares, degrees.expand(200))
    parts = [_normal(part, degrees.expand(len(part))) for part in squares.split(count)]
    assert torch.equal(torch.cat(parts), whole)
