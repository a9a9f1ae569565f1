"""Losses, schedules and the module that trains with them."""

import math
from types import SimpleNamespace

import pytest
import torch

from callbacks import (
    EMA,
    Checkpoints,
    SampleGrid,
    StopOnNonFinite,
    TrainingStopped,
    WeightExport,
)
from datamodules import LayerModels, Reflectivities
from flowprior.figures import grey_range
from flowprior.flows import Glow
from flowprior.losses import LatentLikelihood, Loss, MaximumLikelihood, Reconstruction
from flowprior.metrics import bits_per_dim
from flowprior.schedules import WarmupCosine
from lightning_modules import FlowModule
from tests.conftest import make_perturbed_glow


@pytest.fixture
def flow():
    return make_perturbed_glow(1, 8, levels=2, steps=2, coupling="affine")


def images(count=5):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 8, 8, generator=generator, dtype=torch.float64) - 0.5


def test_maximum_likelihood_is_bits_per_dimension(flow):
    loss = MaximumLikelihood()
    loss.n_bits = 5
    values = loss(flow, images())
    assert list(values) == ["bits_per_dim", "nll"]
    torch.testing.assert_close(values["nll"], -flow.log_prob(images()))
    expected = bits_per_dim(flow.log_prob(images()), 64, 5)
    torch.testing.assert_close(values["bits_per_dim"], expected)


class Halved(Glow):
    """Forgets half of the latent, as an injective flow does."""

    def encode(self, x):
        z, log_det = super().encode(x)
        return torch.cat([z[..., :4], torch.zeros_like(z[..., 4:])], -1), log_det


def test_reconstruction_is_the_squared_distance_to_the_range(flow):
    loss = Reconstruction()
    assert loss(flow, images())["squared_error"].max() < 1e-12
    torch.manual_seed(0)
    halved = Halved(1, 8, levels=2, steps=1, hidden_channels=4).double()
    halved.initialized.fill_(True)
    x = images()
    values = loss(halved, x)["squared_error"]
    projected = halved.decode(halved.encode(x)[0])[0]
    for value, one, other in zip(values, x, projected, strict=True):
        assert value.item() == pytest.approx(((one - other) ** 2).sum().item())
    assert values.min() > 0.1
    values.mean().backward()
    assert any(p.grad.abs().sum() > 0 for p in halved.parameters() if p.grad is not None)


class Projecting(Glow):
    """A bijective flow with one method of an injective one."""

    def project(self, x):
        return x


def test_a_projection_alone_makes_no_flow_injective():
    flow = Projecting(1, 8, levels=1, steps=1, hidden_channels=4)
    assert not flow.injective
    assert list(Reconstruction().trains(flow)) == list(flow.parameters())
    with pytest.raises(ValueError, match="LatentLikelihood needs contract and low_log_prob"):
        LatentLikelihood().trains(flow)


@pytest.mark.parametrize("warmup", [0, 4])
def test_schedule_warms_up_and_falls_along_a_cosine(warmup):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    schedule = WarmupCosine(optimizer, warmup, total_steps=20 + warmup, final=0.1)
    rates = []
    for _ in range(30 + warmup):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:warmup] == pytest.approx([0.125, 0.25, 0.375, 0.5][:warmup])
    falling = [0.05 + 0.45 * (1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)]
    assert rates[warmup : warmup + 20] == pytest.approx(falling)
    assert rates[warmup + 20 :] == pytest.approx([0.05] * 10)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"warmup_steps": 1, "total_steps": 0}, "total_steps"),
        ({"warmup_steps": 1, "final": 2.0}, "final"),
    ],
)
def test_schedule_out_of_range_is_named(options, name):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    with pytest.raises(ValueError, match=name):
        WarmupCosine(optimizer, **options)


class Wrong(Loss):
    monitor = "value"

    def __init__(self, values):
        self.values = values

    def __call__(self, flow, images):
        return self.values


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"other": torch.zeros(5)}, "monitor"),
        ({"value": torch.zeros(())}, "value"),
        ({"value": torch.zeros(5), "other": torch.zeros(4)}, "other"),
    ],
)
def test_wrong_values_of_a_loss_are_named(flow, values, word):
    with pytest.raises(ValueError, match=f"Wrong: {word}"):
        FlowModule(flow, loss=Wrong(values)).training_step(images(), 0)


def trainer_at(step):
    return SimpleNamespace(global_step=step, log_every_n_steps=4)


def test_guard_waits_for_the_device_only_at_steps_that_are_drawn(tmp_path):
    guard = StopOnNonFinite(Checkpoints(tmp_path))
    norm = torch.zeros((), device="meta")  # has no value: looking at it raises
    module = SimpleNamespace(gradient_norm=norm)
    for step in (1, 2, 3):
        guard.on_train_batch_end(trainer_at(step), module)
    with pytest.raises(RuntimeError, match="meta"):
        guard.on_train_batch_end(trainer_at(4), module)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_guard_remembers_a_bad_gradient(tmp_path, bad):
    guard = StopOnNonFinite(Checkpoints(tmp_path))
    for step, norm in ((1, 1.0), (2, bad), (3, 1.0)):
        guard.on_train_batch_end(
            trainer_at(step), SimpleNamespace(gradient_norm=torch.tensor(norm))
        )
    for hook in (guard.on_validation_start, guard.on_train_end):
        with pytest.raises(TrainingStopped, match="gradient norm"):
            hook(trainer_at(3), None)
    with pytest.raises(TrainingStopped, match="gradient norm"):
        guard.on_save_checkpoint(trainer_at(3), None, {})


def test_hours_of_training_are_counted_over_resumptions_and_phases(tmp_path):
    export = WeightExport(tmp_path, {})
    export.load_state_dict({"best_score": 1.0, "seconds": 3600.0})
    assert 3600 <= export.state_dict()["seconds"] < 3660
    export.setup(None, None, "fit")
    assert 3600 <= export.state_dict()["seconds"] < 3660
    export.load_state_dict({"best_score": 1.0})  # from before the time was kept
    assert 0 <= export.state_dict()["seconds"] < 60


@pytest.mark.parametrize("data", [Reflectivities, LayerModels])
def test_samples_have_the_contrast_of_the_images(data, monkeypatch):
    data = data(image_size=8, num_val=6)
    flow = make_perturbed_glow(1, 8, dtype=torch.float32, levels=1, steps=1)
    shown = {}
    writer = SimpleNamespace(add_image=lambda name, grid, step: shown.update({name: grid}))
    monkeypatch.setattr("callbacks.samples.writer_of", lambda trainer: writer)
    trainer = SimpleNamespace(datamodule=data, sanity_checking=False, global_step=1)
    SampleGrid(4).on_validation_epoch_end(trainer, SimpleNamespace(flow=flow))
    images = flow.to_unit_range(data.dataset("val").__getitems__([(0, i) for i in range(4)]))
    low, high = grey_range(images)
    assert (high - low < 1 / 3) == isinstance(data, Reflectivities)
    drawn = flow.sample(4, 1.0, generator=torch.Generator().manual_seed(0))
    expected = ((flow.to_unit_range(drawn) - low) / (high - low)).clamp(0, 1)
    differences = expected.flatten()[:, None] - shown["samples/temperature_1"][0].flatten()
    assert differences.abs().min(1).values.max() < 1e-6


def test_options_out_of_range_are_named(tmp_path):
    with pytest.raises(ValueError, match="decay"):
        EMA(1.0)
    with pytest.raises(ValueError, match="every_n_steps"):
        Checkpoints(tmp_path, 0)
    with pytest.raises(ValueError, match="images"):
        SampleGrid(0)
