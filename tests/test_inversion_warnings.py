"""What an estimate warns of."""

import math

import pytest
import torch

from flowprior.inversion import MAP, Discrepancy, ImageRun, Solver, TotalVariation, invert
from flowprior.inversion.convergence import STILL, fall
from flowprior.physics import Gaussian, gaussian_blur, random_inpainting
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
    (warning,) = warned(wrong, "residual")
    assert "the noise level is too large, or not in the units of y" in warning
    fitted = invert(prior, identity, y, sigma=0.2, solver=MAP(beta=0.0), **options)
    (warning,) = warned(fitted, "residual")
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


@pytest.mark.parametrize("noise", [{"sigma": 0.1}, {}])
def test_images_far_beyond_their_range_are_named(noise):
    y = torch.rand(4, 1, 4, 4).double()
    y[1, 0, 0, 0], y[2, 0, 3, 3], y[3, 0, 1, 1] = 1.25, -0.4, 1.9
    found = invert(
        None, identity, y, solver=TotalVariation(0.0, misfit=Gaussian(0.1)), start=y, **noise
    )
    (warning,) = warned(found, "far beyond [0, 1]")
    assert warning.startswith("rows 2, 3: images go from -0.4 to 1.9")
    assert (warning.rows, warning.size) == ((2, 3), pytest.approx(0.9))


def test_data_are_taken_in_the_precision_of_the_prior_or_of_the_operator(glow, y):
    options = {"sigma": SIGMA, "iterations": 5}
    expected = invert(glow, blur, y, **options)
    found = invert(
        glow, blur, y.to(torch.float64 if y.dtype == torch.float32 else torch.float32), **options
    )
    assert found.x.dtype == expected.x.dtype == glow.like.dtype
    torch.testing.assert_close(found.x, expected.x, rtol=0, atol=1e-5)
    physics = gaussian_blur((1, 16, 16), tau=1.0)
    y = physics.A(torch.rand(2, 1, 16, 16))
    options = {"sigma": 0.1, "solver": TotalVariation(1.0), "iterations": 5}
    images = invert(None, physics, y.double(), start=y.double(), **options).x
    assert images.dtype == torch.float32  # its filter does not take others
    assert torch.equal(images, invert(None, physics, y, start=y, **options).x)
    mask = random_inpainting((1, 16, 16), kept=0.5)
    assert mask.mask.dtype == torch.float32
    assert invert(None, mask, y.double(), start=y.double(), **options).x.dtype == torch.float64
    double = invert(None, physics.double(), y.double(), start=y, **options).x
    assert double.dtype == torch.float64
    with pytest.raises(ValueError, match=r"^y must be floating point .*: give y.float\(\)$"):
        invert(None, physics, (255 * y).byte(), start=y, **options)


class Talking(Solver):
    """Its runs have the warnings and the names of values that it is made with."""

    def __init__(self, warnings=(), values=(("misfit",),)):
        self.said, self.names = warnings, values

    def begin(self, problem):
        return TalkingRun(problem, self)


class TalkingRun(ImageRun):
    def __init__(self, problem, solver):
        super().__init__(problem)
        self.said, self.names, self.steps = solver.said, solver.names, 0
        self.tell()

    def tell(self):
        names = self.names[min(self.steps, len(self.names) - 1)]
        self.values = {name: torch.ones(len(self.x)).double() for name in names}

    def step(self):
        self.steps += 1
        self.tell()

    def warnings(self):
        return self.said


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("one sentence", ("one sentence",)),
        (["a", "b"], ("a", "b")),
        (iter("ab"), ("a", "b")),
        (None, ()),
        ([7, None], ("7", "None")),
    ],
)
def test_warnings_of_a_run_may_be_one_sentence_or_several(said, expected):
    y = torch.rand(2, 1, 4, 4)
    found = invert(None, identity, y, solver=Talking(said), start=y, iterations=1)
    assert found.warnings == found.own_warnings == expected


def test_values_that_come_late_are_named_and_those_that_go_end_the_run():
    y = torch.rand(2, 1, 4, 4)
    options = {"start": y, "iterations": 2}
    later = Talking(values=(("misfit",), ("misfit", "more")))
    found = invert(None, identity, y, solver=later, **options)
    assert found.history.keys() == {"misfit"}
    (warning,) = found.warnings
    assert warning == "values were not there at iteration 0, and are not kept: more"
    gone = Talking(values=(("misfit", "more"), ("misfit",)))
    with pytest.raises(
        ValueError, match=r"^TalkingRun.values must keep .* at iteration 1 it lacks more$"
    ):
        invert(None, identity, y, solver=gone, **options)
