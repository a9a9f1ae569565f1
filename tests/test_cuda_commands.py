"""Trainers, train.py and evaluate.py on a GPU, run as a user runs them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import flowprior
from tests.conftest import make_perturbed_glow
from tests.gpu import DEVICE, agree, moved, on_gpu

pytestmark = on_gpu

ACCELERATOR = {"cuda": "gpu"}.get(DEVICE, DEVICE)
TRAINING = ["--config", "tiny.yaml", "--trainer.accelerator", ACCELERATOR]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from tests.entry_points import TINY

    (tmp_path / "tiny.yaml").write_text(TINY)
    flow = make_perturbed_glow(1, 16, dtype=torch.float32, levels=2, steps=2, coupling="affine")
    flowprior.save(flow, tmp_path / "weights")
    return tmp_path


def test_training_resumes(folder):
    from tests.entry_points import finish, scalars

    finish(folder, "train.py", *TRAINING, "--trainer.max_epochs", "1")
    output = finish(folder, "train.py", *TRAINING, "--trainer.max_epochs", "2")
    assert "resuming at step 8" in output
    run = folder / "runs" / "tiny"
    curve = scalars(run, "train/bits_per_dim")
    assert list(curve) == list(range(16))
    assert np.isfinite(list(curve.values())).all()
    (weights,) = {path.parent for path in run.rglob("model.safetensors")}
    flow = flowprior.load(weights, DEVICE)
    assert flow.sample(2).isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.callbacks+=callbacks.EMA"],
        ["--trainer.precision", "bf16-mixed"],
        ["--model.optimizer.fused", "true"],
    ],
    ids=["averaged weights", "bfloat16", "fused Adam"],
)
def test_options_of_training(folder, options):
    from tests.entry_points import scalars, train_here

    options = ["--trainer.accelerator", ACCELERATOR, "--trainer.max_epochs", "1", *options]
    train_here(folder, *options)
    curve = scalars(folder / "runs" / "tiny", "train/bits_per_dim")
    assert len(curve) == 8
    assert np.isfinite(list(curve.values())).all()


def test_trumpet_trains_in_phases(folder):
    from tests.entry_points import train_here

    (folder / "tiny.yaml").write_text(TRUMPET)
    train_here(folder, "--trainer.accelerator", ACCELERATOR)
    (path,) = (folder / "runs" / "tiny").rglob("model.safetensors")
    flow = flowprior.load(path.parent, DEVICE)
    x = flow.sample(2)
    torch.testing.assert_close(flow.project(x), x, atol=1e-3, rtol=0)


TRUMPET = """
seed_everything: 0
model:
  flow:
    class_path: flowprior.flows.Trumpet
    init_args:
      {in_channels: 1, image_size: 16, layout: [squeeze, 1, halve, squeeze, 1, halve, 1],
       widths: [4, 6], low_steps: 2, low_hidden_channels: 8}
  optimizer: {class_path: torch.optim.Adam, init_args: {lr: 1.0e-3}}
data:
  class_path: datamodules.LayerModels
  init_args: {image_size: 16, num_train: 32, num_val: 9, num_test: 8, batch_size: 8,
    n_bits: null, data_range: [-1.0, 1.0]}
phases:
  - {name: mse, loss: {class_path: flowprior.losses.Reconstruction}, epochs: 1}
  - {name: ml, loss: {class_path: flowprior.losses.LatentLikelihood}, epochs: 1}
trainer: {log_every_n_steps: 1}
checkpoints: {every_n_steps: 3}
samples: {images: 2}
"""


@pytest.mark.parametrize("name", ["lbfgs", "adam", "restarts", "discrepancy"])
def test_inversion_module_resumes(tmp_path, name):
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import ModelCheckpoint

    from callbacks import InversionCurves
    from flowprior.inversion import MAP, Discrepancy, Restarts, invert
    from lightning_modules import InversionModule
    from tests.inversion_problems import blur, images_of, small_glow

    solver = {
        "lbfgs": MAP(beta=0.1),
        "adam": MAP(beta=0.1, optimizer="adam", tolerance=1e-6),
        "restarts": Restarts(MAP(beta=0.1), 2),
        "discrepancy": Discrepancy(MAP(beta=10.0), stage=2),
    }[name]
    glow = small_glow()
    truth = images_of(glow, 3)
    y = blur(truth)

    def fitted(*callbacks, **resume):
        module = InversionModule(small_glow(), blur, y, sigma=0.2, solver=solver, iterations=4)
        trainer = pl.Trainer(
            accelerator=ACCELERATOR,
            devices=1,
            max_epochs=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=bool(callbacks),
            callbacks=[*callbacks, InversionCurves(truth.clamp(0, 1), images=1)],
        )
        trainer.fit(module, **resume)
        return module

    saving = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    whole = fitted(saving).images
    resumed = fitted(ckpt_path=next(tmp_path.glob("*step=2.ckpt"))).images
    torch.testing.assert_close(resumed, whole, atol=1e-6, rtol=0)
    expected = invert(moved(glow), blur, y.to(DEVICE), sigma=0.2, solver=solver, iterations=4)
    torch.testing.assert_close(whole.to(DEVICE), expected.x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_inversions_in_processes(folder, processes):
    from tests.entry_points import finish
    from tests.inversion_tables import SIMULATED, write_config

    settings = {**SIMULATED, "images": 4, "iterations": 3, "seeds": [0], "device": DEVICE}
    write_config(folder / "small.yaml", settings)
    options = ["--config", "small.yaml", "--output", "out", "--processes", processes]
    finish(folder, "evaluate.py", *options)
    rows = json.loads((folder / "out" / "table.json").read_text())["rows"]
    values = [row["metrics"]["psnr"]["mean"] for row in rows if "psnr" in row["metrics"]]
    assert len(values) >= 5
    assert np.isfinite(values).all()


def test_density_in_a_process(folder):
    from tests.entry_points import finish
    from tests.inversion_tables import rows_of, run_here
    from tests.test_evaluate import CONFIG

    config = CONFIG.replace("num_test: 300", "num_test: 20").replace("size: 1\n", "size: 8\n")
    (folder / "density.yaml").write_text(config)
    options = ["--config", "density.yaml", "--evaluation.device"]
    assert run_here(folder, *options, "cpu", "--output", "expected") == 0
    finish(folder, "evaluate.py", *options, DEVICE, "--output", "found", "--processes", "1")
    expected, found = (rows_of(folder / name)[0]["metrics"] for name in ("expected", "found"))
    expected, found = (metrics["bits_per_dim"]["mean"] for metrics in (expected, found))
    assert found == pytest.approx(expected, rel=1e-4)


def test_tables_have_the_numbers_of_the_cpu(folder):
    from tests.inversion_tables import SIMULATED, records, table

    settings = {**SIMULATED, "images": 3, "iterations": 2, "seeds": [0]}
    for device in ("cpu", DEVICE):
        table(folder, f"on {device}", {**settings, "device": device})
    expected, found = (records(folder / f"on {device}") for device in ("cpu", DEVICE))
    assert found.keys() == expected.keys()
    for key, metrics in expected.items():
        assert found[key]["psnr"] == pytest.approx(metrics["psnr"], abs=0.1), key


def test_weights_saved_from_the_device_are_the_same(folder):
    flow = flowprior.load(folder / "weights", DEVICE)
    flowprior.save(flow, folder / "again")
    first, second = (folder / name / "model.safetensors" for name in ("weights", "again"))
    assert first.read_bytes() == second.read_bytes()
    x = flowprior.load(folder / "weights").sample(1, generator=torch.Generator().manual_seed(0))
    agree(flow.sample(1, generator=torch.Generator().manual_seed(0)), x, 1e-4)
