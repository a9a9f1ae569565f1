"""What an estimate warns of."""

import math

import pytest
import torch

from flowprior.inversion import MAP, Discrepancy, ImageRun, Solver, TotalVariation, invert
from flowprior.inversion.convergence import STILL, fall
from flowprior.physics import Gaussian
from tests.inversion_problems import LinearGaussian, blur, identity, images_of, small_glow

SIGMA = 0.1
FALLING = "the loss still fell by up to"


@pytest.fixture(scope="module")
def glow():
    return small_glow()


@pytest.fixture(scope="module")
def y(glow):
    return Gaussian(SIGMA).add(blur(images_of(glow)), seed=0, indices=range(4))


def warned(found, words):
    return [warning for warning in found.warnings if words in warning]


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_rows_that_were_stopped_too_early_are_named(glow, y, optimizer):
    solver = MAP(optimizer=optimizer)
    few = invert(glow, blur, y, sigma=SIGMA, solver=solver, iterations=5)
    (warning,) = warned(few, FALLING)
    assert warning.startswith("rows 0, 1, 2, 3: ")
    many = invert(glow, blur, y, sigma=SIGMA, solver=solver, iterations=400)
    assert not warned(many, FALLING)


class Halving(Solver):
    """A loss that halves; the first image ends after 10 iterations, by itself."""

    def begin(self, problem):
        return HalvingRun(problem)


class HalvingRun(ImageRun):
    def __init__(self, problem):
        super().__init__(problem)
        self.values = {"loss": torch.ones(len(self.x)).double()}

    @property
    def active(self):
        ended = torch.arange(len(self.x)) == 0
        return ~(ended & (self.values["loss"] < 2**-9.5))

    def step(self):
        self.values = {"loss": torch.where(self.active, 0.5, 1) * self.values["loss"]}


def test_rows_that_ended_do_not_count():
    y = torch.rand(3, 1, 4, 4)
    for iterations, rows in ((9, "rows 0, 1, 2: "), (10, "rows 1, 2: ")):
        options = {"solver": Halving(), "iterations": iterations, "start": y}
        (warning,) = invert(None, identity, y, **options).warnings
        assert warning.startswith(f"{rows}{FALLING} 100 %")


def test_no_word_of_the_loss_without_one_or_where_beta_changes(glow, y):
    few = {"sigma": SIGMA, "iterations": 5}
    assert not warned(invert(glow, blur, y, solver=Discrepancy(MAP(), stage=2), **few), FALLING)
    none = invert(glow, blur, y, sigma=SIGMA, iterations=0)
    assert not warned(none, FALLING)


def test_noise_that_is_fitted_takes_no_more_iterations(glow, y):
    found = invert(glow, blur, y, sigma=SIGMA, solver=MAP(beta=0.0), iterations=20)
    assert fall(found.history).min() > STILL
    assert warned(found, "noise is fitted")
    assert not warned(found, FALLING)


def test_fall_is_a_percentage_of_loss_or_misfit():
    loss = torch.linspace(50, 10, 41).double()[:, None] * torch.tensor([1.0, -1.0])
    torch.testing.assert_close(fall({"loss": loss}), torch.tensor([40.0, 0.0]).double())
    found = fall({"loss": loss, "misfit": torch.full_like(loss, 100.0)})
    torch.testing.assert_close(found, torch.tensor([4.0, 0.0]).double())
    assert fall({"loss": torch.zeros(2, 1)}) == 0


@pytest.mark.parametrize("start", [None, "data"])
def test_a_noise_level_in_other_units_is_not_noise_that_is_fitted(start):
    prior = LinearGaussian(size=16)
    y = Gaussian(0.2).add(images_of(prior), seed=0, indices=range(4))
    options = {"start": y if start else None, "iterations": 20}
    wrong = invert(prior, identity, y, sigma=51.0, **options)
    (warning,) = wrong.warnings
    assert "the noise level is too large, or not in the units of y" in warning
    fitted = invert(prior, identity, y, sigma=0.2, solver=MAP(beta=0.0), **options)
    (warning,) = fitted.warnings
    assert "the noise is fitted" in warning


def test_a_huge_residual_may_be_one_of_units():
    y = torch.full((2, 1, 8, 8), 0.5).double()
    y[:, :, :, ::2] = 1.0
    start = {"image_shape": (1, 8, 8), "solver": TotalVariation(1e6), "iterations": 20}
    for factor, told in ((2, False), (255, True)):
        found = invert(None, identity, factor * y, sigma=0.1, **start)
        (warning,) = warned(found, "a smaller weight of the prior (beta, weight)")
        assert ("in the units of images in [0, 1]" in warning) == told


@pytest.mark.parametrize(
    ("low", "high", "told"), [(-0.5, 0.5, True), (-1, 1, True), (0, 0.5, False), (-0.6, 1.6, False)]
)
def test_a_start_that_is_centred_at_zero(low, high, told):
    y = torch.rand(2, 1, 4, 4).double()
    start = low + (high - low) * torch.linspace(0, 1, 32).double().view(2, 1, 4, 4)
    found = invert(None, identity, y, sigma=1.0, solver=TotalVariation(1.0), start=start)
    assert bool(warned(found, f"start goes from {low:.2g} to {high:.2g}")) == told
    assert math.isfinite(found.x.sum())
