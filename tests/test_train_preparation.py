"""A loss that prepares its images once: the same training, also stopped, killed and shared."""

import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import Preparation
from datamodules import LayerModels
from datamodules.prepared_rows import PreparedRows
from flowprior.flows import Trumpet
from flowprior.losses import LatentLikelihood, Loss, prepares
from lightning_modules import FlowModule
from tests.entry_points import SLOWLY, finish, scalars, start, train_here
from tests.test_train import assert_same, wait_for_step

PREPARED: list[int] = []
"""Numbers of images of each call of `Counted.prepare`."""


class Anew(LatentLikelihood):
    """Prepares nothing."""

    prepare = Loss.prepare

    def __call__(self, flow, images):
        with torch.no_grad():
            w = flow.contract(images)[0]
        return self.of_prepared(flow, w)


class Counted(LatentLikelihood):
    """Counts the images that it prepares."""

    def prepare(self, flow, images):
        PREPARED.append(len(images))
        return super().prepare(flow, images)


CONFIG = """
seed_everything: 0
model:
  flow:
    class_path: flowprior.flows.Trumpet
    init_args:
      in_channels: 1
      image_size: 8
      layout: [squeeze, 1, halve, squeeze, 1, halve]
      widths: [4, 4]
      low_steps: 2
      low_hidden_channels: 8
      memory_efficient: false
  optimizer: {class_path: torch.optim.Adam, init_args: {lr: 1.0e-3}}
data:
  class_path: datamodules.LayerModels
  init_args: {image_size: 8, num_train: 64, num_val: 9, num_test: 8, batch_size: 8, n_bits: null,
    data_range: [-1.0, 1.0]}
phases:
- {name: mse, loss: {class_path: flowprior.losses.Reconstruction}, epochs: 1}
- {name: ml, loss: {class_path: flowprior.losses.LatentLikelihood}, epochs: 2}
trainer: {accelerator: cpu, log_every_n_steps: 1}
checkpoints: {every_n_steps: 3}
samples: {images: 2}
"""
CURVE = "train/latent_nll"
OWN = "tests.test_train_preparation"
ANEW = CONFIG.replace("flowprior.losses.LatentLikelihood", f"{OWN}.Anew")
COUNTED = CONFIG.replace("flowprior.losses.LatentLikelihood", f"{OWN}.Counted")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(CONFIG)
    train_here(folder)
    return folder / "runs" / "tiny"


def assert_same_run(run: Path, whole: Path) -> None:
    for name in (CURVE, "val/latent_nll", "train/squared_error"):
        assert scalars(run, name) == pytest.approx(scalars(whole, name), abs=1e-6), name
    assert_same(run, whole, 1e-6)


def test_preparing_once_is_the_same_training(folder: Path, whole: Path) -> None:
    (folder / "tiny.yaml").write_text(ANEW)
    train_here(folder)
    run = folder / "runs" / "tiny"
    expected = scalars(run, CURVE)
    assert list(expected) == list(range(8, 24))
    assert scalars(whole, CURVE) == pytest.approx(expected, rel=1e-5)
    assert scalars(whole, "val/latent_nll") == pytest.approx(
        scalars(run, "val/latent_nll"), rel=1e-5
    )
    assert_same(run, whole, 1e-4)  # Adam enlarges the rounding of another batch


def test_each_image_is_prepared_once(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(COUNTED)
    PREPARED.clear()
    train_here(folder)
    assert sum(PREPARED) == 64 + 9
    train_here(folder)  # it is finished: nothing to prepare for
    assert sum(PREPARED) == 64 + 9


def test_curves_and_pictures_of_both_phases(whole: Path) -> None:
    for name in ("squared_error", "relative_error", "latent_nll"):
        assert len(scalars(whole, f"train/{name}")) == (16 if name == "latent_nll" else 8)
    errors = list(scalars(whole, "projections/relative_error").values())
    assert errors[0] == pytest.approx(scalars(whole, "val/relative_error")[7], rel=1e-4)
    assert errors == pytest.approx(errors[:1] * 3)  # g stays as it is
    events = EventAccumulator(str(whole / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    for name in ("projections/first_images", "samples/temperature_1", "latent/qq_plot"):
        assert [event.step for event in events.Images(name)] == [7, 15, 23]


def test_stops_change_nothing(folder: Path, whole: Path) -> None:
    for limit in (5, 8, 13, 16):
        train_here(folder, "--trainer.max_steps", str(limit))
    train_here(folder)
    assert_same_run(folder / "runs" / "tiny", whole)


def test_kill_changes_nothing(folder: Path, whole: Path) -> None:
    run = folder / "runs" / "tiny"
    process = start(folder, "train.py", "--config", "tiny.yaml", SLOWLY)
    wait_for_step(run, 12, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finish(folder, "train.py", "--config", "tiny.yaml")
    assert_same_run(run, whole)


def test_two_processes_train_as_one(folder: Path) -> None:
    digest = "callbacks: [{class_path: tests.entry_points.ParameterDigest}]"
    config = CONFIG.replace("trainer: {", f"trainer: {{precision: 64-true, {digest}, ")
    (folder / "tiny.yaml").write_text(config)
    train_here(folder, "--output", "one")
    arguments = ("--output", "two", "--trainer.devices", "2")
    finish(folder, "train.py", "--config", "tiny.yaml", *arguments)
    digests = [(folder / "two" / f"digests-{rank}").read_text().splitlines() for rank in (0, 1)]
    assert len(set(digests[0])) == 24
    assert digests[0] == digests[1]
    assert_same(folder / "two", folder / "one", 1e-9)


@pytest.mark.parametrize("option", ["--data.n_bits=8", "--data.horizontal_flips=true"])
def test_images_that_change_are_prepared_in_each_epoch(
    folder: Path, option: str, capsys: pytest.CaptureFixture
) -> None:
    (folder / "tiny.yaml").write_text(COUNTED)
    PREPARED.clear()
    train_here(folder, option)
    assert sum(PREPARED) == 2 * (64 + 9)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "in each epoch" in line]
    assert line.startswith("ml: Counted")


def test_a_trial_prepares_one_batch(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(COUNTED)
    PREPARED.clear()
    train_here(folder, "--trainer.fast_dev_run", "true")
    assert PREPARED == [8, 5]


def test_preparation_under_a_trainer_of_one_s_own() -> None:
    """The trial of the validation before training, and a validation alone."""
    options = {"low_steps": 1, "low_hidden_channels": 4, "widths": (4, 4)}
    layout = ["squeeze", 1, "halve", "squeeze", "halve"]
    flow = Trumpet(1, 8, layout=layout, memory_efficient=False, **options)
    module = FlowModule(flow, loss=Counted())
    sizes = {"num_train": 16, "num_val": 9, "num_test": 1, "batch_size": 8}
    data = LayerModels(8, n_bits=None, data_range=(-1.0, 1.0), **sizes)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        num_sanity_val_steps=2,
        callbacks=[Preparation()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )
    PREPARED.clear()
    trainer.fit(module, datamodule=data)
    assert sum(PREPARED) == 16 + 9
    (after,) = trainer.validate(module, datamodule=data, verbose=False)
    assert sum(PREPARED) == 16 + 9 + 9
    assert after["val/latent_nll"] == pytest.approx(
        trainer.callback_metrics["val/latent_nll"].item()
    )


class Half(Loss):
    """Prepares, but does not say what for."""

    monitor = "value"

    def __call__(self, flow, images):
        return {"value": images.sum((1, 2, 3))}

    def prepare(self, flow, images):
        return images


class Penalised(LatentLikelihood):
    """Changes what calls give, but not what is computed of the codes."""

    def __call__(self, flow, images):
        values = super().__call__(flow, images)
        return {"latent_nll": values["latent_nll"] + 1000}


class Both(Penalised):
    """Changes both."""

    def of_prepared(self, flow, prepared):
        return {"latent_nll": super().of_prepared(flow, prepared)["latent_nll"] + 1000}


class Unprepared(Penalised):
    """Is called, because nothing is prepared."""

    prepare = Loss.prepare


def test_changed_calls_are_not_ignored(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "tiny.yaml").write_text(COUNTED.replace("Counted", "Penalised"))
    train_here(folder, status=2)
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if "changes `__call__` but inherits of_prepared" in line]
    assert "Penalised" in line
    assert "`prepare = Loss.prepare`" in line
    assert not (folder / "runs").exists()
    trainer = SimpleNamespace(datamodule=None, fast_dev_run=False)
    module = SimpleNamespace(loss=Penalised(), prepared=False)
    with pytest.raises(ValueError, match="Penalised changes `__call__`"):
        Preparation().setup(trainer, module, "fit")


@pytest.mark.parametrize(
    ("loss", "expected"),
    [(LatentLikelihood, True), (Both, True), (Counted, True), (Unprepared, False), (Anew, False)],
)
def test_losses_that_prepare(loss: type[Loss], expected: bool) -> None:
    assert prepares(loss()) is expected


def test_half_a_preparation_is_named() -> None:
    with pytest.raises(ValueError, match="Half has prepare, and so needs of_prepared"):
        prepares(Half())
    with pytest.raises(NotImplementedError, match="Half has prepare, and so needs of_prepared"):
        Half().of_prepared(None, torch.zeros(1))


class Undecided(Counted):
    """Has prepare, but makes nothing."""

    def prepare(self, flow, images):
        super().prepare(flow, images)
        return None

    def __call__(self, flow, images):
        return self.of_prepared(flow, LatentLikelihood.prepare(self, flow, images))

    def of_prepared(self, flow, prepared):
        return super().of_prepared(flow, prepared)


def test_a_loss_that_prepares_none_is_called(folder: Path, whole: Path) -> None:
    (folder / "tiny.yaml").write_text(COUNTED.replace("Counted", "Undecided"))
    PREPARED.clear()
    train_here(folder)
    assert PREPARED == [8]
    run = folder / "runs" / "tiny"
    assert scalars(run, CURVE) == pytest.approx(scalars(whole, CURVE), rel=1e-5)


def test_none_for_validation_alone_prepares_nothing() -> None:
    data = LayerModels(8, num_train=6, num_val=4, num_test=1, batch_size=4, n_bits=None)
    parts = {name: PreparedRows(data.dataset(name), 4) for name in ("train", "val")}
    data.prepared = parts
    flow = torch.nn.Identity()
    loss = SimpleNamespace(prepare=lambda flow, x: x[:, 0, 0] if flow.training else None)
    module = SimpleNamespace(prepared=True, flow=flow, loss=loss, device="cpu", phase="ml")
    plugin = SimpleNamespace(forward_context=nullcontext, convert_input=lambda x: x)
    strategy = SimpleNamespace(reduce=lambda rows, reduce_op: rows)
    given = {"precision_plugin": plugin, "strategy": strategy, "datamodule": data}
    Preparation().on_train_start(SimpleNamespace(**given, global_rank=0, world_size=1), module)
    assert not module.prepared
    assert all(part[0, 1].equal(part.images[0, 1]) for part in parts.values())


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda x: x.flatten(1).mean(1)[:1], r"for each of 4 images, got \(1,\)"),
        (lambda x: x.mean(), r"for each of 4 images, got \(\)"),
        (lambda x: (x, x), "for each of 4 images, got tuple"),
        (lambda x: x if len(x) == 4 else None, "for each of 2 images, got NoneType"),
        (lambda x: x.flatten(1)[:, : len(x)], r"one shape, \(2, 4\), got \(2, 2\)"),
    ],
)
def test_wrong_rows_are_named(made, said: str) -> None:
    data = LayerModels(8, num_train=6, num_val=1, num_test=1, n_bits=None)
    part = PreparedRows(data.dataset("train"), 4, "Mine.prepare")
    with pytest.raises(ValueError, match=f"^Mine.prepare must give .*{said}$"):
        part.fill(made, lambda rows: rows, (0, 1), lambda count: None)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_rows_do_not_depend_on_the_number_of_processes(world_size: int) -> None:
    data = LayerModels(8, num_train=33, num_val=1, num_test=1, n_bits=None)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU()).requires_grad_(False)
    parts, advanced = [], 0

    def advance(count: int) -> None:
        nonlocal advanced
        advanced += count

    for rank in range(world_size):
        part = PreparedRows(data.dataset("train"), 5)
        part.fill(net, lambda rows: rows, (rank, world_size), advance)
        parts.append(part.rows)
    assert advanced == 33 * world_size
    images = data.dataset("train").__getitems__([(0, index) for index in range(33)])
    expected = torch.cat([net(images[start : start + 5]) for start in range(0, 33, 5)])
    assert sum(parts).equal(expected)
    keys = [(3, 7), (0, 32), (1, 0)]
    part.rows = sum(parts)
    assert part.__getitems__(keys).equal(expected[[7, 32, 0]])
    assert part[2, 4].equal(expected[4])
