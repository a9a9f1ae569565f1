"""Summaries of posteriors."""

import re

import pytest
import torch

from flowprior.figures import png_bytes
from flowprior.physics import limited_angle_ct
from flowprior.posterior import summarise
from flowprior.posterior.summaries import Moments, chunks
from tests.exact_posterior import ExactPosterior, exact_posterior


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def posterior():
    return ExactPosterior(normal(2, 1, 4, 6), 0.1 * normal(24, 24, seed=1))


@pytest.mark.parametrize("chunk", [7, 40, 100])
def test_chunks_summarise_what_all_draws_do(posterior, chunk):
    found = summarise(posterior, 40, seed=3, chunk=chunk)
    draws = torch.cat(list(chunks(posterior, 40, 3, chunk)))
    assert draws.shape == (40, 2, 1, 4, 6)
    torch.testing.assert_close(found.mean, draws.mean(0))
    torch.testing.assert_close(found.deviation, draws.std(0))
    expected = (draws - draws.mean(0)).abs().mean(0)
    torch.testing.assert_close(found.absolute_deviation, expected)
    spectra = torch.fft.fft2(draws, norm="ortho")
    squares = (spectra - spectra.mean(0)).abs().square().sum(0) / 39
    expected = torch.fft.fftshift(squares.sqrt(), dim=(-2, -1))
    torch.testing.assert_close(found.fourier_deviation, expected)


def test_moments_of_large_numbers():
    """Sums of squares would have no digit left."""
    draws = 1e8 + normal(1000, 3)
    moments = Moments()
    for part in draws.split(17):
        moments.update(part)
    torch.testing.assert_close(moments.deviation, draws.std(0), rtol=1e-6, atol=0)


def test_memory_does_not_grow_with_the_number_of_draws(posterior):
    most = 0

    class Watched:
        def sample(self, count, *, seed):
            nonlocal most
            most = max(most, count)
            return posterior.sample(count, seed=seed)

    summarise(Watched(), 500, chunk=8)
    assert most == 8


class Changed:
    """A posterior whose draws are changed."""

    def __init__(self, posterior, change):
        self.posterior, self.change = posterior, change

    def sample(self, count, *, seed):
        return self.change(self.posterior.sample(count, seed=seed))


def spoiled(draws):
    draws[-1, 1, 0, 2, 2] = torch.inf
    return draws


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda draws: draws[: len(draws) // 2], "must give 16 draws of images, got (8, 2, 1, 4"),
        (lambda draws: draws.transpose(0, 1), "must give 16 draws of images, got (2, 16, 1, 4"),
        (lambda draws: draws[:, 0], "must give 16 draws of images, got (16, 1, 4"),
        (spoiled, "draws of row 1 are not finite"),
    ],
)
def test_draws_that_are_no_draws_are_named(posterior, change, words):
    with pytest.raises(ValueError, match=f"^posterior.*{re.escape(words)}"):
        summarise(Changed(posterior, change), 40, chunk=16)


@pytest.mark.parametrize("wrong", [{"count": 1}, {"seed": -1}, {"chunk": 0}])
def test_wrong_arguments_are_named(posterior, wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}"):
        summarise(posterior, **{"count": 4, **wrong})


def test_the_missing_cone_lights_up():
    size, sigma = 16, 0.05
    shape = (1, size, size)
    physics = limited_angle_ct(shape).double()
    basis = torch.eye(size * size).double().view(-1, *shape)
    matrix = physics.A(basis).flatten(1).T
    truth = 0.5 + 0.2 * normal(1, *shape)
    y = truth.flatten(1) @ matrix.T + sigma * normal(1, len(matrix), seed=1)
    found = summarise(exact_posterior(matrix, y, sigma, shape), 300)
    frequency = torch.fft.fftshift(torch.fft.fftfreq(size))
    down, across = torch.meshgrid(frequency, frequency, indexing="ij")
    radius = torch.hypot(down, across)
    seen = (radius > 0.1) & (radius < 0.4)
    angle = torch.atan2(down.abs(), across.abs()).rad2deg()
    deviation = found.fourier_deviation[0, 0]
    missing = deviation[seen & (angle < 25)].mean()
    assert missing > 2 * deviation[seen & (angle > 35)].mean()


def test_figures():
    wide = ExactPosterior(normal(2, 3, 4, 4), 0.1 * normal(48, 48, seed=1))
    for posterior in (ExactPosterior(normal(2, 1, 4, 4), normal(16, 16)), wide):
        found = summarise(posterior, 4)
        figure = found.figure(1, truth=posterior.means)
        titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
        deviations = ["deviation", "absolute deviation", "fourier deviation"]
        assert titles == ["truth", "mean", "|mean − truth|", *deviations]
        scales = [axis.images[0].get_clim() for axis in figure.axes[:6]]
        assert scales[:2] == [(0, 1), (0, 1)]
        assert scales[2] == scales[3] == scales[4]
        assert png_bytes(figure)
