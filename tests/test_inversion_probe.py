"""Wrong shapes of a user's part are one line, before anything is computed."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from datamodules import LayerModels
from evaluation.experiment import Experiment, Method
from evaluation.inversion import InversionEvaluation
from flowprior.inversion import MAP, Restarts, TotalVariation, invert
from flowprior.inversion.probe import check_misfits, check_prior
from flowprior.physics import Gaussian, Noise
from flowprior.priors import Module, Prior
from tests.inversion_problems import (
    LinearGaussian,
    Shifted,
    TwoParts,
    identity,
    small_decoder,
    two_part_decoder,
)

Y = torch.full((2, 1, 4, 4), 0.5).double()
DENSITY = MAP(penalty="log_density")


@dataclass(frozen=True)
class Wrong(Gaussian):
    """A noise model whose misfit is something else than (B,)."""

    kind: str = "column"

    def misfit(self, predicted, y):
        found = super().misfit(predicted, y)
        wrong = {"column": found[:, None], "scalar": found.sum(), "none": None}
        return wrong[self.kind]


class Decoding(LinearGaussian):
    """A prior whose `decode` returns something else."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def decode(self, z):
        return self.change(*super().decode(z))

    def generate(self, z, condition=None):
        return super().decode(z)[0]


def refusal(prior, noise=None, solver=None):
    steps = []
    observers = [lambda iteration, run: steps.append(iteration)]
    with pytest.raises(ValueError, match=r"^(noise|prior)") as caught:
        invert(prior, identity, Y, noise=noise or Gaussian(1.0), solver=solver, observers=observers)
    assert not steps
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["column", "scalar", "none", "unknown"])
@pytest.mark.parametrize("solver", [MAP(), TotalVariation(1.0)])
def test_misfit_of_another_shape(kind, solver):
    line = refusal(small_decoder(), Wrong(1.0, kind=kind), solver)
    assert line.startswith("noise: misfit of Wrong")


@pytest.mark.parametrize("wrap", [lambda solver: solver, lambda solver: Restarts(solver, 2)])
def test_misfit_of_a_solver_of_another_shape(wrap):
    assert "misfit of Wrong" in refusal(small_decoder(), solver=wrap(MAP(misfit=Wrong(1.0))))


CHANGES = {
    "scalar": (lambda x, log_det: (x, log_det.sum()), "log_det must be (B,)"),
    "column": (lambda x, log_det: (x, log_det[:, None]), "log_det must be (B,)"),
    "number": (lambda x, log_det: (x, 0.0), "got float"),
    "no log_det": (lambda x, log_det: x, "must return (x, log_det)"),
    "image": (lambda x, log_det: (x.flatten(1), log_det), "image_shape"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_decode_of_another_shape(change):
    function, words = CHANGES[change]
    line = refusal(Decoding(function), solver=DENSITY)
    assert line.startswith("prior: Decoding.decode")
    assert words in line


def frozen(module, shape, latent):
    return Module(module, shape, latent).eval().requires_grad_(False)


DECODERS = {
    "latent": (lambda: frozen(small_decoder().module, (1, 4, 4), [6]), "latent (1, 6)"),
    "name": (
        lambda: frozen(TwoParts(), (1, 4, 4), {"style": [3], "image": [1, 4, 4]}),
        "unexpected keyword argument 'image'",
    ),
    "image": (lambda: frozen(nn.Identity(), (1, 4, 4), [5]), "gives images (1, 5)"),
}


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_that_does_not_fit_its_shapes(name):
    make, words = DECODERS[name]
    line = refusal(make())
    assert line.startswith("prior: Module.generate")
    assert words in line


def test_condition_of_another_width():
    options = {"sigma": 1.0, "condition": torch.zeros(2, 7).double()}
    with pytest.raises(ValueError, match=r"Shifted.generate does not take .* condition \(1, 7\)"):
        invert(Shifted(), identity, Y, **options)


def test_a_solver_that_needs_no_prior_does_not_try_it():
    prior = frozen(nn.Linear(3, 3), (1, 4, 4), [6])
    options = {"sigma": 1.0, "solver": TotalVariation(1.0), "iterations": 1}
    assert invert(prior, identity, Y, **options).x.shape == Y.shape


def test_it_is_one_row_and_not_the_global_generator():
    rows = []

    class Counted(Module):
        def generate(self, z, condition=None):
            rows.append(len(z))
            return super().generate(z)

    prior = Counted(TwoParts(), (1, 4, 4), two_part_decoder().latent.parts)
    before = torch.get_rng_state()
    check_prior(prior, ("generate",))
    assert rows == [1]
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_without_a_density_is_for_those_who_use_it_to_refuse():
    check_misfits(
        TotalVariation(1.0, misfit=Gaussian(1.0)), SimpleNamespace(y=Y, noise=Gaussian(0))
    )


def evaluation(prior: Prior, noise: Noise) -> InversionEvaluation:
    return InversionEvaluation(
        priors={"mine": prior},
        methods={"map": Method(MAP())},
        experiments=[Experiment({}, "gaussian_blur", {"tau": 1.0}, noise)],
        data=LayerModels(image_size=16, num_test=2),
        images=2,
    )


def test_tables_find_it_before_anything_is_measured():
    layers = nn.Sequential(nn.Linear(24, 256), nn.Unflatten(1, (1, 16, 16)))
    right, wrong = (Module(layers, (1, 16, 16), [size]) for size in (24, 25))
    evaluation(right, Gaussian(0.1)).check()
    with pytest.raises(ValueError, match=r"priors.mine: Module.generate .* latent \(1, 25\)"):
        evaluation(wrong, Gaussian(0.1)).check()
    with pytest.raises(ValueError, match=r"experiments\[0\]: methods.map: noise: misfit of Wrong"):
        evaluation(right, Wrong(0.1)).check()
