"""InversionModule under a Trainer."""

import inspect
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import Gaussianization, InversionCurves
from flowprior.gaussianization import Gaussianization as Layers
from flowprior.inversion import Objective, invert
from lightning_modules import FlowModule, InversionModule
from tests.conftest import make_perturbed_glow
from tests.test_inversion import SIZE, blur


@pytest.fixture
def problem():
    flow = make_perturbed_glow(1, SIZE, levels=2, steps=2, coupling="affine", scale=0.05)
    flow.eval().requires_grad_(False)
    z = torch.randn(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).double()
    return flow, blur(flow.to_unit_range(flow.decode(0.7 * z)[0]))


def fit(module, *callbacks, logger=False):
    options = {"logger": logger, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )
    trainer.fit(module)
    return trainer


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
@pytest.mark.parametrize("gaussianized", [False, True])
def test_module_does_what_invert_does(problem, method, gaussianized):
    flow, y = problem
    objective = Objective(beta=1e-3)
    module = InversionModule(flow, blur, y, objective, iterations=6, method=method)
    assert [name for name, p in module.named_parameters() if p.requires_grad] == ["v"]
    callbacks = [Gaussianization(patch_size=2, temperature=0.9)] if gaussianized else []
    trainer = fit(module, *callbacks)
    h = Layers(patch_size=2, rotation="none", passes=2, temperature=0.9) if gaussianized else None
    expected = invert(
        flow,
        blur,
        y,
        objective=objective,
        iterations=6,
        method=method,
        reparameterization=h,
    )
    torch.testing.assert_close(module.v.detach(), expected.v)
    torch.testing.assert_close(module.images, expected.x)
    logged = trainer.callback_metrics["inversion/misfit"]
    expected_misfit = expected.history["misfit"][-1].mean()
    torch.testing.assert_close(logged.double(), expected_misfit, rtol=1e-5, atol=1e-8)


def test_tensorboard_shows_curves_pictures_and_typicality(problem, tmp_path):
    flow, y = problem
    truth = torch.rand(3, 1, SIZE, SIZE, dtype=torch.float64)
    curves = InversionCurves(truth, images=2)
    module = InversionModule(flow, blur, y, Objective(beta=1e-3), iterations=6)
    fit(module, Gaussianization(patch_size=4), curves, logger=TensorBoardLogger(tmp_path))
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
    assert events.Scalars("latent/radius")[-1].value == pytest.approx(1, abs=1e-5)
    assert torch.equal(curves.latents, module.reparameterization(module.v).detach())


def test_lightning_counts_iterations(problem, tmp_path):
    flow, y = problem
    module = InversionModule(flow, blur, y, iterations=6)
    options = {"accelerator": "cpu", "enable_progress_bar": False, "default_root_dir": tmp_path}
    curves = InversionCurves()
    trainer = pl.Trainer(max_steps=4, max_epochs=3, callbacks=[curves], logger=False, **options)
    trainer.fit(module)
    assert trainer.global_step == 4
    assert curves.recording.iterations == [0, 1, 2, 3, 4]
    curves = InversionCurves()
    module = InversionModule(flow, blur, y, iterations=3)
    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=2, save_top_k=-1)
    rate = LearningRateMonitor()
    logger = TensorBoardLogger(tmp_path)
    pl.Trainer(max_epochs=2, callbacks=[curves, saving, rate], logger=logger, **options).fit(module)
    assert curves.recording.iterations == list(range(7))
    assert len(list((tmp_path / "saved").glob("*.ckpt"))) == 3


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_resumed_inversion_is_the_whole_one(problem, tmp_path, method):
    flow, y = problem
    options = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False, "max_epochs": 1}
    options["default_root_dir"] = tmp_path / "other"

    def fitted(callbacks, **resume):
        module = InversionModule(flow, blur, y, iterations=6, method=method)
        pl.Trainer(callbacks=callbacks, **options).fit(module, **resume)
        return module.v.detach()

    saving = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1)
    expected = fitted([saving])
    path = next(tmp_path.glob("*step=4.ckpt"))
    curves = InversionCurves(images=1)
    assert fitted([curves], ckpt_path=path).equal(expected)
    assert curves.recording.iterations == [5, 6]


def test_images_before_the_fit_are_refused(problem):
    with pytest.raises(RuntimeError, match="before Trainer"):
        InversionModule(problem[0], blur, problem[1]).images  # noqa: B018
    with pytest.raises(ValueError, match="images must be at least 1"):
        InversionCurves(images=0)


def test_all_settings_of_the_layers_can_be_given():
    names = list(inspect.signature(Gaussianization).parameters)
    assert names == ["preset", *inspect.signature(Layers).parameters]
    layers = Gaussianization(rotation="ica", yeo_johnson=False, eta=0.1).layers
    changed = {"rotation": "ica", "yeo_johnson": False, "eta": 0.1}
    assert layers.settings == {**Layers.robust().settings, **changed}


def test_start_and_settings(problem):
    flow, y = problem
    start = torch.zeros(3, 1, SIZE, SIZE)
    module = InversionModule(flow, blur, y, start=start, iterations=1)
    assert torch.equal(module.v.detach(), start.double())
    settings = Gaussianization("paper", temperature=0.7).layers.settings
    assert settings == {**Layers.paper().settings, "temperature": 0.7}


def test_wrong_use_is_named(problem):
    flow, y = problem
    with pytest.raises(ValueError, match="iterations"):
        InversionModule(flow, blur, y, iterations=0)
    with pytest.raises(ValueError, match="start must be finite"):
        InversionModule(flow, blur, y, start=torch.zeros(1))
    with pytest.raises(ValueError, match="preset"):
        Gaussianization("best")
    with pytest.raises(TypeError, match="patchsize"):
        Gaussianization(patchsize=4)
    with pytest.raises(ValueError, match="InversionModule"):
        Gaussianization().setup(None, FlowModule(flow), "fit")
    shared = InversionModule(flow, blur, y)
    shared.trainer = SimpleNamespace(world_size=2)
    with pytest.raises(ValueError, match="runs in one process, got 2"):
        shared.configure_optimizers()
    with pytest.raises(ValueError, match="y must have shape"):
        fit(InversionModule(flow, blur, y[..., :8], iterations=1))
