"""From low to high frequencies: escapes from wrong valleys, and is a chain of single inversions."""

import copy
import math
import re
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from flowprior.inversion import (
    MAP,
    Checkpoint,
    MultiScale,
    Restarts,
    TotalVariation,
    invert,
    make_problem,
)
from flowprior.inversion.convergence import fall
from flowprior.posterior import Langevin
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


OPTIONS = {"sigma": 0.01, "iterations": 40}
SOLVER = MultiScale(MAP(beta=0.01), frequencies=(3.0, 6.0, 12.0), stage=8)


def test_it_finds_what_all_frequencies_at_once_do_not(wide):
    truth, y = data()
    truth, y = truth.repeat(5, 1, 1, 1), y.repeat(5, 1)
    start = torch.linspace(-0.04, 0.04, 5).repeat_interleave(3).unsqueeze(1)
    plain = invert(wide, Delay(), y, solver=MAP(beta=0.01), latents=start, **OPTIONS)
    assert (plain.x - truth)[::3].abs().min() > 0.1  # the wavelets of 0.4 are two periods late
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
        ({"frequencies": 5.0}, "frequencies"),
    ],
)
def test_wrong_options_are_named(options, named):
    with pytest.raises(ValueError, match=rf"^{named} [^\n]*$"):
        MultiScale(**{"solver": MAP(), **options})


def test_lists_of_frequencies_are_as_tuples():
    listed, expected = (MultiScale(MAP(), kind([4, 5.0])) for kind in (list, tuple))
    assert listed == expected
    assert hash(listed) == hash(expected)


@pytest.mark.parametrize(("iterations", "frequency"), [(3, 4), (4, 4), (5, 8), (8, 8), (9, None)])
def test_data_that_were_not_used_are_told(wide, iterations, frequency):
    _, y = data()
    solver = MultiScale(MAP(), (4.0, 8.0), stage=4)
    found = invert(wide, Delay(), y, solver=solver, sigma=0.1, iterations=iterations)
    told = [warning for warning in found.warnings if warning.kind == "low_frequencies"]
    expected = f"only data up to {frequency} Hz were used: it takes more than 8 iterations"
    assert told == ([] if frequency is None else [expected])


def test_a_fall_is_judged_on_the_same_data(wide):
    _, y = data()
    solver = MultiScale(MAP(optimizer="adam", learning_rate=0.003), (5.0,), stage=10)
    start = torch.full((3, 1), 0.25)
    options = {"solver": solver, "sigma": 0.01, "latents": start}
    found = invert(wide, Delay(), y, iterations=15, **options)
    loss = found.history["loss"]
    assert (loss[-1] > loss[0]).any()  # of more data
    expected = 100 * (loss[-2] - loss[-1]).clamp(min=0) / loss[-1]
    torch.testing.assert_close(fall(found.history), expected)
    first = invert(wide, Delay(), y, iterations=11, **options)
    assert fall(first.history).isnan().all()  # of one loss


def test_losses_that_still_fall_after_the_last_change():
    loss = torch.tensor([*range(124, 84, -1), 2594.9, 939.0, 886.0, 703.0]).double()
    scale = torch.tensor([*40 * [0.0], *4 * [1.0]])
    history = {"loss": loss[:, None], "scale": scale[:, None]}
    assert fall(history).item() == pytest.approx(100 * (886 - 703) / 703)
    at_once = {**history, "scale": torch.zeros(44, 1)}
    assert fall(at_once).item() == fall({"loss": loss[:, None]}).item() == 0


def test_a_posterior_is_that_of_all_data(wide):
    _, y = data()
    y = y[:1]
    solver = Langevin(chains=2, warm_up=4, descent_iterations=2)
    whole = MultiScale(solver, (5.0,), stage=6)
    assert whole.posterior_after == 11
    assert MultiScale(MAP(), (5.0,)).posterior_after is None
    options = {"sigma": 0.1, "solver": whole}
    short = invert(wide, Delay(), y, iterations=6, **options)
    assert short.posterior is None
    assert [warning.kind for warning in short.own_warnings] == ["low_frequencies"]
    found = invert(wide, Delay(), y, iterations=11, **options)
    draws = found.posterior.sample(3, seed=0)
    assert draws.shape == (3, 1, 1, 1, 1)
    # With all data from where the chains were: the same draws.
    run = whole.begin(make_problem(wide, Delay(), y, sigma=0.1))
    assert run.averages
    for _ in range(6):
        run.step()
    latents = run.run.v.detach().clone()
    alone = invert(wide, Delay(), y, sigma=0.1, solver=solver, latents=latents, iterations=5)
    assert torch.equal(draws, alone.posterior.sample(3, seed=0))


def test_where_no_descent_is_found_is_told(wide):
    _, y = data()
    found = invert(wide, Delay(), y, solver=MAP(), sigma=1e-3, iterations=60)
    stuck = [warning for warning in found.warnings if warning.kind == "stuck"]
    assert stuck
    whole = MultiScale(MAP(), (31.0,), stage=60)
    found = invert(wide, Delay(), y, solver=whole, sigma=1e-3, iterations=120)
    later = [warning for warning in found.warnings if warning.kind == "stuck"]
    assert later
    number = int(re.search(r"stopped by iteration (\d+),", later[0]).group(1))
    assert 60 <= number <= 120


def test_the_run_shows_what_its_solver_has(wide):
    _, y = data()
    run = SOLVER.begin(make_problem(wide, Delay(), y, sigma=0.01))
    assert run.optimizer is run.run.optimizer
    assert not run.averages
    assert not run.tests_prior  # of low frequencies alone
    assert (run.ended == -1).all()
    for _ in range(21):
        run.step()
    assert run.tests_prior == run.run.tests_prior
    assert run.posterior() is None


@dataclass(frozen=True)
class Blind(TotalVariation):
    """Says that it makes no use of a start."""

    uses_start = False


def test_a_start_that_is_not_used_is_told():
    _, y = data()
    for solver, count in ((TotalVariation(0.1), 0), (Blind(0.1), 1)):
        options = {"solver": MultiScale(solver), "sigma": 0.1, "iterations": 1}
        found = invert(None, Delay(), y, start=torch.full((3, 1, 1, 1), 0.5), **options)
        assert sum("makes no use of start" in warning for warning in found.warnings) == count


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
