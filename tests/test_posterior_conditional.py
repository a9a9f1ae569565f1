"""Posteriors of conditional priors, amortised and preconditioned, and counts of operator calls."""

import math

import pytest
import torch

from evaluation.measures import OperatorCalls
from flowprior.inversion import MAP, Checkpoint, Restarts, invert
from flowprior.posterior import (
    Amortised,
    Coupling,
    FullGaussian,
    LowRank,
    Preconditioned,
    Variational,
)
from tests.inversion_problems import (
    Interrupted,
    LinearGaussian,
    Shifted,
    identity,
    interrupt_at,
    small_decoder,
)
from tests.test_flows_conditional import make
from tests.test_posterior import normal

SOLVERS = {
    "Amortised": Amortised(mean_draws=40),
    "Preconditioned": Preconditioned(Coupling(hidden=4), draws=4),
    "tempered": Preconditioned(LowRank(2), draws=4, tempering=0.5, descent_iterations=2),
}


class Learned(LinearGaussian):
    """The exact p(x | y) of x ~ N(0, I) and y = x + N(0, σ² I), as a conditional flow has it."""

    conditional = True

    def __init__(self, sigma=0.5, size=2):
        self.sigma_squared = sigma**2
        super().__init__(0.0, sigma / math.sqrt(1 + sigma**2), size)

    def decode(self, z, condition):
        x, log_det = super().decode(z)
        return x + condition / (1 + self.sigma_squared), log_det

    def generate(self, z, condition):
        return self.decode(z, condition)[0]


class StandardNormal(LinearGaussian):
    """x ~ N(0, I), with its density."""

    def __init__(self, size=2):
        super().__init__(0.0, 1.0, size)

    def log_prob(self, x):
        return -0.5 * (x.flatten(1).square().sum(1) + x[0].numel() * math.log(2 * math.pi))


@pytest.fixture(scope="module")
def data():
    return normal(3, 1, 2, 2, seed=4)


def solve(data, solver, iterations=600, sigma=0.5, prior=None, **options):
    prior = prior or Learned().requires_grad_(False)
    given = {"condition": data} if prior.conditional else {}
    options = {**given, **options}
    return invert(
        prior, identity, data, sigma=sigma, solver=solver, iterations=iterations, **options
    )


def moments(found, count=20_000):
    draws = found.posterior.sample(count, seed=0)
    return draws.mean(0), draws.std(0)


def test_amortised_draws_are_those_of_the_flow(data):
    found = solve(data, Amortised(mean_draws=5000), 7)
    mean, deviation = data / 1.25, math.sqrt(0.2)
    assert (found.x - mean).abs().max() < 4 * deviation / math.sqrt(5000)
    sampled, spread = moments(found)
    assert (sampled - mean).abs().max() < 0.02
    assert (spread / deviation - 1).abs().max() < 0.03
    assert found.history == {}
    assert not found.posterior.sample(3, seed=1).equal(found.posterior.sample(3, seed=2))
    assert not found.calls.forward.any()
    assert not found.calls.adjoint.any()


def test_amortised_means_that_miss_the_data_are_warned_of_without_options_they_lack(data):
    outside, warning = solve(data, Amortised(mean_draws=8), 0, sigma=0.02).warnings
    assert (outside.kind, warning.kind) == ("out_of_range", "residual_high")
    assert "beta" not in outside
    assert "the flow was trained on data of another kind" in warning
    assert "beta" not in warning
    assert "iterations" not in warning


@pytest.mark.parametrize(
    ("options", "precision", "weight"),
    [
        ({}, 5 + 4, 4 + 4),  # the published formula: the data count twice
        ({"tempering": 0.2}, 1 + 4, 0.8 + 4),  # τ = 1/(1 + 4), the share of the prior
        ({"tempering": 0.0}, 4, 4),  # the likelihood alone
        ({"density": StandardNormal()}, 1 + 4, 4),  # the posterior
    ],
)
def test_preconditioned_finds_what_it_says(data, options, precision, weight):
    found = solve(data, Preconditioned(FullGaussian(), **options), 800)
    mean, deviation = data * weight / precision, precision**-0.5
    sampled, spread = moments(found)
    assert (sampled - mean).abs().max() < 0.03
    assert (spread / deviation - 1).abs().max() < 0.05


def test_the_plain_objective_is_that_of_images_without_their_determinants(data):
    plain = Preconditioned(FullGaussian(), draws=8)
    images = Preconditioned(FullGaussian(), draws=8, density=None, tempering=1 - 1e-12)
    one, other = (solve(data, solver, 30) for solver in (plain, images))
    torch.testing.assert_close(one.history["objective"], other.history["objective"])
    torch.testing.assert_close(one.x, other.x)


def test_preconditioned_starts_at_what_the_flow_has_learned(data):
    start = solve(data, Preconditioned(Coupling(), draws=2), 0)
    torch.testing.assert_close(
        start.posterior.latents(4, seed=0).mean(), torch.zeros(()).double(), atol=0.5, rtol=0
    )
    t = normal(3, 4, 4)
    torch.testing.assert_close(start.posterior.family(start.posterior.parameters, t), t)


def test_a_short_way_from_a_good_start(data):
    """With the right flow and density nothing is left to be fitted; from elsewhere there is."""
    exact = {"density": StandardNormal(), "learning_rate": 0.02}
    near = solve(data, Preconditioned(FullGaussian(), **exact), 1)
    far = solve(data, Preconditioned(FullGaussian(), **exact), 1, prior=StandardNormal())
    best = solve(data, Preconditioned(FullGaussian(), **exact), 800).history["objective"][-100:]
    gap = [run.history["objective"][0] - best.mean(0) for run in (near, far)]
    assert gap[0].abs().max() < 1
    assert (gap[1] > 2).all()


def test_preconditioned_map_is_map_from_zero(data):
    """½‖(x − y)/σ‖² + ½‖z‖² with x = s z + m: z = (y − m) s/σ² / (1 + s²/σ²)."""
    found = solve(data, MAP(start_scale=0.0), 60)
    scale, mean = math.sqrt(0.2), data / 1.25
    expected = (data - mean) * scale / 0.25 / (1 + 0.2 / 0.25)
    torch.testing.assert_close(found.z, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        found.history["loss"][0],
        2 * (data - mean).square().flatten(1).sum(1) + 2 * math.log(2 * math.pi),
    )


def three(x):
    """The two pixels, and the first again."""
    return torch.cat([x.flatten(1), x[:, :1, 0, 0]], 1)


@pytest.mark.parametrize("name", SOLVERS)
def test_rows_are_the_same_in_every_batch(name):
    flow = make("vectors", in_channels=2, dtype=torch.float32).requires_grad_(False)
    y = normal(33, 3).float()

    def solved(rows):
        given = {"condition": y[rows], "indices": rows}
        found = invert(flow, three, y[rows], sigma=0.3, solver=SOLVERS[name], iterations=2, **given)
        return found, found.posterior.sample(3, seed=5)

    whole, drawn = solved(list(range(33)))
    for count in (1, 5, 17):
        rows = torch.randperm(33, generator=torch.Generator().manual_seed(count))[:count].tolist()
        found, samples = solved(rows)
        assert torch.equal(found.x, whole.x[rows])
        assert torch.equal(samples, drawn[:, rows])
        for key, curve in whole.history.items():
            assert torch.equal(found.history[key], curve[:, rows]), key


@pytest.mark.parametrize("name", SOLVERS)
def test_killed_run_goes_on_to_the_last_bit(data, tmp_path, name):
    options = {"solver": SOLVERS[name], "iterations": 9}
    expected = solve(data, **options)
    checkpoint = Checkpoint(tmp_path / "state.pt", seconds=0)
    with pytest.raises(Interrupted):
        solve(data, observers=[interrupt_at(4)], checkpoint=checkpoint, **options)
    found = solve(data, checkpoint=Checkpoint(checkpoint.path, seconds=0), **options)
    assert torch.equal(found.x, expected.x)
    drawn, again = (e.posterior.sample(4, seed=1) for e in (expected, found))
    assert torch.equal(drawn, again)


def test_what_does_not_fit_is_one_line(data):
    with pytest.raises(ValueError, match="mean_draws must be an integer"):
        Amortised(mean_draws=0)
    with pytest.raises(ValueError, match="tempering must be"):
        Preconditioned(tempering=1.5)
    with pytest.raises(ValueError, match="Preconditioned: density needs log_prob"):
        Preconditioned(density=small_decoder())
    with pytest.raises(ValueError, match="density must be one of images whatever the data"):
        Preconditioned(density=make("images"))
    with pytest.raises(ValueError, match="Amortised needs a conditional prior"):
        solve(data, Amortised(), prior=StandardNormal())
    with pytest.raises(ValueError, match=r"density is one of images \(1, 3, 3\)"):
        solve(data, Preconditioned(density=StandardNormal(3)))
    with pytest.raises(ValueError, match="condition must be given"):
        solve(data, Amortised(), condition=None)


@pytest.mark.parametrize("count", [1, 5, 17])
def test_calls_of_operator_and_adjoint_are_counted(count):
    """Each iteration takes `draws` of both for each image; the start is extra."""
    y = normal(count, 1, 2, 2)
    solver = Preconditioned(FullGaussian(), draws=6)
    calls = {k: solve(y, solver, k).calls for k in (3, 13)}
    assert calls[13].forward.tolist() == [calls[3].forward[0] + 10 * 6] * count
    assert calls[13].adjoint.tolist() == [calls[3].adjoint[0] + 10 * 6] * count
    assert 3 * 6 <= calls[3].adjoint[0] <= calls[3].forward[0] <= 5 * 6 + 2
    for solver in (MAP(optimizer="adam"), Restarts(MAP(optimizer="adam"), 2)):
        longer, shorter = (solve(y, solver, k).calls for k in (9, 5))
        times = getattr(solver, "count", 1)
        assert (longer.forward - shorter.forward).tolist() == [4 * times] * count
        assert (longer.adjoint - shorter.adjoint).tolist() == [4 * times] * count


@pytest.mark.parametrize("solver", [MAP(tolerance=1e-3), Preconditioned(FullGaussian(), draws=4)])
def test_counts_of_an_image_do_not_depend_on_its_batch(solver):
    y = normal(17, 1, 2, 2)
    whole = solve(y, solver, 8).calls
    for row in (0, 9, 16):
        alone = solve(y[row : row + 1], solver, 8, indices=[row]).calls
        assert alone.forward.item() == whole.forward[row]
        assert alone.adjoint.item() == whole.adjoint[row]


def test_counts_go_on_after_a_kill(data, tmp_path):
    options = {"solver": SOLVERS["tempered"], "iterations": 7}
    expected = solve(data, **options).calls
    checkpoint = Checkpoint(tmp_path / "state.pt", seconds=0)
    with pytest.raises(Interrupted):
        solve(data, observers=[interrupt_at(3)], checkpoint=checkpoint, **options)
    found = solve(data, checkpoint=Checkpoint(checkpoint.path, seconds=0), **options).calls
    assert torch.equal(found.forward, expected.forward)


def test_an_operator_of_each_image_is_counted_once_for_each():
    class Masks:
        kept = (normal(3, 1, 2, 2) > 0).double()

        def A(self, x):
            return x * self.kept

    y = Masks.kept * normal(3, 1, 2, 2)
    options = {"sigma": 0.1, "condition": y}
    prior = Shifted(size=2).requires_grad_(False)
    longer, shorter = (
        invert(prior, Masks(), y, solver=Variational(draws=4), iterations=k, **options).calls
        for k in (7, 5)
    )
    assert (longer.forward - shorter.forward).tolist() == [2 * 4] * 3


def test_calls_are_columns_of_a_table(data):
    found = solve(data, MAP(), 4)
    columns = OperatorCalls()(found, None, None)
    assert columns["forward_calls"].tolist() == found.calls.forward.tolist()
    assert columns["adjoint_calls"].tolist() == found.calls.adjoint.tolist()
    assert columns.keys() == {metric.name for metric in OperatorCalls.metrics}
