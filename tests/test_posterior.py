"""Solvers with a posterior: known posteriors, batches, kills, options, diagnostics."""

import itertools
import math
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats

from flowprior.inversion import Checkpoint, Posterior, by_rows, invert
from flowprior.latent import Latent
from flowprior.posterior import (
    PSGLD,
    ChainRun,
    Coupling,
    Family,
    FullGaussian,
    Langevin,
    LowRank,
    Sampler,
    TemperedSMC,
    Variational,
    normal_draws,
)
from flowprior.posterior.diagnostics import effective_draws, r_hat
from flowprior.posterior.variational import fall_of_noisy
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
    "Langevin, dense": Langevin(
        chains=3, warm_up=12, leapfrog=1, metric="dense", descent_iterations=2
    ),
    "Langevin, whitened": Langevin(
        chains=2, warm_up=12, leapfrog=2, metric="whitened", descent_iterations=2
    ),
    "PSGLD": PSGLD(chains=2, warm_up=4, thin=1),
    "TemperedSMC": TemperedSMC(particles=8, moves=2, leapfrog=2),
    "Coupling": Variational(Coupling(hidden=4), draws=4, descent_iterations=3, whiten=False),
    "LowRank": Variational(LowRank(2), draws=4, descent_iterations=0, whiten=False),
    "FullGaussian": Variational(FullGaussian(), draws=2, descent_iterations=2, whiten=False),
    "whitened": Variational(LowRank(2), draws=2, descent_iterations=2, whiten=True),
}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Known:
    """A linear problem with its exact posterior in the latent: means (B, n) and covariance."""

    def __init__(self, size=4, measurements=8, sigma=0.1, count=1):
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


def test_psgld_comes_near_a_known_posterior(known):
    """Its draws are too wide, by an error that falls with the step size."""
    excess = []
    for step_size, iterations in ((0.8, 1500), (0.1, 2500)):
        found = known.solve(PSGLD(step_size, chains=16, thin=1), iterations)
        z = found.posterior.draws.flatten(3).transpose(1, 2).flatten(0, 1)
        assert ((z.mean(0) - known.mean) / known.deviation).abs().max() < 0.2
        excess.append((z.std(0) / known.deviation - 1).mean().item())
        large = any("a Metropolis test would accept" in w for w in found.warnings)
        assert large == (step_size == 0.8)
    assert 0.04 < excess[0] < 0.12
    assert abs(excess[1]) < 0.03


def test_chains_that_become_nan_stay_where_they_were(known):
    """Of one image among others, which go on."""
    both = Known(count=2)
    spoilt = both.y.clone()
    solver = PSGLD(0.1, chains=2, warm_up=4, thin=1)

    def physics(x):
        data = both.physics(x)
        far = torch.arange(len(x)).view(-1, 1) % 2 == 1
        return torch.where(far & (len(seen) > 6), torch.nan, data)

    seen = []
    options = {"sigma": both.sigma, "solver": solver, "iterations": 12}
    watch = [lambda iteration, run: seen.append(run.point.z.clone())]
    found = invert(both.prior, physics, spoilt, observers=watch, **options)
    assert not found.finite.any()  # rows of the operator are chains of all images
    assert found.x.isfinite().all()
    assert found.posterior.draws.isfinite().all()
    assert torch.equal(seen[-1], seen[7])
    assert "NaN" in found.warnings[0]


@pytest.mark.parametrize("rows", [2, 5, 12])
def test_latents_of_a_wrong_number_of_rows(rows):
    known, message = Known(count=3), f"latents must have 3 rows, or 6 .* got {rows}"
    for solver in (PSGLD(chains=2), Langevin(chains=2)):
        with pytest.raises(ValueError, match=message):
            known.solve(solver, 1, latents=torch.zeros(rows, 16).double())


def test_a_sampler_of_ones_own_has_its_options_and_state(known, tmp_path):
    @dataclass(frozen=True)
    class Own(Sampler):
        def begin(self, problem):
            return OwnRun(self, problem, self.start(problem))

    class OwnRun(ChainRun):
        STATE = ("moved",)
        moved = 0

        def move(self):
            self.moved += 1
            z = 0.9 * self.point.z + normal_draws(self.problem, (self.iteration, 0), 3)
            self.point = by_rows(self.at, z, self.problem.rows, size=self.rows_per_call)

    solver = Own(chains=3, warm_up=2)
    expected = known.solve(solver, 7)
    checkpoint = Checkpoint(tmp_path / "state.pt", seconds=0)
    with pytest.raises(Interrupted):
        known.solve(solver, 7, observers=[interrupt_at(4)], checkpoint=checkpoint)
    runs = []
    watch = [lambda _, run: runs.append(run)]
    again = Checkpoint(checkpoint.path, seconds=0)
    found = known.solve(solver, 7, checkpoint=again, observers=watch)
    assert torch.equal(found.posterior.draws, expected.posterior.draws)
    assert found.posterior.draws.shape[0] == 5
    assert runs[-1].moved == 7
    with pytest.raises(ValueError, match="thin must be an integer"):
        Own(thin=0)


def test_psgld_makes_the_published_step(known):
    """Equal to algorithm 1 written out, from a given start and the same noise."""
    solver, start = PSGLD(0.1, decay=0.9, chains=2, warm_up=3, thin=1), normal(1, 16, seed=5)
    seen = []
    known.solve(
        solver, 3, latents=start, observers=[lambda _, run: seen.append((run.point, run.square))]
    )
    for (old, square), (new, _) in itertools.pairwise(seen):
        square = 0.9 * square + 0.1 * old.gradient**2
        drift = -0.1 / 2 * old.gradient / (1e-5 + square.sqrt())
        noise = (new.z - old.z - drift) / (0.1 / (1e-5 + square.sqrt())).sqrt()
        assert noise.abs().max() < 5
        assert not torch.allclose(noise[:, 0], noise[:, 1])  # chains have noise of their own
        centred = old.z - known.mean
        expected = centred @ known.covariance.inverse()
        torch.testing.assert_close(old.gradient, expected)


def exact_moments(posterior, size):
    """Means (B, n) and covariances (B, n, n) of distributions that are normal."""
    units = torch.cat([torch.zeros(1, size), torch.eye(size)]).double()
    rows = posterior.family(posterior.parameters, units.expand(len(posterior.parameters), -1, -1))
    root = rows[:, 1:] - rows[:, :1]
    return rows[:, 0], root.mT @ root


@pytest.mark.parametrize(("family", "iterations"), [(FullGaussian(), 1000), (LowRank(8), 2500)])
def test_variational_finds_a_known_posterior(known, family, iterations):
    found = known.solve(Variational(family, whiten=False), iterations)
    mean, covariance = exact_moments(found.posterior, 16)
    assert ((mean - known.mean) / known.deviation).abs().max() < 0.05
    error = torch.linalg.matrix_norm(covariance - known.covariance, ord=2)
    assert (error < 0.05 * torch.linalg.matrix_norm(known.covariance, ord=2)).all()
    deviation = covariance.diagonal(dim1=1, dim2=2).sqrt()
    assert (deviation / known.deviation - 1).abs().max() < 0.05
    # At β = 1 the objective reaches −log of the evidence.
    expected = surprisal(known)
    torch.testing.assert_close(found.history["objective"][-1], expected, rtol=0.01, atol=0.1)


def surprisal(known):
    """−log of the evidence, less the constant of the likelihood, (B,)."""
    covariance = 0.04 * known.matrix @ known.matrix.T + known.sigma**2 * torch.eye(8)
    centred = known.y - 0.5 * known.matrix.sum(1)
    normal = torch.distributions.MultivariateNormal(torch.zeros(8).double(), covariance)
    return -normal.log_prob(centred) - 0.5 * 8 * math.log(2 * math.pi * known.sigma**2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whitened_distribution_starts_at_a_known_posterior(known, family):
    solver = Variational(family, draws=2, descent_iterations=60, whiten=True)
    found = known.solve(solver, 0)
    # No draw differs from the mean: the distribution is the posterior.
    torch.testing.assert_close(found.history["objective"][0], surprisal(known), rtol=1e-6, atol=0)
    coordinates = found.posterior.coordinates
    covariance = coordinates.root @ coordinates.root.mT
    torch.testing.assert_close(covariance, known.covariance.expand_as(covariance))
    torch.testing.assert_close(found.z.flatten(1), known.mean, rtol=0, atol=1e-5)
    z = found.posterior.latents(4000, seed=0)
    assert ((z.mean(0) - known.mean) / known.deviation).abs().max() < 0.08
    assert (z.std(0) / known.deviation - 1).abs().max() < 0.05


@pytest.mark.parametrize("family", [FullGaussian(), LowRank(16), Coupling()])
def test_steps_do_not_lead_large_latents_away_from_the_posterior(family):
    """All gradients are noise: it begins at the exact posterior of 256 latents."""
    known = Known(size=16, measurements=64)
    posterior = known.solve(Variational(family, draws=8), 60).posterior
    z, coordinates = posterior.latents(500, seed=1).transpose(0, 1), posterior.coordinates
    w = torch.linalg.solve(coordinates.root, (z - coordinates.centre[:, None]).mT).mT
    log_prob = family.log_prob(posterior.parameters, w) - coordinates.log_det(torch.arange(1))
    exact = torch.distributions.MultivariateNormal(known.mean[:, None], known.covariance)
    divergence = (log_prob - exact.log_prob(z)).mean()
    assert divergence < 0.02 * 256


def test_only_small_latents_are_whitened():
    prior = LinearGaussian(size=33)
    y = torch.full((1, 1, 33, 33), 0.5).double()
    with pytest.raises(ValueError, match=r"whiten=True takes latents of at most 1024 numbers, got"):
        invert(prior, identity, y, sigma=0.1, solver=Variational(whiten=True), iterations=1)


def test_a_flow_finds_a_known_posterior(known):
    found = known.solve(Variational(Coupling(depth=4, hidden=16), whiten=False), 1500)
    z = found.posterior.latents(20_000, seed=0)
    assert ((z.mean(0) - known.mean) / known.deviation).abs().max() < 0.05
    assert (z.std(0) / known.deviation - 1).abs().max() < 0.05
    error = torch.cov(z[:, 0].T) - known.covariance
    largest = torch.linalg.matrix_norm(known.covariance, ord=2)
    assert torch.linalg.matrix_norm(error, ord=2) < 0.1 * largest


def test_without_the_entropy_the_distribution_collapses(known):
    spread = {}
    for beta in (0.0, 0.5, 1.0):
        solver = Variational(LowRank(8), beta=beta, start_scale=0.1, whiten=False)
        found = known.solve(solver, 800)
        spread[beta] = found.posterior.latents(500, seed=0).std(0).mean() / known.deviation.mean()
    assert spread[0.0] < 0.05
    assert 0.55 < spread[0.5] < 0.85  # √½
    assert 0.95 < spread[1.0] < 1.05


@pytest.fixture(scope="module")
def decoder():
    return small_decoder().float()


@pytest.mark.parametrize("name", SOLVERS)
def test_rows_are_the_same_in_every_batch(decoder, name):
    y = blur(0.5 + 0.2 * normal(33, 1, 4, 4)).float()
    options = {"sigma": 0.1, "solver": SOLVERS[name], "iterations": 16}

    def solved(rows):
        found = invert(decoder, blur, y[rows], indices=rows, **options)
        return found, found.posterior.sample(3, seed=5)

    alone = [solved([row]) for row in range(33)]
    for count in (5, 17, 33):
        rows = torch.randperm(33, generator=torch.Generator().manual_seed(count))[:count].tolist()
        found, samples = solved(rows)
        for place, row in enumerate(rows):
            expected, expected_samples = alone[row]
            assert torch.equal(found.x[place], expected.x[0])
            assert torch.equal(found.z[place], expected.z[0])
            assert torch.equal(samples[:, place], expected_samples[:, 0])
            for key, curve in expected.history.items():
                assert torch.equal(found.history[key][:, place], curve[:, 0]), key


@pytest.mark.parametrize("kill_at", [2, 8, 14])
@pytest.mark.parametrize("name", SOLVERS)
def test_killed_run_goes_on_to_the_last_bit(decoder, tmp_path, name, kill_at):
    y = blur(0.5 + 0.2 * normal(3, 1, 4, 4)).float()
    options = {"sigma": 0.1, "solver": SOLVERS[name], "iterations": 18}
    expected = invert(decoder, blur, y, **options)
    checkpoint = Checkpoint(tmp_path / "state.pt", seconds=0)
    killed = [interrupt_at(kill_at)]
    with pytest.raises(Interrupted):
        invert(decoder, blur, y, observers=killed, checkpoint=checkpoint, **options)
    found = invert(decoder, blur, y, checkpoint=Checkpoint(checkpoint.path, seconds=0), **options)
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.z, expected.z)
    for key, curve in expected.history.items():
        assert torch.equal(found.history[key], curve), key
    drawn, again = (e.posterior.sample(4, seed=1) for e in (expected, found))
    assert torch.equal(drawn, again)


@pytest.mark.parametrize("name", SOLVERS)
def test_draws_depend_on_seed_and_are_images_of_latents(decoder, name):
    y = blur(0.5 + 0.2 * normal(2, 1, 4, 4)).float()
    found = invert(decoder, blur, y, sigma=0.1, solver=SOLVERS[name], iterations=60)
    assert isinstance(found.posterior, Posterior)
    drawn = found.posterior.sample(70, seed=0)
    assert drawn.shape == (70, 2, 1, 4, 4)
    assert not torch.equal(drawn, found.posterior.sample(70, seed=1))
    z = found.posterior.latents(70, seed=0)
    made = decoder.generate(z.flatten(0, 1)).view_as(drawn)
    torch.testing.assert_close(drawn, decoder.to_unit_range(made))
    for wrong in ({"count": 0, "seed": 0}, {"count": 2, "seed": -1}, {"count": 1.5, "seed": 0}):
        with pytest.raises(ValueError, match=r"^(count|seed) must be an integer"):
            found.posterior.sample(wrong["count"], seed=wrong["seed"])


@pytest.mark.parametrize("name", SOLVERS)
def test_operators_of_each_image_conditions_and_parts(name):
    class Masks:
        """Another mask for each of three images."""

        kept = (normal(3, 1, 4, 4) > 0).double()

        def A(self, x):
            return x * self.kept

    options = {"sigma": 0.1, "solver": SOLVERS[name], "iterations": 16}
    prior = LinearGaussian().requires_grad_(False)
    truth = 0.5 + 0.2 * normal(3, 1, 4, 4)
    found = invert(prior, Masks(), Masks.kept * truth, **options)
    for row, mask in enumerate(Masks.kept):
        y = (mask * truth[row])[None]
        alone = invert(prior, lambda x, m=mask: x * m, y, indices=[row], **options)
        torch.testing.assert_close(found.x[row], alone.x[0])
    prior = Shifted().requires_grad_(False)
    found = invert(prior, identity, truth, condition=truth, **options)
    assert found.posterior.sample(2, seed=0).shape == (2, *truth.shape)
    found = invert(two_part_decoder(), identity, truth, **options)
    assert found.posterior.sample(2, seed=0).shape == (2, *truth.shape)


@pytest.mark.parametrize("name", ["Langevin", "Coupling", "LowRank"])
def test_a_glow(name):
    glow = small_glow(8)
    y = blur(glow.to_unit_range(glow.sample(2, generator=torch.Generator().manual_seed(0))))
    found = invert(glow, blur, y, sigma=0.1, solver=SOLVERS[name], iterations=8)
    assert found.finite.all()
    assert found.posterior.sample(2, seed=0).isfinite().all()


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: Langevin(chains=1), "chains"),
        (lambda: Langevin(warm_up=0), "warm_up"),
        (lambda: Langevin(leapfrog=0), "leapfrog"),
        (lambda: Langevin(thin=0), "thin"),
        (lambda: Langevin(metric="full"), "metric"),
        (lambda: Langevin(acceptance=1.0), "acceptance"),
        (lambda: Langevin(descent_iterations=-1), "descent_iterations"),
        (lambda: Langevin(misfit=0.1), "misfit"),
        (lambda: PSGLD(0.0), "step_size"),
        (lambda: PSGLD(decay=1.0), "decay"),
        (lambda: PSGLD(chains=1), "chains"),
        (lambda: PSGLD(warm_up=0), "warm_up"),
        (lambda: PSGLD(thin=0), "thin"),
        (lambda: TemperedSMC(particles=7), "particles"),
        (lambda: TemperedSMC(moves=0), "moves"),
        (lambda: TemperedSMC(leapfrog=0), "leapfrog"),
        (lambda: TemperedSMC(effective_share=1.0), "effective_share"),
        (lambda: TemperedSMC(acceptance=0.0), "acceptance"),
        (lambda: TemperedSMC(misfit=0.1), "misfit"),
        (lambda: Variational("coupling"), "family"),
        (lambda: Variational(beta=-1.0), "beta"),
        (lambda: Variational(learning_rate=0), "learning_rate"),
        (lambda: Variational(draws=3), "draws"),
        (lambda: Variational(draws=16, mean_draws=8), "mean_draws"),
        (lambda: Variational(start_scale=0), "start_scale"),
        (lambda: Variational(descent_iterations=-1), "descent_iterations"),
        (lambda: Variational(whiten="yes"), "whiten"),
        (lambda: Variational(searches=0), "searches"),
        (lambda: Variational(normal_steps=-1), "normal_steps"),
        (lambda: Variational(misfit=0.1), "misfit"),
        (lambda: LowRank(0), "rank"),
        (lambda: Coupling(depth=1), "depth"),
        (lambda: Coupling(hidden=0), "hidden"),
    ],
)
def test_wrong_options_are_named(make, option):
    with pytest.raises(ValueError, match=f"^{option}"):
        make()


def test_what_does_not_fit_is_one_line(known, decoder):
    with pytest.raises(ValueError, match="rank must be an integer from 1 to 16, got 17"):
        known.solve(Variational(LowRank(17)), 1)
    for solver in (Langevin(), TemperedSMC(), Variational()):
        name = type(solver).__name__
        with pytest.raises(ValueError, match=f"^{name} needs the noise level"):
            invert(decoder, identity, torch.zeros(1, 1, 4, 4).float(), solver=solver)
        with pytest.raises(ValueError, match=f"^{name} needs a generator"):
            invert(None, identity, torch.zeros(1, 1, 4, 4), solver=solver, image_shape=(1, 4, 4))


def test_a_warm_up_that_never_ends_is_said(known):
    found = known.solve(Langevin(warm_up=50, descent_iterations=0), 20)
    assert found.posterior is None
    assert "the first draw is kept after 51 iterations" in found.warnings[0]


class Parabola(Prior):
    """x = z²: data cannot tell the sign of z."""

    def __init__(self):
        super().__init__((1, 1, 1), Latent({"z": (1, 1, 1)}))

    def generate(self, z, condition=None):
        return z.square()


def test_chains_that_do_not_agree_are_named():
    y = torch.tensor([[[[0.0]]], [[[1.0]]]])
    options = {"sigma": 0.02, "solver": Langevin(leapfrog=4), "iterations": 900}
    found = invert(Parabola().eval(), identity, y, seed=2, **options)  # starts of both signs
    assert any(w.startswith("row 1: the chains do not agree") for w in found.warnings)
    assert found.posterior.r_hat[0] < 1.05 < found.posterior.r_hat[1]


def test_a_start_of_all_chains_is_named():
    y = torch.tensor([[[[1.0]]]])
    options = {"sigma": 0.02, "solver": Langevin(leapfrog=4, warm_up=50), "iterations": 300}
    found = invert(Parabola().eval(), identity, y, latents=torch.tensor([[0.9]]), **options)
    assert found.posterior.r_hat < 1.05  # of half of the posterior
    assert any("began at the given start" in warning for warning in found.warnings)
    found = invert(Parabola().eval(), identity, y, latents=torch.tensor([[0.9]] * 4), **options)
    assert not any("began at the given start" in warning for warning in found.warnings)


def test_a_dense_metric_of_few_latents():
    prior = LinearGaussian(size=2).requires_grad_(False)
    options = {"sigma": 0.02, "solver": Langevin(metric="dense"), "iterations": 600}
    found = invert(prior, lambda x: x.sum((1, 2, 3))[:, None], torch.ones(1, 1), **options)
    assert found.finite.all()
    assert found.posterior.r_hat < 1.05


def test_few_draws_are_named(known):
    found = known.solve(Langevin(warm_up=300), 330)
    assert any("effective draws" in w or "do not agree" in w for w in found.warnings)
    found = known.solve(Langevin(warm_up=3), 6)
    assert found.posterior.r_hat.isnan().all()
    assert any("3 kept draws of each chain, too few" in w for w in found.warnings)


def test_an_objective_that_still_falls_is_named(known):
    for iterations in (100, 300):
        solver = Variational(LowRank(8), start_scale=1e-3, whiten=False)
        found = known.solve(solver, iterations)
        assert any("the objective still fell by up to" in w for w in found.warnings)
    for solver, iterations in (
        (Variational(FullGaussian(), whiten=False), 1000),
        (Variational(), 60),
    ):
        found = known.solve(solver, iterations)
        assert found.residual.max() < 0.7  # the mean of draws fits the data better than the truth
        assert found.warnings == ()


@pytest.mark.parametrize("iterations", [3, 30, 60, 160])
def test_noise_does_not_hide_a_fall(known, iterations):
    # It starts far from the posterior, and its learning rate is too small to get there.
    solver = Variational(LowRank(2), draws=2, learning_rate=1e-4, start_scale=1.0, whiten=False)
    found = known.solve(solver, iterations)
    assert [warning.kind for warning in found.warnings if warning.kind == "falling"]


@pytest.mark.parametrize("learning_rate", [0.02, 1.0])
def test_steps_that_are_too_large_are_said(known, learning_rate):
    # It starts at the exact posterior.
    solver = Variational(FullGaussian(), draws=4, learning_rate=learning_rate)
    found = known.solve(solver, 40)
    rose = [warning for warning in found.warnings if warning.kind == "rose"]
    assert len(rose) == (learning_rate == 1.0)


def test_falls_of_noisy_curves_are_those_of_lines():
    times = torch.arange(40, dtype=torch.float64)[:, None]
    noise = normal(40, 2000)
    fallen, error = fall_of_noisy(100 - times * torch.linspace(-1, 1, 2000) + 3 * noise)
    off = (fallen - 39 * torch.linspace(-1, 1, 2000)) / error
    assert abs(off.mean()) < 0.1
    assert abs(off.std() - 1) < 0.1
    one, one_error = fall_of_noisy((100 - times + 3 * noise)[:, 7:8])
    many, many_error = fall_of_noisy(100 - times + 3 * noise)
    assert torch.equal(one[0], many[7])
    assert torch.equal(one_error[0], many_error[7])


@pytest.mark.parametrize("family", FAMILIES)
def test_densities_of_families(family):
    size = 5
    parameters = family.begin(normal(2, size), 0.5)
    assert torch.equal(family(parameters, torch.zeros(2, 1, size).double())[:, 0], normal(2, size))
    parameters = parameters + 0.3 * normal(*parameters.shape, seed=1)
    t = normal(2, 3, size, seed=2)
    z = family(parameters, t)
    for row in range(2):
        for draw in range(3):
            one = parameters[row : row + 1]
            jacobian = torch.autograd.functional.jacobian(
                lambda t, one=one: family(one, t.view(1, 1, size)).view(size), t[row, draw]
            )
            at_t = -0.5 * (t[row, draw].square().sum() + size * math.log(2 * math.pi))
            expected = at_t - torch.linalg.slogdet(jacobian).logabsdet
            found = family.log_prob(one, z[row : row + 1, draw : draw + 1])
            torch.testing.assert_close(found[0, 0], expected)


@dataclass(frozen=True)
class Rotated(Family):
    """s = Q t with Q = exp(W − Wᵀ); and what may be wrong with it."""

    wrong: str = ""

    def shapes(self, size):
        return {"w": (size, size)}

    def shape(self, t, parameters):
        s = t @ self.rotation(parameters).mT
        wrong = {"size": s[..., :-1], "doubled": 2 * s}
        log_det = t.new_zeros(len(t)) if self.wrong == "rows" else t.new_zeros(len(t), 1)
        return wrong.get(self.wrong, s), log_det

    def unshape(self, s, parameters):
        rotation = self.rotation(parameters)
        log_det = s.new_full((len(s), 1), 0.5 if self.wrong == "log_det" else 0)
        return s @ (rotation.mT if self.wrong == "turned" else rotation), log_det

    def rotation(self, parameters):
        return torch.linalg.matrix_exp(parameters["w"] - parameters["w"].mT)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("turned", "Rotated.unshape is not the inverse of shape: t comes back"),
        ("doubled", "Rotated.unshape is not the inverse of shape: t comes back"),
        ("log_det", "Rotated.unshape must give log|det ds/dt| as shape does, it is 0.5 off"),
        (
            "size",
            "Rotated.shape must give shapes (2, 3, 16) and (2, 3) or (2, 1), got (2, 3, 15) and",
        ),
        ("rows", "got (2, 3, 16) and (2,)"),
    ],
)
def test_wrong_families_are_named(known, wrong, words):
    with pytest.raises(ValueError, match=f"^family: .*{re.escape(words)}"):
        known.solve(Variational(Rotated(wrong)), 1)


def test_a_family_of_ones_own(known):
    assert known.solve(Variational(Rotated(), draws=2), 2).finite.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("family", "size"),
    [*((family, 6) for family in FAMILIES), (FullGaussian(), 1500), (LowRank(16), 12288)],
)
def test_right_families_pass(family, size, dtype):
    family.try_out(family.begin(torch.zeros(1, size, dtype=dtype), 1.0), size)
    family = Coupling(depth=5)
    family.try_out(family.begin(torch.zeros(1, size, dtype=dtype), 1.0), size)


def slow_r_hat(draws):
    """Of one scalar (N, chains), step by step as in the paper."""

    def split(values):
        half = len(values) // 2
        return np.concatenate([values[:half], values[-half:]], 1)

    def of(values):
        ranks = stats.rankdata(values).reshape(values.shape)
        scores = stats.norm.ppf((ranks - 3 / 8) / (values.size + 1 / 4))
        n = len(scores)
        between = n * scores.mean(0).var(ddof=1)
        within = np.mean([chain.var(ddof=1) for chain in scores.T])
        return np.sqrt(((n - 1) / n * within + between / n) / within)

    values = split(draws)
    middle = np.sort(values.ravel())[(values.size - 1) // 2]
    return max(of(values), of(np.abs(values - middle)))


def autoregressive(correlation, count=20_000, chains=4):
    noise = np.random.default_rng(0).standard_normal((count, chains))
    values = np.zeros((count, chains))
    for k in range(1, count):
        values[k] = correlation * values[k - 1] + np.sqrt(1 - correlation**2) * noise[k]
    return torch.from_numpy(values)


def test_r_hat():
    draws = normal(50, 3, 2) * torch.tensor([1.0, 3.0]) + torch.tensor([[0.0, 0], [1, 0], [0, 0]])
    expected = [slow_r_hat(draws[..., k].numpy()) for k in range(2)]
    np.testing.assert_allclose(r_hat(draws), expected, rtol=1e-10)
    assert r_hat(normal(2000, 4)) < 1.01
    assert r_hat(normal(2000, 4) + torch.tensor([0, 0, 0, 2.0])) > 1.1
    assert r_hat(normal(2000, 4) * torch.tensor([1, 1, 1, 3.0])) > 1.1
    assert r_hat(normal(7, 4)).isnan()
    assert r_hat(torch.ones(20, 4)).isnan()


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_effective_draws(correlation):
    """Of an autoregressive process they are known: for its square too, about which they are."""
    draws = autoregressive(correlation)
    exact = draws.numel() * (1 - correlation) / (1 + correlation)
    squares = draws.numel() * (1 - correlation**2) / (1 + correlation**2)
    found = effective_draws(draws)
    assert found == pytest.approx(min(exact, squares), rel=0.1)
