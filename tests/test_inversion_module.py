"""InversionModule under a Trainer."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import Gaussianization, InversionCurves
from callbacks.gaussianization import with_layers
from flowprior.gaussianization import Gaussianization as Layers
from flowprior.inversion import MAP, Discrepancy, Restarts, TotalVariation, invert
from flowprior.physics import Gaussian
from lightning_modules import FlowModule, InversionModule
from tests.inversion_problems import (
    SIZE,
    Shifted,
    blur,
    identity,
    images_of,
    small_decoder,
    small_glow,
    two_part_decoder,
)

LAYERS = Layers(patch_size=2, rotation="none", temperature=0.9)
WEAK = MAP(beta=1e-3, projection_iterations=5)
ADAM = replace(WEAK, optimizer="adam")
SOLVERS = {
    "lbfgs": WEAK,
    "adam": ADAM,
    "discrepancy": Discrepancy(MAP(projection_iterations=5), stage=2),
    "restarts": Restarts(WEAK, 2),
    "restarts of adam": Restarts(ADAM, 2),
}


@pytest.fixture(scope="module")
def glow():
    return small_glow()


@pytest.fixture(scope="module")
def truth(glow):
    return images_of(glow, 3)


@pytest.fixture(scope="module")
def y(truth):
    return blur(truth)


def fit(module, *callbacks, logger=False, **resume):
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        logger=logger,
        callbacks=list(callbacks),
    )
    trainer.fit(module, **resume)
    return trainer


def assert_same(module, expected):
    assert torch.equal(module.images, expected.x)
    assert torch.equal(module.run.z, expected.z)
    for name, values in module.run.values.items():
        assert torch.equal(values, expected.history[name][-1])


@pytest.mark.parametrize("layers", [None, LAYERS])
@pytest.mark.parametrize("name", SOLVERS)
def test_module_does_what_invert_does(glow, y, name, layers):
    solver = SOLVERS[name]
    options = {"sigma": 0.2, "iterations": 6, "seed": 1}
    module = InversionModule(glow, blur, y, solver=solver, **options)
    assert [name for name, p in module.named_parameters() if p.requires_grad] == ["v"]
    trainer = fit(module, *([Gaussianization(layers)] if layers else []))
    full = with_layers(solver, layers) if layers else solver
    expected = invert(glow, blur, y, solver=full, **options)
    assert_same(module, expected)
    logged = trainer.callback_metrics["inversion/misfit"]
    torch.testing.assert_close(logged.double(), expected.history["misfit"][-1].mean())


@pytest.mark.parametrize("layers", [None, LAYERS])
@pytest.mark.parametrize("name", ["lbfgs", "restarts"])
def test_module_starts_where_invert_does(glow, truth, y, name, layers):
    options = {"sigma": 0.2, "iterations": 2, "start": truth.flip(3)}
    module = InversionModule(glow, blur, y, solver=SOLVERS[name], **options)
    fit(module, *([Gaussianization(layers)] if layers else []))
    solver = with_layers(SOLVERS[name], layers) if layers else SOLVERS[name]
    assert_same(module, invert(glow, blur, y, solver=solver, **options))


def test_module_with_a_condition_a_noise_model_and_given_latents():
    condition = torch.tensor([0.2, 0.8]).double().view(2, 1, 1, 1)
    y = torch.full((2, 1, 4, 4), 0.5).double()
    options = {"noise": Gaussian(0.1), "condition": condition, "iterations": 3}
    options["latents"] = torch.ones(2, 16).double()
    module = InversionModule(Shifted(), identity, y, **options)
    assert torch.equal(module.v.detach(), options["latents"])
    fit(module)
    assert_same(module, invert(Shifted(), identity, y, **options))
    assert (options["latents"] == 1).all()


def test_layers_by_part():
    prior = two_part_decoder()
    y = images_of(prior, 2)
    solver = MAP(penalty="none")
    module = InversionModule(prior, identity, y, sigma=1.0, solver=solver, iterations=2)
    fit(module, Gaussianization({"picture": LAYERS}))
    picture = prior.latent.split(module.run.z)["picture"]
    assert (picture.std((1, 2, 3), correction=0) - 0.9).abs().max() < 1e-9
    module = InversionModule(prior, identity, y, sigma=1.0, solver=solver, iterations=2)
    with pytest.raises(ValueError, match="style, picture"):
        fit(module, Gaussianization())


@pytest.mark.parametrize("name", SOLVERS)
def test_resumed_inversion_is_the_whole_one(glow, truth, y, tmp_path, name):
    def fitted(*callbacks, **resume):
        module = InversionModule(
            glow, blur, y, sigma=0.2, solver=SOLVERS[name], iterations=6, start=truth.flip(3)
        )
        fit(module, *callbacks, Gaussianization(LAYERS), **resume)
        return module

    saving = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    expected = fitted(saving, InversionCurves(images=1))
    path = next(tmp_path.glob("*step=3.ckpt"))
    curves = InversionCurves(images=1)
    resumed = fitted(curves, ckpt_path=path)
    assert torch.equal(resumed.v, expected.v)
    assert torch.equal(resumed.images, expected.images)
    for value, other in zip(resumed.run.values.values(), expected.run.values.values(), strict=True):
        assert torch.equal(value, other)
    assert curves.recording.iterations == list(range(7))
    assert list(curves.recording.snapshots) == [0, 1, 2, 5, 6]
    assert curves.recording.curves["misfit"].shape == (7, 3)


def test_finished_inversion_is_resumed_without_a_word(glow, y, tmp_path):
    def module():
        return InversionModule(glow, blur, y, sigma=0.2, iterations=2)

    fitted = module()
    fit(fitted, ModelCheckpoint(tmp_path, every_n_train_steps=2), InversionCurves())
    (path,) = tmp_path.glob("*.ckpt")
    resumed, curves = module(), InversionCurves()
    fit(resumed, curves, ckpt_path=path)
    assert torch.equal(resumed.images, fitted.images)
    assert curves.recording.iterations == [0, 1, 2]


def test_checkpoint_of_another_solver_is_refused(glow, y, tmp_path):
    def module(solver=None):
        return InversionModule(glow, blur, y, sigma=0.2, solver=solver, iterations=2)

    saving = ModelCheckpoint(tmp_path, every_n_train_steps=1)
    fit(module(), saving, Gaussianization(LAYERS))
    path = next(tmp_path.glob("*.ckpt"))
    for other, callbacks in (
        (module(), []),
        (module(), [Gaussianization()]),
        (module(MAP(beta=2.0)), [Gaussianization(LAYERS)]),
        (module(Restarts(MAP(), 1)), [Gaussianization(LAYERS)]),
    ):
        with pytest.raises(ValueError, match=r"^solver: .*Gaussianization") as caught:
            fit(other, *callbacks, ckpt_path=path)
        assert "\n" not in str(caught.value)


def test_tensorboard_shows_curves_pictures_and_typicality(glow, y, tmp_path):
    truth = torch.rand(3, 1, SIZE, SIZE, dtype=torch.float64)
    curves = InversionCurves(truth, images=2)
    module = InversionModule(glow, blur, y, sigma=1.0, solver=MAP(1e-3), iterations=6)
    fit(module, Gaussianization(LAYERS), curves, logger=TensorBoardLogger(tmp_path))
    (path,) = tmp_path.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 0}).Reload()
    for name in ("loss", "misfit", "log_prior", "psnr", "ssim"):
        expected = curves.recording.curves[name].mean(1).tolist()
        shown = [event.value for event in events.Scalars(f"inversion/{name}")]
        assert shown == pytest.approx(expected, rel=1e-5)
        spread = events.Scalars(f"inversion_spread/{name}_high")
        deviation = curves.recording.curves[name].std(1, correction=0)[-1].item()
        assert spread[-1].value - shown[-1] == pytest.approx(deviation, rel=1e-3)
    steps = [event.step for event in events.Images("inversion/images")]
    assert steps == [event.step for event in events.Scalars("latent/radius")] == [0, 1, 2, 5, 6]
    assert len(events.Images("inversion/latent_qq")) == 1
    assert events.Scalars("latent/radius")[-1].value == pytest.approx(0.9, abs=1e-5)
    assert torch.equal(curves.latents, module.run.z)


def test_curves_of_a_decoder_with_vectors_for_latents(tmp_path):
    prior = small_decoder()
    module = InversionModule(
        prior,
        identity,
        images_of(prior, 2),
        sigma=0.1,
        solver=Restarts(MAP(penalty="latent_norm"), 2),
        iterations=2,
    )
    curves = InversionCurves()
    fit(module, curves, logger=TensorBoardLogger(tmp_path))
    assert curves.latents.shape == (2, 5)
    assert curves.recording.iterations == [0, 1, 2]


def test_lightning_counts_iterations(glow, y, tmp_path):
    module = InversionModule(glow, blur, y, sigma=1.0, iterations=6)
    options = {"accelerator": "cpu", "enable_progress_bar": False, "default_root_dir": tmp_path}
    curves = InversionCurves()
    trainer = pl.Trainer(max_steps=4, max_epochs=3, callbacks=[curves], logger=False, **options)
    trainer.fit(module)
    assert trainer.global_step == 4
    assert curves.recording.iterations == [0, 1, 2, 3, 4]
    curves = InversionCurves()
    module = InversionModule(glow, blur, y, sigma=1.0, iterations=3)
    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=2, save_top_k=-1)
    rate = LearningRateMonitor()
    logger = TensorBoardLogger(tmp_path)
    pl.Trainer(max_epochs=2, callbacks=[curves, saving, rate], logger=logger, **options).fit(module)
    assert curves.recording.iterations == list(range(7))
    assert len(list((tmp_path / "saved").glob("*.ckpt"))) == 3


def test_prior_is_frozen_by_the_module(y):
    prior = small_glow().train().requires_grad_(True)
    InversionModule(prior, blur, y, sigma=1.0)
    assert not prior.training
    assert not any(parameter.requires_grad for parameter in prior.parameters())


WRONG = {
    "no iterations": ({"iterations": 0}, "^iterations"),
    "half iterations": ({"iterations": 2.5}, "^iterations"),
    "solver": ({"solver": "map"}, "^solver"),
    "solver over images": (
        {"solver": TotalVariation(1.0)},
        r"^solver TotalVariation .* `start\(problem\)`.* invert",
    ),
    "start": ({"start": torch.zeros(1)}, "^start"),
    "latents": ({"latents": torch.zeros(3, 4)}, "^latents"),
    "condition": ({"condition": torch.zeros(3, 1)}, "^condition"),
    "shape of y": ({"y": torch.zeros(3, 1, 8, 8).double()}, "^y must"),
    "numpy y": ({"y": np.zeros((3, 1, SIZE, SIZE))}, "^y must"),
    "noise level": ({"sigma": -1.0}, "^sigma"),
    "prior": ({"prior": torch.nn.Linear(2, 2)}, "^prior must"),
    "decoder": (
        {
            "prior": small_decoder(),
            "y": torch.zeros(1, 1, 4, 4).double(),
            "solver": MAP(penalty="log_density"),
        },
        "latent_norm",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_one_clear_line(glow, y, name):
    change, words = WRONG[name]
    given = {"prior": glow, "physics": identity, "y": y, "sigma": 1.0}
    with pytest.raises(ValueError, match=words) as caught:
        InversionModule(**(given | change))
    assert "\n" not in str(caught.value)


def test_wrong_use_of_callbacks_is_named(glow, y):
    with pytest.raises(RuntimeError, match=r"before Trainer"):
        InversionModule(glow, blur, y, sigma=1.0).images  # noqa: B018
    with pytest.raises(ValueError, match="images"):
        InversionCurves(images=0)
    for callback in (Gaussianization(), InversionCurves()):
        with pytest.raises(ValueError, match=f"{type(callback).__name__} .* InversionModule"):
            callback.setup(None, FlowModule(glow), "fit")
    with pytest.raises(ValueError, match="TotalVariation"):
        with_layers(TotalVariation(1.0), LAYERS)
    with pytest.raises(ValueError, match="reparameterization"):
        Gaussianization("robust").setup(None, InversionModule(glow, blur, y, sigma=1.0), "fit")


def test_several_processes_are_refused(glow, y):
    shared = InversionModule(glow, blur, y, sigma=1.0)
    shared.trainer = SimpleNamespace(world_size=2)
    with pytest.raises(ValueError, match="got 2"):
        shared.configure_optimizers()
