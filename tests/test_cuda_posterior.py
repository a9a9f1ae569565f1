"""Posteriors on a GPU: as on the CPU; there the first two tests compare runs with themselves."""

import pytest
import torch

from flowprior.inversion import Checkpoint, invert
from flowprior.physics import Gaussian
from flowprior.posterior import (
    PSGLD,
    Coupling,
    FullGaussian,
    Langevin,
    LowRank,
    TemperedSMC,
    Variational,
)
from tests.gpu import DEVICE, agree, moved, on_gpu
from tests.inversion_problems import Interrupted, blur, images_of, interrupt_at, small_glow

pytestmark = on_gpu

SIGMA, ROWS = 0.1, 5
SOLVERS = {
    "normal": Variational(FullGaussian(), draws=2),
    "low rank": Variational(LowRank(3), draws=2),
    "flow": Variational(Coupling(), draws=2),
    "chains": Langevin(chains=4, warm_up=3, leapfrog=3),
    "chains, whitened": Langevin(chains=4, warm_up=3, leapfrog=3, metric="whitened"),
    "PSGLD": PSGLD(chains=4, warm_up=3, thin=1),
    "particles": TemperedSMC(particles=8, leapfrog=3),
}


@pytest.fixture(scope="module")
def glow():
    return small_glow()


@pytest.fixture(scope="module")
def y(glow):
    return Gaussian(SIGMA).add(blur(images_of(glow, ROWS)), seed=0, indices=range(ROWS))


@pytest.mark.parametrize("name", SOLVERS)
def test_posterior_is_that_of_the_cpu(glow, y, name):
    options = {"solver": SOLVERS[name], "sigma": SIGMA, "iterations": 8, "seed": 3}
    expected = invert(glow, blur, y, **options)
    found = invert(moved(glow), blur, y.to(DEVICE), **options)
    agree(found.x, expected.x, 1e-6)
    agree(found.history, expected.history, atol=1e-3, rtol=1e-5)
    draws = [one.posterior.sample(19, seed=0) for one in (found, expected)]
    assert draws[1].std(0).amin() > 0
    agree(*draws, 1e-5)


def test_evidence_is_that_of_the_cpu(glow, y):
    options = {"solver": SOLVERS["particles"], "sigma": SIGMA, "iterations": 8}
    expected = invert(glow, blur, y, **options).posterior.log_evidence
    found = invert(moved(glow), blur, y.to(DEVICE), **options).posterior.log_evidence
    assert expected.isfinite().all()
    agree(found, expected, 1e-4)


@pytest.mark.parametrize("name", SOLVERS)
def test_killed_run_resumes(glow, y, tmp_path, name):
    options = {"solver": SOLVERS[name], "sigma": SIGMA, "iterations": 8}
    prior, there = moved(glow), y.to(DEVICE)
    expected = invert(prior, blur, there, **options)
    options["checkpoint"] = Checkpoint(tmp_path / "state.pt", seconds=0)
    with pytest.raises(Interrupted):
        invert(prior, blur, there, observers=[interrupt_at(4)], **options)
    found = invert(prior, blur, there, **options)
    assert found.x.device.type == DEVICE
    torch.testing.assert_close(found.x, expected.x, atol=1e-6, rtol=0)
    draws = [one.posterior.sample(5, seed=0) for one in (found, expected)]
    torch.testing.assert_close(*draws, atol=1e-5, rtol=0)
