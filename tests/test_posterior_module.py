"""PosteriorModule under a Trainer."""

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from callbacks import InversionCurves
from flowprior.inversion import MAP, Restarts, invert
from flowprior.posterior import (
    PSGLD,
    Amortised,
    Coupling,
    Langevin,
    Preconditioned,
    TemperedSMC,
    Variational,
)
from flowprior.posterior.ensemble import Ensemble
from lightning_modules import PosteriorModule
from tests.inversion_problems import Shifted, blur, identity, images_of, small_decoder
from tests.test_inversion_module import fit

SOLVERS = {
    "Langevin": Langevin(chains=2, warm_up=4, leapfrog=2),
    "TemperedSMC": TemperedSMC(particles=8, moves=1, leapfrog=2),
    "PSGLD": PSGLD(chains=2, warm_up=4, thin=1),
    "Variational": Variational(Coupling(hidden=4), draws=4),
}


@pytest.fixture(scope="module")
def decoder():
    return small_decoder()


@pytest.fixture(scope="module")
def y(decoder):
    return blur(images_of(decoder, 3))


def assert_same(module, expected):
    assert torch.equal(module.images, expected.x)
    for name, values in module.run.values.items():
        assert torch.equal(values, expected.history[name][-1])
    drawn = module.posterior.sample(5, seed=1)
    assert torch.equal(drawn, expected.posterior.sample(5, seed=1))


@pytest.mark.filterwarnings("ignore:.*chains do not agree", "ignore:.*still fell")
@pytest.mark.parametrize("name", SOLVERS)
def test_module_does_what_invert_does(decoder, y, tmp_path, name):
    options = {"solver": SOLVERS[name], "sigma": 0.1, "iterations": 9, "seed": 1}
    expected = invert(decoder, blur, y, **options)
    module = PosteriorModule(decoder, blur, y, **options)
    assert [name for name, p in module.named_parameters() if p.requires_grad] == ["v"]
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    before = module.v.detach().clone()
    fit(module, saving, InversionCurves())
    assert_same(module, expected)
    assert torch.equal(module.v, before) != isinstance(module.run, Ensemble)  # which moves it
    for path in tmp_path.glob("*.ckpt"):
        resumed = PosteriorModule(decoder, blur, y, **options)
        fit(resumed, ckpt_path=path)
        assert_same(resumed, expected)


def test_warnings_of_the_chains_are_warnings(decoder, y):
    module = PosteriorModule(decoder, blur, y, sigma=0.1, solver=SOLVERS["Langevin"], iterations=6)
    with pytest.warns(UserWarning, match="kept draws of each chain, too few"):
        fit(module)


def test_wrong_use_is_one_clear_line(decoder, y):
    options = {"sigma": 0.1, "iterations": 2}
    with pytest.raises(ValueError, match=r"^solver MAP has no posterior: take one"):
        fit(PosteriorModule(decoder, blur, y, solver=MAP(), **options))
    with pytest.raises(ValueError, match=r"^Restarts compares losses, which the runs of Langevin"):
        invert(decoder, blur, y, solver=Restarts(Langevin(), 2), **options)
    module = PosteriorModule(decoder, blur, y, solver=Langevin(), **options)
    with pytest.raises(RuntimeError, match="before Trainer"):
        module.posterior  # noqa: B018
    with pytest.warns(UserWarning, match="the first draw is kept after 301 iterations"):
        fit(module)
    with pytest.raises(RuntimeError, match="before the warm-up has ended"):
        module.posterior  # noqa: B018


@pytest.mark.filterwarnings("ignore:.*still fell")
@pytest.mark.parametrize("solver", [Amortised(), Preconditioned(Coupling(hidden=4), draws=4)])
def test_module_takes_a_conditional_prior(solver):
    prior = Shifted().requires_grad_(False)
    data = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    options = {"solver": solver, "sigma": 0.1, "iterations": 5, "condition": data}
    module = PosteriorModule(prior, identity, data, **options)
    fit(module)
    assert_same(module, invert(prior, identity, data, **options))
