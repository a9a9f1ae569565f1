"""Restarts, the discrepancy principle and reconstructors of deepinv."""

from dataclasses import dataclass

import deepinv
import pytest
import torch
from torch import nn

from flowprior.inversion import (
    MAP,
    Discrepancy,
    ImageRun,
    Reconstructor,
    Restarts,
    Solver,
    TotalVariation,
    csgm,
    invert,
    make_problem,
)
from flowprior.inversion.descent import LBFGSRun
from flowprior.physics import Gaussian, denoising
from flowprior.priors import Module
from tests.inversion_problems import (
    LinearGaussian,
    blur,
    identity,
    images_of,
    small_glow,
)


@pytest.fixture(scope="module")
def glow():
    return small_glow()


class TwoValleys(nn.Module):
    """x = z⁴ − 2z² + z/4 has two minima, of which one is lower."""

    def forward(self, z):
        return (z**4 - 2 * z.square() + z / 4).view(-1, 1, 1, 1)


@pytest.fixture
def valleys():
    return Module(TwoValleys(), (1, 1, 1), [1]).eval()


FREE = MAP(penalty="none")


def test_restarts_take_the_run_of_the_smallest_loss(valleys):
    y = torch.full((3, 1, 1, 1), -5.0)
    seeds = range(6)
    singles = [invert(valleys, identity, y, sigma=1.0, solver=FREE, seed=seed) for seed in seeds]
    losses = torch.stack([single.history["loss"][-1] for single in singles])
    assert losses.max() > losses.min() + 0.1  # some starts end in the wrong valley
    found = invert(valleys, identity, y, sigma=1.0, solver=Restarts(FREE, 6))
    torch.testing.assert_close(found.history["loss"][-1], losses.min(0).values)
    assert found.x.shape == (3, 1, 1, 1)
    assert (found.z < 0).all()


def test_one_restart_is_the_solver_itself(glow):
    y = blur(images_of(glow))
    options = {"sigma": 1.0, "iterations": 4, "seed": 3}
    expected = invert(glow, blur, y, solver=MAP(), **options)
    found = invert(glow, blur, y, solver=Restarts(MAP(), 1), **options)
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.history["loss"], expected.history["loss"])


def test_rows_of_restarts_are_independent(glow):
    y = blur(images_of(glow))
    options = {"sigma": 0.1, "solver": Restarts(MAP(beta=0.1), 3), "iterations": 6}
    together = invert(glow, blur, y, **options)
    for row in range(4):
        alone = invert(glow, blur, y[row : row + 1], **options)
        torch.testing.assert_close(alone.x[0], together.x[row], rtol=0, atol=1e-7)


def test_seeds_share_no_start(glow):
    problem = make_problem(glow, blur, blur(images_of(glow, 1)), sigma=1.0)
    solver = Restarts(MAP(), 3)
    starts = torch.cat(
        [solver.start(make_problem(glow, blur, problem.y, seed=seed)) for seed in range(3)]
    )
    assert len(starts.unique(dim=0)) == 9


def test_restarts_from_given_latents(valleys):
    y = torch.full((2, 1, 1, 1), -5.0)
    solver = Restarts(FREE, 2)
    latents = torch.tensor([[1.0], [-1.0], [1.0], [1.0]])
    found = invert(valleys, identity, y, sigma=1.0, solver=solver, latents=latents)
    assert (found.z[0] < 0).all()
    assert (found.z[1] > 0).all()
    with pytest.raises(ValueError, match=r"^latents must have 4 rows"):
        invert(valleys, identity, y, sigma=1.0, solver=solver, latents=latents[:2])


def test_a_run_that_overflows_is_not_the_best(valleys):
    y = torch.full((1, 1, 1, 1), -5.0)
    for solver in (FREE, MAP(penalty="none", optimizer="adam")):
        found = invert(
            valleys,
            identity,
            y,
            sigma=1.0,
            solver=Restarts(solver, 2),
            latents=torch.tensor([[1e30], [1.0]]),
            iterations=5,
        )
        assert found.finite.all()
        assert found.history["loss"].isfinite().all()


def test_discrepancy_reaches_the_noise_level(glow):
    truth = images_of(glow, 3)
    y = Gaussian(0.1).add(blur(truth), seed=0, indices=range(3))
    for beta in (30.0, 0.1):  # smooths too much, and fits the noise
        options = {"sigma": 0.1, "iterations": 300}
        fixed = invert(glow, blur, y, solver=MAP(beta), **options)
        assert ((fixed.residual - 1).abs() > 0.05).all()
        found = invert(glow, blur, y, solver=Discrepancy(MAP(beta), margin=0.02), **options)
        assert ((found.residual - 1).abs() < 0.025).all()
        changed = found.history["beta"][-1] / found.history["beta"][0]
        assert ((changed < 1) if beta > 1 else (changed > 1)).all()


def test_beta_stays_where_the_truth_itself_might_be(glow):
    truth = images_of(glow, 3)
    y = Gaussian(0.1).add(blur(truth), seed=0, indices=range(3))
    found = invert(glow, blur, y, solver=Discrepancy(MAP(0.1)), sigma=0.1, iterations=300)
    expected = 2 / (2 * 256) ** 0.5
    assert ((found.residual - 1).abs() <= expected).all()
    assert ((found.residual - 1).abs() > 0.025).any()


def test_beta_stays_while_the_residual_still_falls():
    # Adam needs some 40 iterations to come near the data, whatever β is.
    prior = LinearGaussian(scale=0.2, size=16)
    y = Gaussian(0.1).add(torch.full((1, 1, 16, 16), 3.0).double(), seed=0, indices=[0])
    solver = MAP(beta=0.01, optimizer="adam", learning_rate=0.3)
    found = invert(
        prior, identity, y, sigma=0.1, solver=Discrepancy(solver, margin=0.5), iterations=60
    )
    assert (found.history["beta"][:30] == found.history["beta"][0]).all()
    assert found.history["misfit"][30] > 4 * found.history["misfit"][60]


def test_beta_has_limits():
    # No β explains data outside of the operator's range.
    prior = LinearGaussian()
    y = torch.arange(16.0).view(1, 1, 4, 4).double()

    def mean(x):
        return x.mean((2, 3), keepdim=True).expand_as(x)

    found = invert(
        prior, mean, y, sigma=0.1, solver=Discrepancy(MAP(beta=2.0), stage=1), iterations=60
    )
    assert found.history["beta"].min().item() == pytest.approx(2e-3)
    assert any("beta" in warning for warning in found.warnings)


def test_restarts_say_what_their_solver_says_of_the_best_runs():
    # The operator sees the mean alone: the first image is explained, the second is not.
    prior = LinearGaussian()
    y = torch.stack([torch.zeros(1, 4, 4), torch.arange(16.0).view(1, 4, 4)]).double()

    def mean(x):
        return x.mean((2, 3), keepdim=True).expand_as(x)

    solver = Discrepancy(MAP(beta=2.0), stage=1)
    options = {"sigma": 0.1, "iterations": 60}
    expected = invert(prior, mean, y, solver=solver, **options).warnings
    assert expected[0].startswith("row 1: beta stopped at its limit")
    found = invert(prior, mean, y, solver=Restarts(solver, 3), **options).warnings
    assert [(one.kind, one.rows) for one in found] == [(one.kind, one.rows) for one in expected]
    assert found[0] == expected[0]


@dataclass(frozen=True)
class Averaging(MAP):
    """Says that its images are means of draws."""

    def begin(self, problem):
        run = super().begin(problem)
        run.averages = True
        return run


def test_restarts_of_means_of_draws_may_fit_the_noise():
    y = torch.arange(16.0).view(1, 1, 4, 4).double()
    options = {"sigma": 0.1, "iterations": 20}
    for solver, count in ((FREE, 1), (Averaging(penalty="none"), 0)):
        found = invert(LinearGaussian(), identity, y, solver=Restarts(solver, 2), **options)
        assert sum("the noise is fitted" in warning for warning in found.warnings) == count


def test_rows_of_discrepancy_are_independent(glow):
    y = Gaussian(0.1).add(blur(images_of(glow)), seed=0, indices=range(4))
    options = {"sigma": 0.1, "solver": Discrepancy(MAP(), stage=2), "iterations": 8}
    together = invert(glow, blur, y, **options)
    for row in range(4):
        alone = invert(glow, blur, y[row : row + 1], **options)
        torch.testing.assert_close(
            alone.history["beta"][:, 0], together.history["beta"][:, row], rtol=1e-6, atol=0
        )
        torch.testing.assert_close(alone.x[0], together.x[row], rtol=0, atol=1e-6)


class Cliff:
    """Terms that are NaN away from the start, until they are mended."""

    mended = False

    def latents(self, v):
        return v

    def __call__(self, v, rows):
        loss = (v - 1).square().sum(1).double()
        broken = (v != 0).any(1) & (rows == 0) & (not self.mended)
        return 1 * v[:, :, None, None], {"loss": torch.where(broken, torch.nan, loss)}


def test_a_row_that_overflowed_once_stays_reported():
    terms = Cliff()
    run = LBFGSRun(terms, nn.Parameter(torch.zeros(2, 3)))
    run.step()
    assert run.finite.tolist() == [False, True]
    terms.mended = True
    run.restart(torch.tensor([0, 1]))
    run.step()
    assert run.finite.tolist() == [False, True]


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: Restarts(MAP(), 0), "^count"),
        (lambda: Restarts(MAP(), 2.0), "^count"),
        (lambda: Restarts("map"), "^solver"),
        (lambda: Restarts(TotalVariation(1.0)), "^solver"),
        (lambda: Discrepancy("map"), "^solver"),
        (lambda: Discrepancy(Restarts(MAP())), "^solver"),
        (lambda: Discrepancy(MAP(penalty="none")), "^solver .* penalty"),
        (lambda: Discrepancy(MAP(beta=0)), "^solver .* beta"),
        (lambda: Discrepancy(MAP(), stage=0), "^stage"),
        (lambda: Discrepancy(MAP(), target=0.0), "^target"),
        (lambda: Discrepancy(MAP(), margin=-1.0), "^margin"),
        (lambda: Reconstructor("dip"), "^model"),
    ],
)
def test_wrong_options_are_named(make, option):
    with pytest.raises(ValueError, match=option):
        make()


def test_any_solver_over_latents_can_be_restarted(glow):
    y = Gaussian(0.1).add(blur(images_of(glow, 2)), seed=0, indices=range(2))
    options = {"sigma": 0.1, "iterations": 12}
    solver = Discrepancy(MAP(), stage=3)
    found = invert(glow, blur, y, solver=Restarts(solver, 1), **options)
    alone = invert(glow, blur, y, solver=solver, **options)
    assert torch.equal(found.x, alone.x)
    assert torch.equal(found.history["beta"], alone.history["beta"])


def test_discrepancy_needs_the_noise_of_the_data(glow):
    solver = Discrepancy(MAP(misfit=Gaussian(0.1)))
    with pytest.raises(ValueError, match="noise level"):
        invert(glow, blur, blur(images_of(glow)), solver=solver)


def test_wrappers_need_what_their_solver_needs(valleys):
    density = MAP(penalty="log_density")
    for solver in (Restarts(density), Discrepancy(density)):
        assert solver.needs == ("decode",)
        with pytest.raises(ValueError, match=r"of MAP.*latent_norm"):
            invert(valleys, identity, torch.zeros(1, 1, 1, 1), sigma=1.0, solver=solver)
    assert Restarts(csgm()).needs == ("generate",)


@pytest.fixture(scope="module")
def untrained():
    """A deep image prior of deepinv: random, and fitted to each image."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = deepinv.models.ConvDecoder((1, 16, 16), in_size=(4, 4), layers=3, channels=4)
        return deepinv.models.DeepImagePrior(network, (4, 4, 4), iterations=5, re_init=True)


def test_reconstructor_works_row_by_row_with_seeds_of_their_own(untrained):
    physics = denoising((1, 16, 16))
    truth = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    y = truth[[0, 1, 0]]
    options = {"sigma": 0.1, "solver": Reconstructor(untrained), "image_shape": (1, 16, 16)}
    together = invert(None, physics, y, **options)
    again = invert(None, physics, y, **options)
    assert torch.equal(together.x, again.x)
    assert not torch.equal(together.x[0], together.x[2])  # the same data, another seed
    for row in range(3):
        alone = invert(None, physics, y[row : row + 1], indices=[row], **options)
        assert torch.equal(alone.x[0], together.x[row])
    other = invert(None, physics, y, seed=1, **options)
    assert not torch.equal(other.x, together.x)
    largest = invert(None, physics, y[:1], seed=2**62, **options)
    assert largest.finite.all()


def test_reconstructor_leaves_the_generator_and_its_model_as_they_are(untrained):
    physics = denoising((1, 16, 16))
    before = [parameter.clone() for parameter in untrained.parameters()]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    found = invert(
        None,
        physics,
        torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)),
        sigma=0.1,
        solver=Reconstructor(untrained),
        image_shape=(1, 16, 16),
    )
    assert torch.equal(torch.rand(1), expected)
    for parameter, old in zip(untrained.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
    misfit = found.history["misfit"]
    assert misfit.shape == (101, 1)
    assert misfit[1] != misfit[0]
    assert (misfit[1:] == misfit[1]).all()


def test_reconstructor_needs_no_gradient(untrained):
    y = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    options = {"sigma": 0.1, "image_shape": (1, 16, 16)}

    class Rounded(deepinv.physics.Denoising):
        def A(self, x, **kwargs):
            return x.detach().mul(64).round() / 64

    class Data(nn.Module):
        def forward(self, y, physics):
            return y

    found = invert(None, Rounded(), y, solver=Reconstructor(Data()), **options)
    assert torch.equal(found.x, y)
    with pytest.raises(ValueError, match="no gradient"):
        invert(None, Rounded(), y, solver=TotalVariation(1.0), **options)


def test_reconstructor_says_what_does_not_fit():
    physics = denoising((1, 8, 8))
    y = torch.rand(2, 1, 8, 8)
    options = {"sigma": 0.1, "image_shape": (1, 8, 8)}

    class Small(nn.Module):
        def forward(self, y, physics):
            return y[..., :4, :4]

    with pytest.raises(ValueError, match=r"^model must give images \(1, 8, 8\)"):
        invert(None, physics, y, solver=Reconstructor(Small()), **options)
    own = deepinv.physics.Inpainting((1, 8, 8), mask=torch.ones(2, 1, 8, 8))
    with pytest.raises(ValueError, match="the same for all images"):
        invert(None, own, y, solver=Reconstructor(Small()), **options)


@dataclass(frozen=True)
class Random(Solver):
    """Latents that are drawn anew: it takes no gradient."""

    needs = ("generate",)
    differentiates = False

    def begin(self, problem):
        given = problem.latents
        return RandomRun(problem, self.start(problem) if given is None else given)

    def start(self, problem):
        return problem.prior.latent.draw(len(problem.y), seed=problem.seed, like=problem.like)


class RandomRun(ImageRun):
    def __init__(self, problem, z):
        prior = problem.prior
        super().__init__(problem, prior.to_unit_range(prior.generate(prior.latent.shaped(z))))
        self.z = z
        misfit = problem.noise.misfit(problem.forward(self.x), problem.y)
        self.values = {"loss": misfit}

    def step(self):
        pass


def test_restarts_of_a_solver_without_gradients():
    prior = LinearGaussian()

    def rounded(x):
        return (255 * x.detach()).round() / 255

    y = rounded(images_of(prior, 3))
    options = {"sigma": 0.1, "iterations": 1}
    one = invert(prior, rounded, y, solver=Random(), **options)
    best = invert(prior, rounded, y, solver=Restarts(Random(), 20), **options)
    assert (best.history["loss"][-1] < one.history["loss"][-1]).all()
    with pytest.raises(ValueError, match="rounded has no gradient, which Restarts needs"):
        invert(prior, rounded, y, solver=Restarts(MAP(), 2), **options)


class Deaf(Random):
    """Its runs cannot say which rows a warning is about."""

    def begin(self, problem):
        run = super().begin(problem)
        run.warnings = lambda: ["one"]
        return run


def test_restarts_need_warnings_by_rows_and_may_be_nested():
    prior = LinearGaussian()
    y = images_of(prior, 3)
    options = {"sigma": 0.1, "iterations": 5}
    with pytest.raises(ValueError, match=r"which RandomRun\.warnings does not take"):
        invert(prior, identity, y, solver=Restarts(Deaf(), 2), **options)
    nested = Restarts(Restarts(Discrepancy(MAP(), stage=1), 2), 2)
    found = invert(prior, identity, y, solver=nested, **options)
    assert found.x.shape == y.shape


def test_a_network_gets_data_in_its_own_precision():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, y, physics):
            return self.layer(y)

    model = Net().eval().requires_grad_(False)
    y = torch.rand(2, 1, 8, 8)
    options = {"sigma": 0.1, "iterations": 1, "image_shape": (1, 8, 8)}
    expected = invert(None, denoising((1, 8, 8)), y, solver=Reconstructor(model), **options).x
    found = invert(None, denoising((1, 8, 8)), y.double(), solver=Reconstructor(model), **options).x
    torch.testing.assert_close(found.float(), expected)
