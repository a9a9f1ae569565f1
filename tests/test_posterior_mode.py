"""The search for most probable latents, and the normal distributions that posteriors start from."""

import pytest
import torch
from scipy.optimize import least_squares

from flowprior.inversion import invert
from flowprior.inversion.batch_invariant import batch_invariant
from flowprior.inversion.problem import make_problem
from flowprior.posterior import Coupling, FullGaussian, Langevin, LowRank, Variational
from flowprior.posterior.laplace import whitened
from flowprior.posterior.likelihood import Likelihood
from flowprior.posterior.mode import Search, gram_matrix, log_det
from flowprior.priors import Module
from tests.inversion_problems import LinearGaussian, blur, small_decoder

SIGMA = 0.05


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_problem(count=2):
    prior = LinearGaussian(size=4).requires_grad_(False)
    y = blur(0.5 + 0.2 * normal(count, 1, 4, 4)) + SIGMA * normal(count, 1, 4, 4, seed=1)
    unit = torch.eye(16).double().view(16, 1, 4, 4)
    jacobian = 0.2 / SIGMA * blur(unit).flatten(1).T  # data in units of the noise, by latents
    hessian = torch.eye(16) + jacobian.T @ jacobian
    target = ((y - blur(torch.full_like(y, 0.5))) / SIGMA).flatten(1)
    mean = torch.linalg.solve(hessian, (target @ jacobian).T).T
    return make_problem(prior, blur, y, sigma=SIGMA), mean, hessian


def bent_problem(count=3):
    """Data of a small decoder; residuals of `least_squares` are those of misfit and prior."""
    decoder = small_decoder()
    truth = decoder.to_unit_range(decoder.generate(normal(count, 5, seed=2)))
    y = blur(truth) + SIGMA * normal(count, 1, 4, 4, seed=3)
    return make_problem(decoder, blur, y, sigma=SIGMA)


def search(problem, v, iterations, tolerance=1e-10):
    likelihood = Likelihood(problem, problem.noise, "")
    return Search(likelihood, v, problem.rows).run(iterations, tolerance)


def by_scipy(problem, v):
    """The mode of one image, from v (n,), and its energy."""
    prior = problem.prior

    def residuals(z):
        z = torch.from_numpy(z)[None]
        data = problem.forward(prior.to_unit_range(prior.generate(z)))
        return torch.cat([((data - problem.y[:1]) / SIGMA).flatten(), z[0]]).numpy()

    found = least_squares(residuals, v.numpy(), xtol=1e-14, ftol=1e-14, gtol=1e-12)
    return torch.from_numpy(found.x), found.cost


def one_of(problem, row):
    return make_problem(problem.prior, blur, problem.y[row : row + 1], sigma=SIGMA)


def test_a_linear_problem_takes_one_step_from_what_fits_the_data():
    problem, mean, _ = linear_problem()
    begun = mean + 0.05 * normal(2, 16, seed=5)
    cold = problem.residual(0.5 + 0.2 * begun.view(2, 1, 4, 4)) < 1
    assert cold.tolist() == [True, False]  # of temperature 1 from the beginning, or not
    once = search(problem, begun, 1).z
    torch.testing.assert_close(once[cold], mean[cold], rtol=0, atol=1e-7)
    assert (once - mean)[~cold].abs().max() > 1e-4


def test_a_search_from_far_away_ends_at_the_same_mode():
    problem, mean, hessian = linear_problem()
    found = search(problem, 3 + normal(2, 16, seed=5), 40)
    torch.testing.assert_close(found.z, mean, rtol=0, atol=1e-8)
    covariance = found.root @ found.root.mT
    torch.testing.assert_close(covariance, hessian.inverse().expand_as(covariance))


def test_the_mode_of_a_bent_problem_is_that_of_scipy():
    problem = bent_problem()
    begun = 0.3 * normal(3, 5, seed=4)
    found = search(problem, begun, 60)
    for row in range(3):
        z, energy = by_scipy(one_of(problem, row), found.z[row])
        # Differences over a quarter of a standard deviation do not move the mode itself.
        torch.testing.assert_close(found.z[row], z, rtol=0, atol=1e-4)
        assert found.energy[row].item() == pytest.approx(energy, abs=1e-6)
        assert by_scipy(one_of(problem, row), begun[row])[1] >= energy - 1e-6


def test_derivatives_are_those_of_autograd():
    problem = bent_problem(1)
    z = normal(1, 5)
    steps = 1e-4 * (torch.eye(5) + 0.3 * normal(5, 5, seed=1).tril(-1))[None]
    found = gram_matrix(Likelihood(problem, problem.noise, ""), z, steps.double(), problem.rows)

    def data(z):
        return blur(problem.prior.to_unit_range(problem.prior.generate(z))).flatten() / SIGMA

    jacobian = torch.autograd.functional.jacobian(data, z)[:, 0]
    torch.testing.assert_close(found[0], jacobian.T @ jacobian, rtol=1e-6, atol=1e-6)


def test_rows_that_are_not_finite_end_where_they_are():
    problem, mean, _ = linear_problem()
    begun = torch.stack([torch.full((16,), torch.nan, dtype=torch.float64), mean[1] + 1])
    found = search(problem, begun, 20)
    assert found.z[0].isnan().all()
    assert not found.energy[0].isfinite()
    torch.testing.assert_close(found.z[1], mean[1], rtol=0, atol=1e-8)


class Folded(torch.nn.Module):
    """Two numbers whose data also fit, badly, far away from where they were made."""

    def __init__(self):
        super().__init__()
        self.register_buffer("depth", torch.tensor(0.6, dtype=torch.float64))

    def forward(self, z):
        bent = torch.tanh(z[:, :1] - 2) + self.depth * torch.exp(-2 * (z[:, :1] + 1.5) ** 2)
        return torch.cat([bent, 0.1 * z[:, 1:]], 1).view(-1, 1, 1, 2)


def test_a_bad_mode_is_left_for_a_better_one():
    prior = Module(Folded(), (1, 1, 2), [2]).eval()
    y = prior.to_unit_range(prior.generate(torch.tensor([[1.8, 0.2]]).double()))
    problem = make_problem(prior, lambda x: x, y, sigma=0.01)
    bad, good = torch.tensor([-1.6, 0.0]).double(), torch.tensor([2.5, 0.0]).double()
    alone = whitened(problem, problem.noise, bad[None, None], 40)
    both = whitened(problem, problem.noise, torch.stack([bad, good])[None], 40)
    assert (alone.centre[0, 0] - 1.8).abs() > 1
    torch.testing.assert_close(both.centre[0, 0], torch.tensor(1.8).double(), rtol=0, atol=0.05)


def test_the_nearest_normal_distribution_is_exact_for_linear_problems():
    problem, mean, hessian = linear_problem()
    found = whitened(problem, problem.noise, normal(2, 1, 16), 20)
    torch.testing.assert_close(found.centre, mean, rtol=0, atol=1e-7)
    covariance = found.root @ found.root.mT
    torch.testing.assert_close(covariance, hessian.inverse().expand_as(covariance))
    expected = log_det(torch.linalg.cholesky(hessian.inverse())[None])
    torch.testing.assert_close(found.log_det(problem.rows)[:, 0], expected.expand(2))
    lengths = found.root.norm(dim=1)
    assert (lengths.diff(dim=1) <= 1e-12).all()  # the largest first


def test_steps_of_the_natural_gradient_lower_the_objective():
    problem = bent_problem()
    start = 0.3 * normal(3, 1, 5, seed=4)
    t = normal(1, 4000, 5, seed=9).expand(3, -1, -1)
    likelihood = Likelihood(problem, problem.noise, "")
    objective = {}
    for steps in (0, 40):
        found = whitened(problem, problem.noise, start, 40, steps)
        z = found.latents(t, problem.rows)
        energy = likelihood(z, problem.rows)[1] + 0.5 * z.square().sum(-1)
        objective[steps] = energy.mean(1) - found.log_det(problem.rows)[:, 0]
    assert (objective[40] < objective[0] + 0.02).all()
    assert objective[40].sum() < objective[0].sum()


@pytest.mark.parametrize("count", [5, 17, 33])
def test_coordinates_are_the_same_in_every_batch(count):
    decoder = small_decoder().float()
    y = blur(0.5 + 0.2 * normal(count, 1, 4, 4)).float()
    begun = normal(count, 1, 5).float()

    def of(rows):
        problem = make_problem(decoder, blur, y[rows], sigma=0.1, indices=rows)
        with batch_invariant():
            return whitened(problem, problem.noise, begun[rows], 20, 4)

    together = of(list(range(count)))
    for row in range(count):
        alone = of([row])
        assert torch.equal(together.centre[row], alone.centre[0])
        assert torch.equal(together.root[row], alone.root[0])


def test_whitened_chains_draw_from_a_known_posterior():
    problem, mean, hessian = linear_problem(1)
    deviation = hessian.inverse().diagonal().sqrt()
    solver = Langevin(metric="whitened", warm_up=40, leapfrog=4)
    found = invert(problem.prior, blur, problem.y, sigma=SIGMA, solver=solver, iterations=1540)
    z = found.posterior.draws.flatten(3).transpose(1, 2).flatten(0, 1)
    assert ((z.mean(0) - mean) / deviation).abs().max() < 0.06
    assert (z.std(0) / deviation - 1).abs().max() < 0.05
    assert found.posterior.r_hat.max() < 1.01
    assert found.warnings == ()


@pytest.mark.parametrize("family", [FullGaussian(), LowRank(3), Coupling(hidden=4)])
def test_small_latents_are_whitened_by_default(family):
    problem, mean, _ = linear_problem()
    options = {"sigma": SIGMA, "iterations": 0}
    found = invert(problem.prior, blur, problem.y, solver=Variational(family), **options)
    torch.testing.assert_close(found.z.flatten(1), mean, rtol=0, atol=1e-6)
    plain = Variational(family, whiten=False, descent_iterations=0)
    other = invert(problem.prior, blur, problem.y, solver=plain, **options)
    assert other.posterior.coordinates is None


def test_large_latents_are_not_whitened():
    prior = LinearGaussian(size=33)
    y = torch.full((1, 1, 33, 33), 0.5).double()
    options = {"sigma": 0.1, "iterations": 1}
    found = invert(prior, lambda x: x, y, solver=Variational(draws=2), **options)
    assert found.posterior.coordinates is None
    for solver in (Variational(whiten=True), Langevin(metric="whitened")):
        with pytest.raises(ValueError, match="takes latents of at most 1024"):
            invert(prior, lambda x: x, y, solver=solver, **options)


class Steep(torch.nn.Module):
    """A number whose data rise by e^8 within a prior deviation of what is likely."""

    def __init__(self):
        super().__init__()
        self.register_buffer("rate", torch.tensor(8.0, dtype=torch.float64))

    def forward(self, z):
        return torch.cat([torch.exp(self.rate * z[:, :1]), z[:, 1:]], 1).view(-1, 1, 1, 2)


def test_steps_that_raise_the_divergence_are_not_taken():
    prior = Module(Steep(), (1, 1, 2), [2]).eval()
    y = torch.tensor([0.0, 0.0]).double().view(1, 1, 1, 2)
    problem = make_problem(prior, lambda x: x, y, sigma=0.5)
    likelihood, t = Likelihood(problem, problem.noise, ""), normal(1, 400, 2, seed=9)
    objective = {}
    for steps in (0, 30):
        found = whitened(problem, problem.noise, torch.zeros(1, 1, 2).double(), 40, steps)
        z = found.latents(t, problem.rows)
        energy = likelihood(z, problem.rows)[1] + 0.5 * z.square().sum(-1)
        objective[steps] = (energy.mean(1) - found.log_det(problem.rows)[:, 0]).item()
    assert objective[30] < 0.1 * objective[0]
