"""Options that have no effect because of others are told."""

import pytest
import torch
from torch import nn

from flowprior.gaussianization import Gaussianization
from flowprior.inversion import (
    DPS,
    MAP,
    DeepImagePrior,
    Discrepancy,
    IFlow,
    PlugAndPlay,
    Reconstructor,
    Restarts,
    TotalVariation,
    invert,
)
from flowprior.posterior import Preconditioned, Variational
from tests.inversion_problems import LinearGaussian, blur, images_of, small_glow

PRIOR = LinearGaussian(size=8)
Y = blur(images_of(PRIOR, 2))


class Mean(nn.Module):
    """A denoiser that gives the mean, and a reconstruction that is blurred again."""

    def forward(self, x, level):
        return x.mean((1, 2, 3), keepdim=True).expand_as(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MAP(learning_rate=0.1), r"learning_rate=0.1 .* optimizer=\"lbfgs\": leave it out"),
        (lambda: MAP(penalty="none", beta=2.0), r"beta=2.0 has no effect with penalty=\"none\""),
        (lambda: MAP(penalty="none", beta_unit="bits_per_dim"), "^beta_unit='bits_per_dim' has no"),
        (lambda: IFlow(through=False, learning_rate=0.1), "^learning_rate=0.1 .* through=False"),
        (lambda: IFlow(through=False, tolerance=0.1), "^tolerance=0.1 .* through=False"),
        (lambda: Variational(whiten=True, start_scale=1.0), "^start_scale=1.0 .* whiten=True"),
        (lambda: Preconditioned(density=small_glow(8), tempering=0.5), "^tempering=0.5 .* density"),
        (lambda: Gaussianization(standardize=False, temperature=0.5), "^temperature=0.5 has no"),
    ],
)
def test_options_without_effect_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_same_options_left_out_or_with_an_effect_pass():
    assert MAP(optimizer="adam", learning_rate=0.1).learning_rate == 0.1
    assert MAP(penalty="none").beta == 1
    assert MAP(penalty="none", beta=0.0).beta == 0
    assert IFlow(through=False).tolerance == 0
    assert Preconditioned(whiten=True).start_scale == 1.0
    assert Variational(start_scale=1.0).start_scale == 1.0


@pytest.mark.parametrize(
    ("prior", "options", "message"),
    [
        (PRIOR, {"start": Y, "latents": torch.zeros(2, 64)}, "start and latents: give one"),
        (PRIOR, {"image_shape": (1, 4, 4)}, r"image_shape is \(1, 4, 4\), but the prior's is"),
        (
            PRIOR,
            {"latents": torch.zeros(2, 64), "solver": TotalVariation(1.0)},
            "TotalVariation starts from images: give start, not latents",
        ),
    ],
)
def test_arguments_of_invert_that_contradict_each_other_are_refused(prior, options, message):
    with pytest.raises(ValueError, match=message):
        invert(prior, blur, Y, sigma=0.1, iterations=1, **options)


@pytest.mark.parametrize(
    ("solver", "told"),
    [
        (DPS(Mean(), stages=2), True),
        (DeepImagePrior(channels=4, layers=2), True),
        (Reconstructor(nn.Bilinear(1, 1, 1)), True),
        (TotalVariation(1.0), False),
        (Restarts(MAP(), count=2), False),
    ],
)
def test_a_start_without_effect_is_warned_of(solver, told):
    options = {"solver": solver, "iterations": 0, "sigma": 0.1}
    for start in (None, Y):
        found = invert(PRIOR, blur, Y, start=start, **options)
        warned = [warning for warning in found.warnings if "makes no use of start" in warning]
        assert bool(warned) == (told and start is not None)


@pytest.mark.parametrize("solver", [DPS(Mean(), stages=3), PlugAndPlay(Mean(), stages=3)])
def test_missing_stages_are_warned_of(solver):
    for iterations in (2, 3):
        found = invert(PRIOR, blur, Y, sigma=0.1, solver=solver, iterations=iterations)
        warned = [warning for warning in found.warnings if "only 2 of 3 stages" in warning]
        assert bool(warned) == (iterations == 2)


def test_a_beta_that_could_not_change_is_warned_of():
    for iterations in (10, 11):
        solver = Discrepancy(MAP())
        found = invert(PRIOR, blur, Y, sigma=0.1, solver=solver, iterations=iterations)
        warned = [warning for warning in found.warnings if "beta is the solver's" in warning]
        assert bool(warned) == (iterations == 10)
