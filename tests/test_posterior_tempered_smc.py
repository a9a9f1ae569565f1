"""Particles: known posteriors and evidences, several modes, impossible draws, warnings."""

import math

import pytest
import torch
from torch import nn

from flowprior.inversion import MultiScale, Restarts, invert
from flowprior.posterior import TemperedSMC
from flowprior.posterior.tempered_smc import _resampled
from flowprior.priors import Module
from lightning_modules import PosteriorModule
from tests.inversion_problems import identity
from tests.test_inversion_module import fit
from tests.test_posterior import Known, surprisal

SIGMA = 0.1


class Squares(nn.Module):
    """x = ((z − 0.2)², z'): where x is known z has two modes, the one nearer to 0 the likelier."""

    def __init__(self):
        super().__init__()
        self.register_buffer("middle", torch.tensor(0.2, dtype=torch.float64))

    def forward(self, z):
        return torch.cat([(z[:, :1] - self.middle).square(), z[:, 1:]], 1).view(-1, 1, 1, 2)


class Roots(Squares):
    """x = (√z, z'): half of all draws of the prior have no image."""

    def forward(self, z):
        return torch.cat([z[:, :1].sqrt() + 0 * self.middle, z[:, 1:]], 1).view(-1, 1, 1, 2)


def prior_of(net):
    return Module(net, (1, 1, 2), [2]).eval().requires_grad_(False)


def grid_posterior(function, y, half):
    """Values of z on a grid, their weights, and the log evidence of x = function(z) = y."""
    z = torch.linspace(-half, half, 20001).double()
    log_weight = -0.5 * ((function(z) - y) / SIGMA).square() - 0.5 * z.square()
    log_weight = log_weight.nan_to_num(nan=-torch.inf)
    evidence = log_weight.logsumexp(0) + math.log(z[1] - z[0]) - 0.5 * math.log(2 * math.pi)
    return z, log_weight.softmax(0), evidence


def solve(net, y, **options):
    solver = TemperedSMC(**{"particles": 1000, "leapfrog": 4, **options})
    y = torch.tensor([[[[y, 0.0]]]]).double()
    return invert(prior_of(net), identity, y, sigma=SIGMA, solver=solver, iterations=60)


def test_particles_have_a_known_posterior_and_evidence():
    known = Known(count=3)
    found = known.solve(TemperedSMC(particles=1500, leapfrog=8), 40)
    z = found.posterior.particles
    assert ((z.mean(1) - known.mean) / known.deviation).abs().max() < 0.12
    assert (z.std(1) / known.deviation - 1).abs().max() < 0.08
    torch.testing.assert_close(z.mean(1).view_as(found.x) * 0.2 + 0.5, found.x)
    evidence = found.posterior.log_evidence
    torch.testing.assert_close(evidence, -surprisal(known), rtol=0, atol=0.15)
    assert found.warnings == ()
    assert (found.history["power"].diff(dim=0) >= 0).all()
    assert (found.history["power"][-1] == 1).all()


def test_each_mode_has_its_share():
    found = solve(Squares(), 1.0)
    grid, weights, evidence = grid_posterior(lambda z: (z - 0.2).square(), 1.0, 5)
    expected = weights[grid > 0.2].sum()
    assert 0.3 < expected < 0.45
    z = found.posterior.particles[0, :, 0]
    assert abs((z > 0.2).double().mean() - expected) < 0.06
    # The other number is measured to be 0 directly.
    evidence = evidence - 0.5 * math.log(1 + 1 / SIGMA**2)
    assert abs(found.posterior.log_evidence[0] - evidence) < 0.2


def test_impossible_draws_of_the_prior_die_out():
    found = solve(Roots(), 0.8)
    assert found.finite.all()
    assert found.x.isfinite().all()
    z = found.posterior.particles[0, :, 0]
    grid, weights, _ = grid_posterior(torch.sqrt, 0.8, 5)
    mean = (weights * grid).sum()
    assert (z > 0).all()
    assert found.warnings == ()
    assert abs(z.mean() - mean) < 0.03
    assert abs(z.std() / (weights * (grid - mean).square()).sum().sqrt() - 1) < 0.1


def test_nothing_possible_is_not_finite():
    class Never(Squares):
        def forward(self, z):
            return (super().forward(z) + 1).log() - torch.inf + self.middle

    found = solve(Never(), 0.8, particles=8)
    assert not found.finite.any()


def test_too_few_iterations_are_said():
    found = Known().solve(TemperedSMC(particles=64), 3)
    (warning,) = [w for w in found.warnings if getattr(w, "kind", "") == "power_below_1"]
    power = found.history["power"][-1, 0]
    assert 0 < power < 1
    assert f"a power of {power:.3g}, not 1" in warning


def test_particles_that_hardly_move_are_said():
    kinds = {}
    for leapfrog in (1, 12):
        found = Known().solve(TemperedSMC(moves=1, leapfrog=leapfrog), 60)
        kinds[leapfrog] = [getattr(w, "kind", "") for w in found.warnings]
    assert kinds == {1: ["hardly_moved"], 12: []}


@pytest.mark.parametrize("power", [0.0, 1e-9])
def test_resampling_by_hand(power):
    """Weights by the ESS, the evidence by the mean weight, offspring within one of their share."""
    misfit = torch.tensor([[0.0, 1.0, 2.0, torch.inf, torch.nan, 30.0, 1e9, 0.5]]).double()
    uniform, power = torch.full((1,), 0.3).double(), torch.full((1,), power).double()
    new, gain, places = _resampled(0.5, power, misfit, uniform)
    weights = (-(new - power) * misfit.nan_to_num(nan=torch.inf)).exp()
    assert power < new < 1
    effective = weights.sum() ** 2 / weights.square().sum()
    assert abs(effective - 0.5 * 6) < 1e-6  # six of eight are possible
    torch.testing.assert_close(gain, weights.mean(1).log())
    offspring = torch.bincount(places[0], minlength=8)
    expected = 8 * weights[0] / weights.sum()
    assert ((offspring - expected).abs() < 1).all()
    assert places.diff().min() >= 0


def test_the_first_power_may_be_tiny():
    misfit = 1e20 * torch.arange(1.0, 9.0, dtype=torch.float64)[None]
    new, _, places = _resampled(0.5, torch.zeros(1).double(), misfit, torch.zeros(1).double())
    assert 0 < new < 1e-19
    assert places.unique().numel() > 2


def test_few_possible_draws_are_said():
    class Rare(Squares):
        """x = (√(z − 2.2), z'): one in 72 draws of the prior has an image."""

        def forward(self, z):
            first = (z[:, :1] - 2.2).sqrt() + 0 * self.middle
            return torch.cat([first, z[:, 1:]], 1).view(-1, 1, 1, 2)

    y, ends = torch.tensor([[[[0.3, 0.0]]]]).double(), set()
    for seed in range(20):
        options = {"sigma": SIGMA, "iterations": 40, "seed": seed}
        found = invert(prior_of(Rare()), identity, y, solver=TemperedSMC(leapfrog=1), **options)
        if found.finite.all():
            few = [warning.kind for warning in found.warnings].count("few_possible")
            assert few == 1
            ends.add(True)
        else:
            ends.add(None)
    assert ends == {True, None}


def test_before_the_first_iteration_impossible_draws_do_not_count():
    found = invert(
        prior_of(Roots()),
        identity,
        torch.tensor([[[[0.8, 0.0]]]]).double(),
        sigma=SIGMA,
        solver=TemperedSMC(),
        iterations=0,
    )
    assert found.finite.all()
    assert found.x.isfinite().all()
    assert found.history["misfit"].isfinite().all()
    assert found.posterior is None


def test_a_module_begins_anew():
    """Its parameter is where the last fit ended, which must not be taken for draws of the prior."""
    known = Known()
    options = {"sigma": known.sigma, "solver": TemperedSMC(particles=16), "iterations": 20}
    module = PosteriorModule(known.prior, known.physics, known.y, **options)
    evidence = []
    for _ in range(2):
        fit(module)
        evidence.append(module.posterior.log_evidence)
    assert torch.equal(*evidence)


def test_given_latents_are_refused():
    known = Known()
    for latents in (torch.zeros(1, 1, 4, 4).double(), nn.Parameter(torch.zeros(64, 16).double())):
        with pytest.raises(ValueError, match="TemperedSMC has starts of its own"):
            known.solve(TemperedSMC(), 1, latents=latents)
        with pytest.raises(ValueError, match="TemperedSMC has starts of its own"):
            PosteriorModule(
                known.prior,
                known.physics,
                known.y,
                sigma=known.sigma,
                solver=TemperedSMC(),
                latents=latents,
            )
    for wrapper in (Restarts, lambda solver: MultiScale(solver, [1.0])):
        with pytest.raises(ValueError, match="must start from given latents"):
            wrapper(TemperedSMC())
