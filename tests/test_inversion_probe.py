"""Wrong shapes of a user's part are one line, before anything is computed."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from datamodules import LayerModels
from evaluation.experiment import Experiment, Method
from evaluation.inversion import InversionEvaluation
from flowprior.inversion import MAP, IFlow, ImageRun, Restarts, Solver, TotalVariation, invert
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
    assert rows == [1, 1]  # twice, to compare
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_without_a_density_is_for_those_who_use_it_to_refuse():
    check_misfits(
        TotalVariation(1.0, misfit=Gaussian(1.0)), SimpleNamespace(y=Y, noise=Gaussian(0))
    )


class Silent(LinearGaussian):
    """A prior whose images have no gradient."""

    @torch.no_grad()
    def generate(self, z, condition=None):
        return super().generate(z)

    def decode(self, z):
        x, log_det = super().decode(z)
        return x.detach(), log_det


class Detached(Gaussian):
    """A noise model whose misfit has no gradient."""

    def misfit(self, predicted, y):
        return super().misfit(predicted.detach(), y)


@dataclass(frozen=True)
class Grey(Solver):
    """A solver over images that differentiates nothing, but needs the prior."""

    needs = ("generate",)
    differentiates = False

    def begin(self, problem):
        run = ImageRun(problem)
        run.step = run.measure
        return run


@pytest.mark.parametrize("penalty", ["latent_norm", "none", "log_density"])
@pytest.mark.parametrize("wrap", [lambda solver: solver, lambda solver: Restarts(solver, 2)])
def test_prior_without_gradient(penalty, wrap):
    solver = wrap(MAP(penalty=penalty))
    method = "decode" if penalty == "log_density" else "generate"
    expected = f"prior: Silent.{method} has no gradient, which {type(solver).__name__} needs"
    assert refusal(Silent(), solver=solver) == expected


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("solver", [MAP, lambda misfit: TotalVariation(1.0, misfit=misfit)])
def test_misfit_without_gradient(solver, own):
    noise = Gaussian(1.0) if own else Detached(1.0)
    line = refusal(small_decoder(), noise, solver(misfit=Detached(1.0) if own else None))
    assert line.startswith("noise: misfit of Detached has no gradient, which ")


def test_gradients_are_asked_of_no_more_than_what_is_differentiated():
    options = {"solver": Grey(), "iterations": 1}
    assert invert(Silent(), identity, Y, noise=Detached(1.0), **options).x.shape == Y.shape
    own = MAP(misfit=Gaussian(1.0))  # the noise of the data only measures the residual
    invert(small_decoder(), identity, Y, noise=Detached(1.0), solver=own, iterations=1)


@pytest.mark.parametrize("solver", [MAP(), DENSITY, Grey()])
def test_prior_that_draws_random_numbers(solver):
    class Noisy(LinearGaussian):
        def decode(self, z):
            x, log_det = super().decode(z)
            return x + 1e-3 * torch.randn_like(x), log_det

    line = refusal(Noisy(), solver=solver)
    assert "gives different images of one latent" in line
    assert "part of the latent" in line


class Projecting(LinearGaussian):
    """Every image is in its range; a change of what its projection returns."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def project(self, x):
        return self.change(x, -0.5 * x.flatten(1).square().sum(1))[0]

    def project_with_log_prob(self, x):
        return self.change(x, -0.5 * x.flatten(1).square().sum(1))


PROJECTIONS = {
    "random": (lambda x, p: (x + 1e-3 * torch.randn_like(x), p), "different images of one image"),
    "image": (lambda x, p: (x.flatten(1), p), "gives images (1, 16) of one image"),
    "none": (lambda x, p: (None, p), "gives images NoneType of one image"),
    "error": (lambda x, p: (x @ x[:, :, :2], p), "does not take an image (1, 1, 4, 4)"),
}
LOG_PROBS = {
    "column": (lambda x, p: (x, p[:, None]), "log_prob must be (B,), here (1,), got (1, 1)"),
    "scalar": (lambda x, p: (x, p.sum()), "log_prob must be (B,), here (1,), got ()"),
    "no tuple": (lambda x, p: x, "must return (x, log_prob), got (1, 1, 4, 4)"),
    "silent": (
        lambda x, p: (x, p.detach()),
        "has no gradient of its log_prob, which IFlow needs: use beta=0",
    ),
}


@pytest.mark.parametrize("solver", [IFlow(), IFlow(through=False)])
@pytest.mark.parametrize("change", PROJECTIONS)
def test_projection_of_another_shape_or_with_random_numbers(change, solver):
    function, words = PROJECTIONS[change]
    line = refusal(Projecting(function), solver=solver)
    assert line.startswith("prior: Projecting.project ")
    assert words in line


@pytest.mark.parametrize("solver", [IFlow(beta=1.0), IFlow(beta=1.0, through=False)])
@pytest.mark.parametrize("change", {**PROJECTIONS, **LOG_PROBS})
def test_projection_with_another_density(change, solver):
    function, words = {**PROJECTIONS, **LOG_PROBS}[change]
    line = refusal(Projecting(function), solver=solver)
    assert line.startswith("prior: Projecting.project_with_log_prob")
    assert words in line


def test_projection_without_gradient_is_for_steps_that_do_not_go_through_it():
    def silent(x, log_prob):
        return x.detach(), log_prob

    end = "has no gradient, which IFlow needs: use IFlow(through=False), or make"
    for beta in (0.0, 1.0):
        method = "project_with_log_prob" if beta else "project"
        line = refusal(Projecting(silent), solver=IFlow(beta=beta))
        assert line == f"prior: Projecting.{method} {end} {method} differentiable"
        solver = IFlow(beta=beta, through=False)
        options = {"noise": Gaussian(1.0), "solver": solver, "iterations": 1}
        assert invert(Projecting(silent), identity, Y, **options).x.shape == Y.shape


def test_tables_try_projections_too():
    prior = Projecting(lambda x, log_prob: (x.detach(), log_prob))
    prior.image_shape = (1, 16, 16)
    table = evaluation(prior.float(), Gaussian(0.1))
    table.methods["map"] = Method(IFlow(through=False))
    table.check()
    table.methods["map"] = Method(IFlow())
    with pytest.raises(ValueError, match=r"priors.mine: Projecting.project has no gradient"):
        table.check()


def test_misfit_of_all_images_together():
    class Total(Gaussian):
        def misfit(self, predicted, y):
            return super().misfit(predicted, y).sum().view(1)

    assert "must be (B,), here (2,), got (1,)" in refusal(small_decoder(), Total(1.0))


@pytest.mark.parametrize("wrong", [lambda r: r[0], lambda r: r.mean((1, 2, 3)), lambda r: 1.0])
def test_standardised_of_another_shape(wrong):
    class Misshapen(Gaussian):
        def standardised(self, predicted, y):
            return wrong(super().standardised(predicted, y))

    line = refusal(small_decoder(), Misshapen(1.0))
    assert line.startswith("noise: standardised of Misshapen must be of the shape of y")


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
