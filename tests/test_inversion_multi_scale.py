"""From low to high frequencies: escapes from wrong valleys, and is a chain of single inversions."""

import copy
import math

import pytest
import torch
from torch import nn

from flowprior.inversion import MAP, Checkpoint, MultiScale, Restarts, TotalVariation, invert
from flowprior.priors import Module

SAMPLES = 64


class Delay(nn.Module):
    """A wavelet of 20 Hz that comes after 0.2 + x/4 seconds, of 64 samples in half a second."""

    lowpass = None

    def A(self, x):
        times = torch.arange(SAMPLES, dtype=x.dtype) / (2 * SAMPLES)
        square = (20 * math.pi * (times - 0.2 - x.flatten(1).mean(1, keepdim=True) / 4)).square()
        return self.lowpassed((1 - 2 * square) * torch.exp(-square))

    def lowpassed(self, record):
        if self.lowpass is None:
            return record
        highest = int(self.lowpass / 2)
        spectrum = torch.fft.rfft(record, norm="ortho")[..., : highest + 1]
        return torch.fft.irfft(spectrum, 2 * highest + 1, norm="ortho")

    def with_lowpass(self, lowpass):
        other = copy.copy(self)
        other.lowpass = lowpass
        return other


@pytest.fixture
def wide():
    """x = z: of z ~ N(0, 1)."""
    return Module(nn.Unflatten(1, (1, 1, 1)), (1, 1, 1), [1]).eval()


def data():
    truth = torch.tensor([0.4, -0.3, 0.1]).view(3, 1, 1, 1)
    return truth, Delay().A(truth)


OPTIONS = {"sigma": 0.01, "iterations": 28}
SOLVER = MultiScale(MAP(beta=0.01), frequencies=(5.0, 10.0), stage=10)


def test_it_finds_what_all_frequencies_at_once_do_not(wide):
    truth, y = data()
    start = torch.zeros(3, 1)
    plain = invert(wide, Delay(), y, solver=MAP(beta=0.01), latents=start, **OPTIONS)
    assert (plain.x - truth).abs().max() > 0.1  # the wavelet of row 0 is two periods late
    found = invert(wide, Delay(), y, solver=SOLVER, latents=start, **OPTIONS)
    assert (found.x - truth).abs().max() < 1e-3


@pytest.mark.parametrize("latents", [True, False])
def test_it_is_a_chain_of_inversions(wide, latents):
    _, y = data()
    solver, prior = (MAP(beta=0.01), wide) if latents else (TotalVariation(0.1), None)
    chain, calls = torch.zeros(3, 1) if latents else torch.full((3, 1, 1, 1), 0.2), 0
    start = {"latents": chain} if latents else {"start": chain}
    whole = MultiScale(solver, frequencies=(5.0, 10.0), stage=3)
    found = invert(prior, Delay(), y, sigma=0.1, solver=whole, iterations=10, **start)
    for frequency, iterations in ((5.0, 3), (10.0, 3), (None, 4)):
        physics = Delay().with_lowpass(frequency)
        options = {"sigma": 0.1, "solver": solver, "iterations": iterations}
        one = invert(prior, physics, physics.lowpassed(y), **options, **start)
        start = {"latents": one.z} if latents else {"start": one.x}
        calls = calls + one.calls.forward
    assert torch.equal(found.x, one.x)
    assert torch.equal(found.history["loss"][-1], one.history["loss"][-1])
    assert torch.equal(found.calls.forward, calls)


def test_rows_are_independent(wide):
    _, y = data()
    options = {"solver": SOLVER, "sigma": 0.1, "iterations": 25}
    together = invert(wide, Delay(), y, **options)
    for row in range(3):
        alone = invert(wide, Delay(), y[row : row + 1], **options)
        assert torch.equal(alone.x[0], together.x[row])


@pytest.mark.parametrize("at", [10, 24])
def test_it_goes_on_from_a_checkpoint(wide, at, tmp_path):
    _, y = data()
    path = Checkpoint(tmp_path / "run.ckpt", seconds=0)
    expected = invert(wide, Delay(), y, solver=SOLVER, **OPTIONS)
    invert(wide, Delay(), y, solver=SOLVER, sigma=0.01, iterations=at, checkpoint=path)
    found = invert(wide, Delay(), y, solver=SOLVER, checkpoint=path, **OPTIONS)
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.history["loss"], expected.history["loss"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"frequencies": (10.0, 5.0)}, "frequencies"),
        ({"frequencies": (0.0,)}, "frequencies"),
        ({"stage": 0}, "stage"),
        ({"solver": "MAP"}, "solver"),
    ],
)
def test_wrong_options_are_named(options, named):
    with pytest.raises(ValueError, match=rf"^{named} [^\n]*$"):
        MultiScale(**{"solver": MAP(), **options})


def test_problems_without_frequencies(wide):
    _, y = data()
    with pytest.raises(ValueError, match=r"^MultiScale needs an operator that has `with_lowpass`"):
        invert(wide, Delay().A, y, solver=SOLVER, sigma=0.1)
    low = Delay().with_lowpass(10.0)
    with pytest.raises(ValueError, match=r"^MultiScale needs all data"):
        invert(wide, low, low.lowpassed(y), solver=SOLVER, sigma=0.1)
    with pytest.raises(ValueError, match=r"^MultiScale cannot go on from latents of Restarts"):
        invert(wide, Delay(), y, solver=MultiScale(Restarts(MAP(), 2), (5.0,)), sigma=0.1)
    with pytest.raises(ValueError, match=r"^MultiScale of MAP"):
        invert(None, Delay(), y, solver=SOLVER, sigma=0.1, image_shape=(1, 1, 1))
